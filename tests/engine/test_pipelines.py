"""Pipelines with names: what they run, that a killed one goes on in its stage, and whose settings reach whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Parity, Shelf, same, tensors

import limbeck as lb
from limbeck.engine import build as setup
from limbeck.engine import pipeline as stages
from limbeck.engine import run as engine_run
from limbeck.engine.storage.run_log import read_run
from limbeck.space.pipeline import PIPELINES, get_pipeline


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task by name that a random model solves half of the time."""
    monkeypatch.setattr(setup, "load_task", lambda name, **_: Parity())


def settings(shelf: Shelf, **own: Any) -> dict[str, Any]:
    """Of every stage."""
    values: dict[str, Any] = {
        "student": str(shelf.student),
        "teacher": str(shelf.teacher),
        "steps": 2,
        "prompts": 4,
        "max_tokens": 2,
        "lr": 0.01,
        "warmup": 0,
        "eval_size": 2,
        "save_every": 1,
        "cpu": True,
    }
    return {**values, **own}


def weights(folder: Path) -> dict[str, Any]:
    return tensors(folder / "student" / "model.safetensors")


STAGES = {
    "sd_zero": ["sd_zero_srt", "sd_zero"],
    "lightning": ["gkd", "lightning_opd"],
    "opd_then_rl": ["opd_full", "grpo"],
}


def test_every_pipeline_is_known_here() -> None:
    assert list(STAGES) == list(PIPELINES)


@pytest.mark.parametrize("name", STAGES)
def test_a_named_pipeline_runs_and_hands_the_student_on(name: str, shelf: Shelf, tmp_path: Path, parity: None) -> None:
    results = lb.run_pipeline(get_pipeline(name)(), tmp_path / "p", quiet=True, **settings(shelf, steps=1))
    assert [r.out.name for r in results] == [f"stage-{i}-{m}" for i, m in enumerate(STAGES[name])]
    assert read_run(results[1].out)["student"] == str(results[0].student)
    first, second = (weights(r.out) for r in results)
    assert not same(tensors(shelf.student / "model.safetensors"), first)
    assert first.keys() == second.keys()


def test_iterations_repeat_both_phases(shelf: Shelf, tmp_path: Path, parity: None) -> None:
    """SD-Zero's further iterations start from the student so far, which is the next teacher."""
    value = lb.pipelines.sd_zero(iterations=2).adjusted(sd_zero_srt={"steps": 1}, sd_zero={"steps": 2})
    results = lb.run_pipeline(value, tmp_path / "p", quiet=True, **settings(shelf))
    assert [r.out.name for r in results] == [
        "stage-0-sd_zero_srt",
        "stage-1-sd_zero",
        "stage-2-sd_zero_srt",
        "stage-3-sd_zero",
    ]
    assert [r.steps for r in results] == [1, 2, 1, 2]
    assert read_run(results[2].out)["student"] == str(results[1].student)


