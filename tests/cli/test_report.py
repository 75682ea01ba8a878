"""``limbeck report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stub_engine import Run

from report import fake_run


def test_a_run_that_was_stopped_has_a_report(limbeck_: Run, tmp_path: Path) -> None:
    run = fake_run.write(tmp_path / "run", metrics=fake_run.metrics(7), evaluations=fake_run.evaluations(7))
    result = limbeck_("report", str(run))
    assert result.exit_code == 0, result.stderr
    assert "tokens written" in result.stdout
    assert (run / "report.html").stat().st_size > 10_000
    printed = json.loads(limbeck_("report", str(run), "--json").stdout)
    assert (printed["steps"], printed["report"]) == (7, str(run / "report.html"))
    assert set(printed["after"]) >= {"accuracy"}


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_run_is_refused(name: str, limbeck_: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = limbeck_("report", str(tmp_path / name))
    assert result.exit_code == 2
    assert "is not a run folder (it has no run.json)" in result.stderr
    assert result.stderr.count("\n") == 1
