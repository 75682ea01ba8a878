"""Folders of runs that something else has written in: one sentence before a model is loaded, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import Shelf, go, lines, open_run, same, tensors

from limbeck.engine import resume
from limbeck.engine.models import loading
from limbeck.engine.rollout.sources import write
from limbeck.engine.storage import checkpoint
from limbeck.errors import LimbeckError
from limbeck.report import load_run, write_report


@pytest.fixture(scope="module")
def finished(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(shelf, "sft", tmp_path_factory.mktemp("finished") / "run", save_every=1).out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def record(**own: Any) -> Callable[[Path], object]:
    """Replace fields of run.json; None takes one out."""

    def change(run: Path) -> None:
        document = json.loads((run / "run.json").read_text()) | own
        (run / "run.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))

    return change


def instead(name: str, text: str | None) -> Callable[[Path], object]:
    """A file, or with None a folder, where the run wrote something else."""

    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.mkdir() if text is None else path.write_text(text)

    return change


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no formula": (record(formula=None), "has no 'formula'"),
    "a formula that is a number": (record(formula=3), "'formula' is not a text"),
    "no config": (record(config=None), "has no 'config'"),
    "versions that are a number": (record(versions=7), "'versions' is not a table"),
    "a config that is a list": (record(config=[1]), "'config' is not a table"),
    "a config without a method": (record(config={}), "method is missing"),
    "arguments that are text": (record(config={"method": "sft", "arguments": "x"}), "arguments='x'"),
    "a list": (instead("run.json", "[]"), "it holds no table"),
    "a number": (instead("run.json", "7"), "it holds no table"),
    "deep brackets": (instead("run.json", "[" * 100_000), "run.json is damaged"),
    "a number of thousands of digits": (instead("run.json", "9" * 5000), "run.json is damaged"),
    "a folder": (instead("run.json", None), "run.json is damaged"),
    "checkpoints in a file": (instead("checkpoints", "x"), "checkpoints is not a folder"),
    "a student in a file": (instead("student", "x"), "student is not a folder"),
    "metrics in a folder": (instead("metrics.jsonl", None), "metrics.jsonl is not a file"),
    "a report in a folder": (instead("report.html", None), "report.html is not a file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_before_a_model_is_loaded(
    damage: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))
    change, words = DAMAGE[damage]
    change(run)
    with pytest.raises(LimbeckError) as e:
        resume(run)
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert str(e.value).endswith(".")


def test_a_checkpoint_of_other_data_is_refused(run: Path) -> None:
    state = run / "checkpoints" / "step-000002" / "state.json"
    told = json.loads(state.read_text().replace('"task"', '"pretrain"'))
    state.write_text(json.dumps({**told, "digest": checkpoint._digest(told)}))
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(LimbeckError, match=r"belongs to a run with other data: 'pretrain' does not fit; resume"):
        resume(run)
    assert (run / "metrics.jsonl").read_bytes() == metrics


ODD_LINES = [
    "[1]",
    "7",
    "null",
    '"x"',
    "[" * 100_000,
    "9" * 5000,
    "{}",
    '{"step": "x"}',
    '{"step": true}',
    '{"step": 1' + "0" * 400 + "}",
    '{"step": 0, "tokens_written": "x", "loss": 1' + "0" * 400 + "}",
]


def test_damaged_lines_are_left_out(run: Path, finished: Path) -> None:
    """Of everything else the run goes on as if they were not there."""
    for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl"):
        (run / name).write_text("\n".join([*ODD_LINES[:-1], (run / name).read_text()]))
    write_report(run)
    resume(run, steps=3)
    assert [m["step"] for m in lines(run / "metrics.jsonl")] == [0, 1, 2]
    assert [e["step"] for e in lines(run / "evaluations.jsonl")] == [0, 2, 3]
    assert lines(run / "metrics.jsonl")[:2] == lines(finished / "metrics.jsonl")
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_text("\n".join(ODD_LINES))
    resume(run, steps=2)  # from the start
    names = [x / "student" / "model.safetensors" for x in (run, finished)]
    assert same(*map(tensors, names))


REPORTED: dict[str, Callable[[Path], object]] = {
    "nothing": lambda p: (p / "run.json").write_text("{}"),
    "tables that are none": record(machine=[1], versions="x", parameters=3, config=[2], resumed={"a": 1}),
    "names that are none": record(title=[1], method={}, task=3, student=["a"], finished=7, started={}, command=[3]),
    "numbers that are too large": instead("metrics.jsonl", ODD_LINES[-1] + '\n{"step": 1, "seconds": 1e999}'),
    "rows of other things": instead("evaluations.jsonl", '{"step": 0, "accuracy": "x", "n": []}\n{"step": 1, "n": {}}'),
    "samples of other things": instead("samples.jsonl", '{"tokens": 3, "prompt": [1], "kl": "x", "answer": {}}'),
    "folders": lambda p: [instead(f"{n}.jsonl", None)(p) for n in ("metrics", "evaluations", "samples")],
}


@pytest.mark.parametrize("damage", REPORTED)
def test_a_report_is_written_of_whatever_is_there(damage: str, run: Path) -> None:
    REPORTED[damage](run)
    assert "<html" in write_report(run).read_text()


def test_a_report_needs_a_record(run: Path) -> None:
    for text in (None, "[" * 100_000, "9" * 5000, "[]"):
        instead("run.json", text)(run)
        with pytest.raises(LimbeckError, match=r"run.json|not a run folder"):
            load_run(run)


@pytest.mark.parametrize("what", ["a stored token", "no stored rollouts", "a skill"])
def test_what_a_run_remembers_is_what_it_wrote(what: str, shelf: Shelf, tmp_path: Path) -> None:
    """Stored rollouts are trained on as they are: one that has changed would be another run, so it is refused."""
    method = "skill_sd" if what == "a skill" else "lightning_opd"
    own: dict[str, Any] = {"task": str(shelf.verified), "turns": 1} if what == "a skill" else {}
    out = go(shelf, method, tmp_path / "run", steps=2, save_every=1, **own).out
    state = out / "checkpoints" / "step-000002" / "state.json"
    stored = state.with_name("stored.safetensors")
    reason = "by its digest"
    if what == "a stored token":
        found = tensors(stored)
        found['[0, "main", "ids_L"]'][-1] = 5
        save_file(found, stored)
    elif what == "no stored rollouts":
        stored.unlink()
        reason = "No such file"
    else:
        told = json.loads(state.read_text())
        (memory,) = told["memory"]
        memory["skills"] = {p: [["other", 0, 0.0]] for p in memory["skills"]}
        state.write_text(json.dumps(told))
    with pytest.raises(LimbeckError, match=rf"step-000002 is not a checkpoint.*{reason}.*the checkpoint before"):
        resume(out)


def test_a_checkpoint_of_another_method_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    runs = {name: go(shelf, name, tmp_path / name, steps=2, save_every=1).out for name in ("opsd", "grpo")}
    shutil.rmtree(runs["grpo"] / "checkpoints")
    shutil.copytree(runs["opsd"] / "checkpoints", runs["grpo"] / "checkpoints")
    with pytest.raises(LimbeckError, match="step-000002 is of a run of another method; remove it"):
        resume(runs["grpo"], steps=3)


def test_weights_that_have_diverged_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"lr=1e.30: input should be less than or equal to 1"):
        go(shelf, "opsd", tmp_path / "far", lr=1e30)
    run = open_run(shelf, "opsd", tmp_path / "run")
    for parameter in run._module().parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(LimbeckError, match="its weights have diverged; lower lr"):
        write(run.session.method.sources, run.session, 2, 0)
