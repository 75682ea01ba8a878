"""Pipelines: a stage starts from the student before it, and a stopped pipeline goes on in its stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import limbeck as lb
from limbeck.engine import run as engine_run
from limbeck.engine.storage.run_log import read_run

SETTINGS = {"teacher": "embedded", "steps": 2, "prompts": 2, "max_tokens": 8, "eval_size": 4, "save_every": 1}
PIPELINE = lb.Pipeline((lb.stage("opd", group=2), lb.stage("grpo", ref_coef=0.0, group=2)))


def weights(folder: Path) -> dict:
    """The student a stage left."""
    return load_file(folder / "student" / "model.safetensors")


def test_a_stage_starts_where_the_one_before_ended(tmp_path: Path) -> None:
    first, second = lb.run_pipeline(PIPELINE, tmp_path / "p", quiet=True, **SETTINGS)
    assert read_run(second.out)["student"] == str(first.student)
    assert second.before is not None
    assert first.after is not None
    # Greedy text on the same held-out problems: what one stage ends with, the next begins with.
    assert second.before["correct"] == first.after["correct"]
    assert second.before["kl_reverse"] == pytest.approx(first.after["kl_reverse"], abs=1e-6)


def test_a_killed_pipeline_goes_on_in_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = lb.run_pipeline(PIPELINE, tmp_path / "straight", quiet=True, **SETTINGS)
    step, calls = engine_run.Loop.step, []

    def dying(self: engine_run.Loop, n: int) -> dict:
        calls.append(n)
        if len(calls) == 4:  # the second step of the second stage
            raise KeyboardInterrupt
        return step(self, n)

    monkeypatch.setattr(engine_run.Loop, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        lb.run_pipeline(PIPELINE, tmp_path / "killed", quiet=True, **SETTINGS)
    again = lb.run_pipeline(PIPELINE, tmp_path / "killed", quiet=True, **SETTINGS)
    assert calls == [0, 1, 0, 1, 1]
    for a, b in zip(straight, again, strict=True):
        mine, theirs = weights(a.out), weights(b.out)
        assert all((mine[name] == theirs[name]).all() for name in mine)


def test_wrong_stages_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(lb.LimbeckError, match="did you mean 'grpo'"):
        lb.Pipeline((lb.stage("opd"), lb.stage("grop")))
    with pytest.raises(lb.LimbeckError, match="at least one stage"):
        lb.Pipeline(())
    with pytest.raises(lb.LimbeckError, match="unknown setting 'coeff'"):
        lb.run_pipeline(
            lb.Pipeline((lb.stage("opd"), lb.stage("kdrl", coeff=1))), tmp_path / "p", quiet=True, **SETTINGS
        )
    assert not (tmp_path / "p").exists()


def test_another_pipeline_in_the_folder_is_refused(tmp_path: Path) -> None:
    short = {**SETTINGS, "steps": 1, "eval_size": 0}
    lb.run_pipeline(lb.Pipeline((lb.stage("opd"),)), tmp_path / "p", quiet=True, **short)
    with pytest.raises(lb.LimbeckError, match="holds another pipeline"):
        lb.run_pipeline(PIPELINE, tmp_path / "p", quiet=True, **short)
