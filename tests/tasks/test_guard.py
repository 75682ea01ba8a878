"""Guarded environments: an error in one episode ends that episode only."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken_environments
import pytest

from limbeck.errors import LimbeckError
from limbeck.tasks import EpisodeDied
from limbeck.tasks.guard import Limits, Pool

LIMITS = Limits(step_s=1.5, start_s=60, memory_mb=1024, output_chars=1000, episodes=2)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(broken_environments.World, LIMITS)
    yield pool
    pool.close()


def pids(pool: Pool) -> list[int]:
    """Process ids of the living workers."""
    return [worker.process.pid for worker in pool._workers if worker.alive()]


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether the process is gone, including its zombie."""
    for _ in range(int(seconds * 20)):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_observations_come_through(pool: Pool) -> None:
    episode = pool.open(first=4)
    seen = episode.step("walk")
    assert seen.text.split()[0] == "5"
    assert (seen.done, seen.reward, seen.correct, seen.feedback, seen.role) == (False, 0.5, False, None, "user")
    assert int(seen.text.split()[1]) in pids(pool)
    assert episode.step("end").done
    with pytest.raises(RuntimeError, match="over"):
        episode.step("walk")
    episode.close()
    episode.close()


def test_printing_and_reading_do_not_disturb_the_channel(pool: Pool) -> None:
    episode = pool.open()
    assert episode.step("print").reward == 0.25
    assert episode.step("read").reward == 0.0
    assert episode.step("ü\n\ud800").text.startswith("3 ")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("hang", "a step took longer than 1.5 s"),
        ("spin", "a step took longer than 1.5 s"),
        ("power", "a step took longer than 1.5 s"),
        ("crash", r"a step crashed its worker \(SIGSEGV\)"),
        ("exit", r"a step ended its worker \(exit 3\)"),
        ("leave", "raised SystemExit: 3"),
        ("raise", "raised KeyError: 'no such door'"),
        ("bomb", "raised MemoryError"),
        ("nan", "gave reward nan, which is not finite"),
    ],
)
def test_a_disaster_ends_one_episode_and_the_worker_is_replaced(pool: Pool, action: str, reason: str) -> None:
    neighbour, victim = pool.open(), pool.open()
    before = neighbour.step("walk").text.split()[1]
    (pid,) = pids(pool)
    with pytest.raises(EpisodeDied, match=reason) as death:
        victim.step(action)
    assert "\n" not in death.value.reason
    assert gone(pid)
    with pytest.raises(RuntimeError, match="over"):
        victim.step("walk")
    victim.close()
    count, after = neighbour.step("walk").text.split()
    assert (count, after != before) == ("2", True)
    assert pool.open(first=7).step("walk").text.startswith("8 ")


