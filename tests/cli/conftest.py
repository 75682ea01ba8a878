"""The command line, called as a user calls it, in an empty folder, with an engine that only takes notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stub_engine import MEASURED, Notes, Run
from typer.testing import CliRunner, Result

import limbeck.engine
from limbeck.cli.app import app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LIMBECK_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def notes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Notes:
    made = Notes()

    def result(out: Path, steps: int) -> limbeck.engine.Result:
        after = {**MEASURED, "accuracy": 0.75, "low": 0.69, "high": 0.8, "kl_reverse": 0.3}
        return limbeck.engine.Result(out, MEASURED, after, steps, out / "report.html", out / "student")

    def train(config: Any, out: Path, **kwargs: Any) -> limbeck.engine.Result:
        made.take("train", (config, out), kwargs)
        return result(out, config.steps)

    def resume(out: Path, **kwargs: Any) -> limbeck.engine.Result:
        made.take("resume", (out,), kwargs)
        return result(out, kwargs["steps"] or 7)

    def evaluate(student: str, **kwargs: Any) -> dict[str, Any]:
        made.take("evaluate", (student,), kwargs)
        return {**MEASURED, "entropy": 0.5, "length": 21.25, "pass_at": {1: 0.25, 4: 0.5}}

    for stub in (train, resume, evaluate):
        monkeypatch.setattr(limbeck.engine, stub.__name__, stub)
    return made


@pytest.fixture
def limbeck_(folder: Path) -> Run:
    """Call the command line; the terminal has 200 columns, so that no sentence is wrapped."""

    def call(*words: str, **environment: str) -> Result:
        env = {"COLUMNS": "200", "TERM": "dumb", **environment}
        return CliRunner().invoke(app, list(words), env=env)

    return call


@pytest.fixture
def run_folder(folder: Path) -> Path:
    """The folder of a stopped KDRL run."""
    out = folder / "old"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"method": "kdrl", "command": "limbeck train kdrl"}))
    return out
