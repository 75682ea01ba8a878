"""One process writes into a run's folder, unexpected files there are reported, and writes are in order."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import Killed, Shelf, dies, go, lines

import limbeck as lb
from limbeck.engine import resume
from limbeck.engine import run as engine_run
from limbeck.engine.storage import atomic as files
from limbeck.engine.storage import checkpoint
from limbeck.engine.storage import run_folder as folder
from limbeck.engine.storage.run_folder import held
from limbeck.engine.storage.run_log import RunLog, read_run
from limbeck.errors import LimbeckError
from limbeck.report import write_report


@pytest.fixture(scope="module")
def finished(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(shelf, "sft", tmp_path_factory.mktemp("finished") / "run", save_every=1).out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---------------------------------------------------------------- the lock


def _hold(out: Path, ready: Any) -> None:
    with held(out):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(run: Path) -> Any:
    """Another process that writes into the run's folder."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(run, ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_two_processes_do_not_write_into_one_folder(run: Path, shelf: Shelf, holder: Any) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for attempt in (
        lambda: resume(run, steps=3),
        lambda: go(shelf, "sft", run, overwrite=True),
    ):
        with pytest.raises(LimbeckError, match=r"another process is writing into .*run, and two would") as e:
            attempt()
        assert "\n" not in str(e.value)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    write_report(run)  # reading is allowed
    holder.kill()  # the lock ends with its process
    holder.join()
    assert resume(run, steps=3).steps == 3


def test_a_new_folder_is_held_before_anything_is_in_it(run: Path, shelf: Shelf, holder: Any) -> None:
    for path in run.iterdir():
        if path.name != folder.LOCK:
            files.remove(path)
    with pytest.raises(LimbeckError, match="another process is writing"):
        go(shelf, "sft", run)
    assert [p.name for p in run.iterdir()] == [folder.LOCK]


def test_a_run_killed_at_its_start_leaves_an_empty_folder(shelf: Shelf, out: Path) -> None:
    out.mkdir()
    (out / folder.LOCK).touch()
    assert go(shelf, "sft", out).steps == 2