def test_killed_in_stage_two_it_goes_on_there(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parity: None
) -> None:
    value, own = lb.pipelines.sd_zero(), settings(shelf, steps=3)
    straight = lb.run_pipeline(value, tmp_path / "straight", quiet=True, **own)
    step, calls = engine_run.Loop.step, []

    def dying(self: engine_run.Loop, n: int) -> dict[str, Any]:
        calls.append((self.session.config.method, n))
        if len(calls) == 5:  # the second step of the second stage
            raise KeyboardInterrupt
        return step(self, n)

    monkeypatch.setattr(engine_run.Loop, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        lb.run_pipeline(value, tmp_path / "killed", quiet=True, **own)
    loaded: list[str] = []
    monkeypatch.setattr(stages, "resume", _noting(stages.resume, loaded))
    monkeypatch.setattr(stages, "train", _noting(stages.train, loaded))
    again = lb.run_pipeline(value, tmp_path / "killed", quiet=True, **own)
    first = [("sd_zero_srt", n) for n in range(3)]
    assert calls == [*first, ("sd_zero", 0), ("sd_zero", 1), ("sd_zero", 1), ("sd_zero", 2)]
    assert loaded == ["stage-1-sd_zero"]  # what was done is not opened again
    for a, b in zip(straight, again, strict=True):
        assert same(weights(a.out), weights(b.out))
        assert (a.steps, a.before, a.after) == (b.steps, b.before, b.after) or a.out.name.startswith("stage-1")
    # A third call has nothing to do.
    loaded.clear()
    assert [r.steps for r in lb.run_pipeline(value, tmp_path / "killed", quiet=True, **own)] == [3, 3]
    assert loaded == []


def _noting(function: Any, seen: list[str]) -> Any:
    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append(next(a.name for a in args if isinstance(a, Path)))
        return function(*args, **kwargs)

    return noting


def test_settings_reach_the_stages_that_take_them(shelf: Shelf, tmp_path: Path, parity: None) -> None:
    value = lb.pipelines.opd_then_rl(divergence="fkl").adjusted(grpo={"lr": 0.02, "steps": 1})
    assert value == lb.Pipeline(
        (lb.stage("opd_full", divergence="fkl"), lb.stage("grpo", ref_coef=0.0, lr=0.02, steps=1))
    )
    own = settings(shelf, group=2, clip_range=0.3)
    configs = [p.config for p in stages._plan(value, tmp_path / "p", own)]
    assert [c.arguments for c in configs] == [
        {"group": 2, "divergence": "fkl"},
        {"group": 2, "clip_range": 0.3, "ref_coef": 0.0},
    ]
    assert [(c.lr, c.steps) for c in configs] == [(0.01, 2), (0.02, 1)]


def test_what_cannot_run_is_refused_before_the_first_stage(shelf: Shelf, tmp_path: Path, parity: None) -> None:
    def refused(match: str, value: Any, **own: Any) -> None:
        with pytest.raises(lb.LimbeckError, match=match):
            lb.run_pipeline(value, tmp_path / "p", quiet=True, **settings(shelf, **own))
        assert not (tmp_path / "p").exists()

    refused("gkd reads teacher", lb.pipelines.lightning(), teacher=None)
    refused("lightning_opd reads teacher", lb.Pipeline((lb.stage("dr_grpo"), lb.stage("lightning_opd"))), teacher=None)
    refused("did you mean 'grpo'", lb.pipelines.opd_then_rl(), grp={"lr": 1})
    refused("what the stage before it left", lb.pipelines.opd_then_rl().adjusted(grpo={"student": "x"}))
    refused("name their methods", lb.pipelines.sd_zero(), method="sft")
    refused("the pipeline is 3", 3)
    with pytest.raises(lb.LimbeckError, match="no stage runs 'gpro' \\(did you mean 'grpo'\\?\\)"):
        lb.pipelines.opd_then_rl().adjusted(gpro={})
    with pytest.raises(lb.LimbeckError, match="unknown argument 'divergenz' \\(did you mean 'divergence'\\?\\)"):
        lb.pipelines.opd_then_rl(divergenz="fkl")
    with pytest.raises(lb.LimbeckError, match="iterations='two' is not a whole number"):
        lb.pipelines.sd_zero(iterations="two")  # type: ignore[arg-type]
    with pytest.raises(lb.LimbeckError, match="did you mean 'sd_zero'"):
        get_pipeline("sdzero")


def test_a_later_stage_that_the_task_does_not_serve_is_refused_first(shelf: Shelf, tmp_path: Path) -> None:
    own = settings(shelf, task=str(shelf.pretrain))
    with pytest.raises(lb.LimbeckError, match="grpo reads reward"):
        lb.run_pipeline(lb.pipelines.opd_then_rl(), tmp_path / "p", quiet=True, **own)
    assert not (tmp_path / "p").exists()


def test_other_settings_in_the_same_folder_are_refused(shelf: Shelf, tmp_path: Path, parity: None) -> None:
    value, own = lb.Pipeline((lb.stage("opd_full"),)), settings(shelf, steps=1)
    lb.run_pipeline(value, tmp_path / "p", quiet=True, **own)
    with pytest.raises(lb.LimbeckError, match="with steps=1, not 2; give the same settings"):
        lb.run_pipeline(value, tmp_path / "p", quiet=True, **{**own, "steps": 2})
    (tmp_path / "p" / "pipeline.json").write_text(json.dumps({"pipeline": "x"}))
    with pytest.raises(lb.LimbeckError, match="holds another pipeline \\(x\\)"):
        lb.run_pipeline(value, tmp_path / "p", quiet=True, **own)


def test_every_stage_reads_a_task_object_and_a_killed_stage_goes_on_with_it(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = lb.Pipeline((lb.stage("opd_full"), lb.stage("grpo")))
    out, task = tmp_path / "p", Parity()
    step = engine_run.Loop.step

    def dying(self: engine_run.Loop, n: int) -> dict[str, Any]:
        if self.method.name == "grpo" and n == 1:
            raise KeyboardInterrupt
        return step(self, n)

    with monkeypatch.context() as m:
        m.setattr(engine_run.Loop, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            lb.run_pipeline(value, out, quiet=True, **settings(shelf, task=task))
    results = lb.run_pipeline(value, out, quiet=True, **settings(shelf, task=task))
    assert [r.steps for r in results] == [2, 2]
    assert [read_run(r.out)["task"] for r in results] == ["parity", "parity"]
    with pytest.raises(lb.LimbeckError, match=r"task=.* is not a task, because it has no 'name'"):
        lb.run_pipeline(value, tmp_path / "q", quiet=True, **settings(shelf, task=object()))
