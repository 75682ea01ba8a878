"""The session: one object for what a run works with, and one for what changes while it runs."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from tiny_runs import Parity, Shelf, go, open_run

from limbeck.engine import distill
from limbeck.engine.models import loading
from limbeck.errors import LimbeckError


def test_only_its_state_changes(shelf: Shelf, out: Path) -> None:
    session = open_run(shelf, "grpo", out, task=Parity(), max_tokens=3, generate_batch=5).session
    assert (session.config.max_tokens, session.config.generate_batch, session.renderer.room) == (3, 5, 3)
    with pytest.raises(FrozenInstanceError):
        session.tasks = {}  # type: ignore[misc]


def test_a_step_counts_its_own_failures_and_an_evaluation_counts_none_of_them(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Parity()
    run = open_run(shelf, "grpo", out, task=task, eval_size=2)
    verify, calls = Parity.verify, []

    def failing(self: Parity, prompt: object, text: str) -> object:
        calls.append(text)
        if len(calls) % 2:
            raise ValueError("no verdict")
        return verify(self, prompt, text)  # type: ignore[arg-type]

    monkeypatch.setattr(Parity, "verify", failing)
    first = run.loop.step(0)["verifier_failed"]
    reasons = list(run.session.state.unjudged)
    assert len(reasons) == first > 0
    assert run.evaluator.measure()["verifier_failed"] == 1
    assert run.session.state.unjudged == reasons
    assert run.loop.step(1)["verifier_failed"] == len(run.session.state.unjudged) == first


def test_a_missing_teacher_is_refused_before_the_student_is_loaded(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(LimbeckError, match=r"teacher='\./nowhere': there is no such folder"):
        go(shelf, "kdrl", out, teacher="./nowhere")
    assert not out.exists()


def test_a_taken_folder_is_refused_before_the_task_is_read(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir()
    (out / "thesis.tex").touch()
    monkeypatch.setattr("limbeck.engine.build.load_task", lambda *a, **k: pytest.fail("a task was read"))
    with pytest.raises(LimbeckError, match="holds other things than a run; name a new one"):
        distill("sft", str(shelf.student), task=str(shelf.verified), out=out, quiet=True)
