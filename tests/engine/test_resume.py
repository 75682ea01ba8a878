"""Resuming: stopped and continued is bit for bit never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Killed, Shelf, dies, go, lines, open_run, same, tensors

import limbeck as lb
from limbeck import user_files
from limbeck.engine import resume
from limbeck.engine.loop import Loop
from limbeck.engine.run import _Run
from limbeck.errors import LimbeckError

# Checkpoint at 3; evaluations at 2 and 4; killed before step 4: metrics of step 3 and the evaluation at 4 are undone.
LAW: dict[str, Any] = {"steps": 5, "save_every": 3, "eval_every": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kdrl": ("kdrl", {"schedule": "cosine", "warmup": 2, "weight_decay": 0.1, "prompts": 5}),
    "minillm": ("minillm", {"updates": 4}),
    "dapo": ("dapo", {}),
    "gkd": ("gkd", {}),
    "dpo": ("dpo", {}),
    "kdrl-lora": ("kdrl", {"lora_rank": 2}),
    "grpo-micro": ("grpo", {"micro_tokens": 30}),
    "averaged weights": ("sdpo", {}),
    "averaged weights, lora": ("sdpo", {"lora_rank": 2}),
    "average with resets": ("tt_opd", {"task": "corridor", "turns": 2, "every": 2, "reset": 3}),
    "written once": ("lightning_opd", {"prompts": 3}),
    "refined once": ("trd", {"prompts": 3}),
    "moving average": ("vpd", {"e_every": 2}),
    "skills": ("skill_sd", {"task": "corridor", "turns": 2, "every": 2}),
    "controller": ("decoupled_kl", {"levels": (1, 2, 3), "gate_every": 2}),
    "episodes": ("sod", {"task": "corridor", "turns": 2}),
    "replayed episodes": ("tcod_back", {"task": "corridor", "turns": 3}),
}


def assert_same_run(a: Path, b: Path) -> None:
    steps = sorted(p.name for p in (a / "checkpoints").iterdir())
    assert steps == sorted(p.name for p in (b / "checkpoints").iterdir())
    for name in ("weights", "optimizer"):
        files = [x / "checkpoints" / steps[-1] / f"{name}.safetensors" for x in (a, b)]
        assert same(tensors(files[0]), tensors(files[1])), name
        assert tensors(files[0])
    states = [json.loads((x / "checkpoints" / steps[-1] / "state.json").read_text()) for x in (a, b)]
    assert states[0] == states[1]
    assert same(tensors(a / "student" / "model.safetensors"), tensors(b / "student" / "model.safetensors"))
    for name in ("metrics", "evaluations", "samples"):
        assert lines(a / f"{name}.jsonl") == lines(b / f"{name}.jsonl"), name


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_never_stopped(
    case: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, own = CASES[case]
    straight = go(shelf, method, tmp_path / "straight", **LAW, **own).out
    heal = dies(monkeypatch, at=4)
    with pytest.raises(Killed):
        go(shelf, method, tmp_path / "stopped", **LAW, **own)
    stopped = tmp_path / "stopped"
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["step-000003"]
    assert len(lines(stopped / "metrics.jsonl")) == 4  # there is something to undo
    assert [e["step"] for e in lines(stopped / "evaluations.jsonl")] == [0, 2, 4]
    with (stopped / "metrics.jsonl").open("a") as f:
        f.write('{"step": 4, "loss": 0.1')  # a line that was being written
    heal()
    resume(stopped, console=None)
    assert_same_run(straight, stopped)
    rows = lines(straight / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(5))
    if method == "gkd":  # the coin fell on both sides: only sampled text has a reward
        assert {"reward" in r for r in rows} == {True, False}
    if method == "dapo":  # rounds were drawn again where no group informed
        cursor = json.loads((straight / "checkpoints" / "step-000005" / "state.json").read_text())["cursors"]["task"]
        assert cursor > 5 * 4
    if method == "minillm":
        assert set(json.loads((straight / "checkpoints" / "step-000005" / "state.json").read_text())["cursors"]) == {
            "pretrain",
            "task",
        }


def test_a_run_without_a_checkpoint_starts_again(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"steps": 2, "save_every": 0}
    straight = go(shelf, "kdrl", tmp_path / "straight", **own).out
    heal = dies(monkeypatch, at=1)
    with pytest.raises(Killed):
        go(shelf, "kdrl", tmp_path / "stopped", **own)
    heal()
    resume(tmp_path / "stopped")
    assert_same_run(straight, tmp_path / "stopped")


def test_a_token_budget_ends_a_run_once(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"steps": 9, "save_every": 1, "token_budget": 100}
    straight = go(shelf, "kdrl", tmp_path / "straight", **own)
    written = [m["tokens_written"] for m in lines(straight.out / "metrics.jsonl")]
    assert sum(written) >= 100 > sum(written[:-1])
    assert 2 <= len(written) == straight.steps < 9
    heal = dies(monkeypatch, at=1)
    with pytest.raises(Killed):
        go(shelf, "kdrl", tmp_path / "stopped", **own)
    heal()
    resume(tmp_path / "stopped")
    assert_same_run(straight.out, tmp_path / "stopped")
    resume(tmp_path / "stopped")  # it is spent
    assert_same_run(straight.out, tmp_path / "stopped")


def test_a_finished_run_trains_longer(shelf: Shelf, tmp_path: Path) -> None:
    straight = go(shelf, "kdrl", tmp_path / "straight", steps=4, save_every=2).out
    go(shelf, "kdrl", tmp_path / "short", steps=2, save_every=2)
    result = resume(tmp_path / "short", steps=4)
    assert result.steps == 4
    assert result.before is not None
    assert result.before["step"] == 0
    weights = [tensors(x / "student" / "model.safetensors") for x in (straight, tmp_path / "short")]
    assert same(*weights)
    assert lines(straight / "metrics.jsonl") == lines(tmp_path / "short" / "metrics.jsonl")
    assert json.loads((tmp_path / "short" / "run.json").read_text())["config"]["steps"] == 4


def test_what_is_in_force_is_written_down(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heal = dies(monkeypatch, at=1)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        go(shelf, "sft", out, steps=2, eval_size=0)
    heal()

    def told() -> tuple[int, bool, list[tuple[int, str]]]:
        run = json.loads((out / "run.json").read_text())
        history = [(r["step"], r["command"]) for r in run.get("resumed", [])]
        return run["config"]["steps"], bool(run["finished"]), history

    assert told() == (2, False, [])
    resume(out, steps=3)  # no checkpoint yet
    first = (0, f"limbeck train --resume {out} --steps 3")
    assert told() == (3, True, [first])
    dies(monkeypatch, at=3)
    with pytest.raises(Killed):
        resume(out, steps=4, command="as typed")
    assert told() == (4, False, [first, (3, "as typed")])


def test_a_resumed_finished_run_changes_nothing(shelf: Shelf, tmp_path: Path) -> None:
    done = go(shelf, "kdrl", tmp_path / "done", lora_rank=2).out
    before = (done / "student" / "model.safetensors").read_bytes()
    metrics = (done / "metrics.jsonl").read_text()
    resume(done)
    assert (done / "student" / "model.safetensors").read_bytes() == before
    assert len(metrics.splitlines()) == len((done / "metrics.jsonl").read_text().splitlines())


def test_a_schedule_object_survives_the_folder(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method's argument may be a value of the library; the folder must give the same value back, or refuse."""
    from limbeck.axes import anneal

    own = {"steps": 3, "save_every": 1, "coef": anneal(0.5, 0.1, 0.2)}
    straight = go(shelf, "kdrl", tmp_path / "straight", **own).out
    assert [m["coef/2"] for m in lines(straight / "metrics.jsonl")] == pytest.approx([0.5, 0.3, 0.1])
    heal = dies(monkeypatch, at=2)
    with pytest.raises(Killed):
        go(shelf, "kdrl", tmp_path / "stopped", **own)
    heal()
    resume(tmp_path / "stopped")
    assert_same_run(straight, tmp_path / "stopped")


