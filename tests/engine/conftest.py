"""Tiny random models and data, made once a session; the report is left out of runs unless a test asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import Shelf, make_shelf

from limbeck.engine import run as engine_run

REPORT = engine_run._Run._report


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return make_shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(autouse=True)
def _no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report takes longer than these runs, and has tests of its own."""
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr(engine_run._Run, "_report", lambda self: None)


@pytest.fixture
def with_report() -> None:
    """Ask for it to have the report written."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"