def test_an_episode_of_a_lost_worker_repeats_its_actions(pool: Pool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    episode = pool.open(log=str(log))
    episode.step("a")
    episode.step("b")
    os.kill(pids(pool)[0], signal.SIGKILL)
    while pids(pool):
        time.sleep(0.01)
    assert episode.step("c").text.startswith("3 ")
    assert log.read_text().split() == ["a", "b", "a", "b", "c"]
    episode.close()
    assert log.read_text().split()[-1] == "closed"


def test_sets_have_one_order_in_all_workers(pool: Pool) -> None:
    episodes = [pool.open() for _ in range(3)]
    assert len(pids(pool)) == 2
    assert len({e.step("hash").reward for e in episodes}) == 1


def test_workers_are_used_again_and_shared(pool: Pool) -> None:
    episodes = [pool.open() for _ in range(4)]
    assert len(pids(pool)) == 2
    seen = {e.step("walk").text.split()[1] for e in episodes}
    assert seen == {str(pid) for pid in pids(pool)}
    before = pids(pool)
    for episode in episodes:
        episode.close()
    again = [pool.open() for _ in range(4)]
    assert pids(pool) == before
    assert all(e.step("walk").text.startswith("1 ") for e in again)


def test_a_worn_out_worker_is_replaced(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.tasks.guard._RETIRE_AFTER", 2)
    first = pool.open()
    (pid,) = pids(pool)
    first.close()
    pool.open().close()
    kept = pool.open()
    assert gone(pid)
    assert len(pids(pool)) == 1
    pool.open().close()
    pool.open()
    assert len(pids(pool)) == 2
    assert kept.step("walk").text.startswith("1 ")


def test_too_long_an_observation_ends_the_episode() -> None:
    pool = Pool(broken_environments.Chatter, LIMITS)
    assert len(pool.open().step("1000").text) == 1000
    with pytest.raises(EpisodeDied, match="longer than 1000 characters"):
        pool.open().step("1001")
    pool.close()


def test_an_environment_that_does_not_open_gives_an_error() -> None:
    pool = Pool(broken_environments.slow_start, Limits(start_s=10, memory_mb=None))
    pool.limits = Limits(start_s=1)
    with pytest.raises(EpisodeDied, match="took longer than 1 s"):
        pool.open()
    broken = Pool(broken_environments.World, LIMITS)
    with pytest.raises(EpisodeDied, match="raised TypeError"):
        broken.open(second=1)
    broken.close()


def test_child_processes_of_an_environment_end_with_it(pool: Pool, tmp_path: Path) -> None:
    episode = pool.open(log=str(tmp_path / "log"))
    with pytest.raises(EpisodeDied, match="took longer"):
        episode.step("child")
    child = int((tmp_path / "log.pid").read_text())
    state = Path(f"/proc/{child}/stat")
    # Its parent is gone: whoever inherits it may take a while to bury it.
    assert gone(child) or state.read_text().split()[2] == "Z"


def test_workers_end_with_their_pool() -> None:
    pool = Pool(broken_environments.World, LIMITS)
    pool.open()
    (pid,) = pids(pool)
    del pool
    gc.collect()
    assert gone(pid)


def run_script(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


SCRIPT = """
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    from limbeck.tasks.guard import Limits, Pool

    class World:
        def step(self, text):
            import time
            time.sleep(float(text))
            return {{"text": "fine"}}
        def close(self): pass

    if __name__ == "__main__":
        pool = Pool(World, Limits(step_s={seconds}))
        episode = pool.open()
        print(pool._workers[0].process.pid, episode.step("0").text, flush=True)
        {rest}
"""


@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_workers_end_with_the_run(tmp_path: Path, how: str) -> None:
    run = run_script(tmp_path, SCRIPT.format(seconds=60, rest="" if how == "exit" else "episode.step('60')"))
    assert run.stdout is not None
    pid, said = run.stdout.readline().split()
    assert said == "fine"
    if how == "interrupt":
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert gone(int(pid))
    assert ("KeyboardInterrupt" in err) == (how == "interrupt")
    assert run.returncode == (0 if how == "exit" else -signal.SIGINT)


@pytest.mark.parametrize("rest", ["import time; time.sleep(60)", "episode.step('60')"])
def test_a_worker_whose_run_was_killed_ends_by_itself_also_in_a_hang(tmp_path: Path, rest: str) -> None:
    run = run_script(tmp_path, SCRIPT.format(seconds=1, rest=rest))
    assert run.stdout is not None
    pid = int(run.stdout.readline().split()[0])
    time.sleep(0.3)
    run.kill()
    run.communicate(timeout=60)
    assert gone(pid, 20)


def test_a_file_is_loaded_without_its_package(tmp_path: Path) -> None:
    file = tmp_path / "alone.py"
    file.write_text(
        "import sys\n"
        "class World:\n"
        "    def step(self, text): return {'text': str('torch' in sys.modules), 'role': 'tool', 'feedback': 'x'}\n"
        "    def close(self): pass\n"
    )
    pool = Pool(f"{file}:World", LIMITS)
    seen = pool.open().step("")
    assert (seen.text, seen.role, seen.feedback) == ("False", "tool", "x")
    pool.close()


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (lambda: None, "cannot be found by another process"),
        ("broken_environments:World.nothing", "raised AttributeError"),
        ("nomodule", "names no function"),
        ("no_such_module:make", "'make' of no_such_module raised ModuleNotFoundError"),
        ("broken_environments:Word", "raised AttributeError"),
        ("/nowhere/x.py:make", "raised FileNotFoundError"),
    ],
)
def test_factories_that_cannot_be_used_are_refused(factory: Any, sentence: str) -> None:
    with pytest.raises(LimbeckError) as refusal:
        Pool(factory, LIMITS).open()
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"step_s": 0}, "limit step_s is 0; give a number above 0."),
        ({"step_s": float("inf")}, "limit step_s is inf"),
        ({"memory_mb": 0.5}, "limit memory_mb is 0.5; give a whole number above 0."),
        ({"episodes": True}, "limit episodes is True"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LimbeckError) as refusal:
        Limits(**limits)
    assert sentence in str(refusal.value)


def test_a_worker_gets_no_access_token(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "SSH_AUTH_SOCK", "HTTPS_PROXY", "MY_OWN_SECRET")
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    pool = Pool(f"{Path(__file__).with_name('broken_environments.py')}:Environ")
    given = pool.open().step("").text.split()
    pool.close()
    assert {"PATH", "PYTHONHASHSEED"} <= set(given)
    assert not set(secrets) & set(given)