def test_the_gradient_scaler_is_kept(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision on a GPU has one; Accelerate makes none on a CPU, so it is put there by hand."""
    run = open_run(shelf, "kd", tmp_path / "run", eval_size=0)
    run.log.describe(run.session, "")
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    run._save(1)
    again = open_run(shelf, "kd", tmp_path / "run", eval_size=0)
    again.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    monkeypatch.setattr(_Run, "_train", lambda self, first: first)
    assert again.restart() == 1  # type: ignore[comparison-overlap]
    assert again.accelerator.scaler.state_dict()["scale"] == 8.0


def test_a_task_made_in_python_is_asked_for(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{i} {i}", "answer": "1"} for i in range(12)]
    own = lb.task(rows, name="mine")
    go(shelf, "opd", tmp_path / "run", task=own, steps=1, eval_size=0)
    with pytest.raises(
        LimbeckError, match=r"'mine' of .* was made in Python; add --import FILE\.py that defines it as mine"
    ):
        resume(tmp_path / "run", steps=2)
    assert resume(tmp_path / "run", steps=2, task=own).steps == 2
    file = tmp_path / "own.py"
    file.write_text(f"import limbeck as lb\n\nmine = lb.task({rows!r}, name='mine')\n")
    monkeypatch.setattr(user_files, "_RUN", {})
    monkeypatch.setattr(user_files, "_MODULES", {})
    user_files.run_file(file)
    assert resume(tmp_path / "run", steps=3).steps == 3


def test_a_method_value_cannot_be_rebuilt_and_says_so(shelf: Shelf, tmp_path: Path) -> None:
    from limbeck.engine import distill
    from limbeck.methods import opd_full

    value = opd_full.factory()  # not named: a value of the user's own
    settings = shelf.settings("sft")
    distill(value, out=tmp_path / "run", quiet=True, **settings)
    with pytest.raises(LimbeckError, match=r"not registered.*register it with @method"):
        resume(tmp_path / "run")


def _slow_run(shelf: Shelf, out: Path, settings: dict[str, Any]) -> None:
    os.setsid()
    quick = Loop.step

    def step(self: Loop, number: int) -> dict[str, Any]:
        time.sleep(0.15)
        return quick(self, number)

    Loop.step = step  # type: ignore[method-assign]
    go(shelf, "kdrl", out, **settings)


def _stoppable_run(shelf: Shelf, out: Path, settings: dict[str, Any]) -> None:
    from limbeck.cli.exits import Stopped, stoppable

    try:
        with stoppable(out):
            _slow_run(shelf, out, settings)
    except Stopped as e:
        (out.parent / "said").write_text(str(e))
        os._exit(e.status)


def test_sigterm_stops_a_run_as_control_c_does(shelf: Shelf, tmp_path: Path) -> None:
    """As a scheduler does: what was saved stays, and the run says how to go on."""
    out = tmp_path / "stopped"
    settings = {"steps": 1000, "save_every": 1, "eval_size": 0}
    process = multiprocessing.get_context("fork").Process(target=_stoppable_run, args=(shelf, out, settings))
    process.start()
    deadline = time.monotonic() + 90
    while not (out / "checkpoints" / "step-000002").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert (tmp_path / "said").read_text() == f"stopped; continue with `limbeck train --resume {out}`."
    done = int(max(p.name for p in (out / "checkpoints").glob("step-*"))[5:])
    assert resume(out, steps=done + 1).steps == done + 1


def test_a_run_killed_by_sigkill_resumes_bit_for_bit(shelf: Shelf, tmp_path: Path) -> None:
    settings = {"steps": 16, "save_every": 2, "eval_every": 5}
    straight = go(shelf, "kdrl", tmp_path / "straight", **settings).out
    stopped = tmp_path / "stopped"
    process = multiprocessing.get_context("fork").Process(target=_slow_run, args=(shelf, stopped, settings))
    process.start()
    deadline = time.monotonic() + 90
    while not (stopped / "checkpoints" / "step-000004").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (stopped / "student").exists()
    resume(stopped)
    assert_same_run(straight, stopped)


def test_a_total_below_the_steps_that_are_done_is_refused(shelf: Shelf, out: Path) -> None:
    go(shelf, "sft", out, steps=2)
    with pytest.raises(LimbeckError, match=r"has done 2 steps, more than steps=1"):
        resume(str(out), steps=1)  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="task=3 is not a task"):
        resume(out, task=3)  # type: ignore[arg-type]