def test_the_lock_is_released_after_an_error_and_after_a_run(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal = dies(monkeypatch, at=1)
    with pytest.raises(Killed):
        go(shelf, "sft", out, save_every=1)
    heal()
    assert resume(out).steps == 2
    assert resume(out, steps=3).steps == 3


def test_other_ranks_leave_the_lock_to_the_first(run: Path, holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with held(run):
        pass


def test_a_pipeline_is_held_and_so_are_its_stages(shelf: Shelf, tmp_path: Path) -> None:
    value = lb.Pipeline((lb.stage("sft"),))
    own = {k: v for k, v in shelf.settings("sft").items() if k != "teacher"}
    with held(_made(tmp_path / "p")), pytest.raises(LimbeckError, match=r"another process is writing into .*p, and"):
        lb.run_pipeline(value, tmp_path / "p", quiet=True, **own)
    lb.run_pipeline(value, tmp_path / "q", quiet=True, **own)
    with held(tmp_path / "q" / "stage-0-sft"), pytest.raises(LimbeckError, match=r"another process .*stage-0-sft"):
        resume(tmp_path / "q" / "stage-0-sft", steps=3)


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_noted(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder.FileLock, "acquire", refuse)
    prepared = io.StringIO()
    with held(tmp_path, Console(file=prepared, width=300)):
        pass
    assert "has no locks, so make sure yourself" in prepared.getvalue()


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    (tmp_path / folder.LOCK).mkdir()
    with pytest.raises(LimbeckError, match=r"cannot be locked against other processes"), held(tmp_path):
        pass


# ---------------------------------------------------------------- odd things at the folder's paths


def loop(path: Path) -> None:
    files.remove(path)
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    files.remove(path)
    path.symlink_to(path.parent / "nowhere")


def swapped(path: Path) -> None:
    """A file for a folder, a folder for a file."""
    was_folder = path.is_dir()
    files.remove(path)
    path.touch() if was_folder else path.mkdir()


NAMES = ("checkpoints", "student", "adapter", "trackers", "metrics.jsonl", "evaluations.jsonl", "report.html")


@pytest.mark.parametrize("odd", [loop, dangling, swapped], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_unexpected_files_at_a_runs_paths_give_one_sentence(name: str, odd: Callable[[Path], None], run: Path) -> None:
    if name in ("adapter", "trackers"):
        (run / name).mkdir(exist_ok=True)
    odd(run / name)
    with pytest.raises(LimbeckError, match=rf"{name} (is not a|is a link that leads nowhere).*move it away") as e:
        resume(run, steps=3)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_unreadable_files_give_one_sentence(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).name != name and access(p, mode))
    with pytest.raises(LimbeckError, match=rf"{name} may not be read and written; change its permissions"):
        resume(run, steps=3)


@pytest.mark.parametrize("odd", [loop, dangling, swapped], ids=lambda f: f.__name__)
def test_a_file_that_is_no_checkpoint_gives_one_sentence(odd: Callable[[Path], None], run: Path) -> None:
    odd(run / "checkpoints" / "step-000002")
    with pytest.raises(LimbeckError, match=r"step-000002 is not a checkpoint of Limbeck"):
        resume(run, steps=3)


@pytest.mark.parametrize("odd", [loop, dangling], ids=lambda f: f.__name__)
def test_an_output_path_that_leads_nowhere_gives_one_sentence(
    odd: Callable[[Path], None], shelf: Shelf, out: Path
) -> None:
    odd(out)
    with pytest.raises(LimbeckError, match=r"--out .*run: it cannot be a folder"):
        go(shelf, "sft", out)


def test_overwriting_takes_links_and_not_what_they_lead_to(shelf: Shelf, run: Path) -> None:
    mine = run.parent / "mine"
    (run / "student").rename(mine)
    (run / "student").symlink_to(mine)
    loop(run / "checkpoints")
    go(shelf, "sft", run, overwrite=True)
    assert (mine / "model.safetensors").is_file()
    assert not (run / "student").is_symlink()


def test_a_student_that_is_a_link_is_replaced_by_a_folder(run: Path) -> None:
    """Of a link, what it leads to stays, and nothing is left beside it."""
    mine = run.parent / "mine"
    (run / "student").rename(mine)
    (run / "student").symlink_to(mine)
    before = (mine / "model.safetensors").read_bytes()
    resume(run, steps=3)
    assert (mine / "model.safetensors").read_bytes() == before
    assert not (run / "student").is_symlink()
    assert not [p.name for p in run.iterdir() if p.name.startswith(".student")]


# ---------------------------------------------------------------- the order of commits


def test_lines_are_on_the_disk_before_the_checkpoint_that_covers_them(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, save = os.fsync, checkpoint.save

    def noting(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def saving(*arguments: Any) -> Path:
        order.append("save")
        return save(*arguments)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(engine_run.checkpoint, "save", saving)
    go(shelf, "sft", out, steps=1)
    at = order.index("save")
    assert {"metrics.jsonl", "evaluations.jsonl", "run"} <= set(order[:at])
    assert "checkpoints" in order[at:]


KILLED_IN = ("samples", "export", "_report", "finished")


@pytest.mark.parametrize("where", KILLED_IN)
def test_a_run_killed_at_its_end_is_not_finished_until_it_has_everything(
    where: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_report: None
) -> None:
    value = lb.Pipeline((lb.stage("sft"), lb.stage("kd")))
    own = {**shelf.settings("kd"), "steps": 1}
    out = tmp_path / "p"
    monkeypatch.setattr("limbeck.report.charts.curves", lambda data: [])  # slow, and nothing of it is asked here
    monkeypatch.setattr("limbeck.report.charts.before_after", lambda data: None)

    def dying(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as m:
        owner = {"samples": engine_run.Evaluator, "export": engine_run, "finished": engine_run.RunMessages}.get(
            where, engine_run._Run
        )
        m.setattr(owner, where, dying)
        with pytest.raises(Killed):
            lb.run_pipeline(value, out, quiet=True, **own)
    first = out / "stage-0-sft"
    assert bool(read_run(first)["finished"]) == (where == "finished")
    lb.run_pipeline(value, out, quiet=True, **own)
    for stage in (first, out / "stage-1-kd"):
        assert read_run(stage)["finished"]
        assert "has not finished" not in (stage / "report.html").read_text()
        assert {"samples.jsonl", "student", "report.html"} <= {p.name for p in stage.iterdir()}


def test_clearing_that_is_cut_short_leaves_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, gone = files.remove, []

    def dying(path: Path) -> None:
        if len(gone) == 6:
            raise Killed
        gone.append(path)
        remove(path)

    monkeypatch.setattr(folder, "remove", dying)
    with pytest.raises(Killed):
        folder.clear(run)
    assert (run / "run.json").is_file()


def test_a_rewind_that_is_cut_short_is_done_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000002")

    def dying(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(RunLog, "resumed", dying)
        with pytest.raises(Killed):
            resume(run)
    assert len(lines(run / "metrics.jsonl")) == 1
    resume(run)
    assert [m["step"] for m in lines(run / "metrics.jsonl")] == [0, 1]
