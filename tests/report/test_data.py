"""Reading run folders that were killed, resumed or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import fake_run
import pytest

from limbeck.errors import LimbeckError
from limbeck.report import load_run
from limbeck.report.run_data import accuracy_interval, finite_number


def test_a_whole_run_is_read_back(tmp_path: Path) -> None:
    data = load_run(fake_run.whole(tmp_path, steps=20))
    assert (data.steps, len(data.evaluations), len(data.samples), data.broken) == (20, 5, 10, 0)
    assert data.before is not None
    assert data.after is not None
    assert (data.before["step"], data.after["step"]) == (0, 20)
    assert data.wall_seconds == 550
    assert data.spent["seconds"] == 80
    assert data.spent["tokens_read"] == 42_000
    assert data.name == "KDRL"


def test_a_truncated_line_is_left_out_wherever_it_stands(tmp_path: Path) -> None:
    folder = fake_run.whole(tmp_path, steps=3)
    path = folder / "metrics.jsonl"
    # Killed inside the third line, then resumed: the next line starts behind the torn one.
    path.write_text(path.read_text()[:-30] + '\n{"step": 4, "loss": 1.0}\n[1]\n{"step": 5, "lo')
    data = load_run(folder)
    assert [row["step"] for row in data.metrics] == [1, 2, 4]
    assert data.broken == 3


def test_a_torn_character_is_no_error(tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path)
    (folder / "samples.jsonl").write_bytes('{"prompt": "ok"}\n{"prompt": "é'.encode()[:-1])
    assert len(load_run(folder).samples) == 1


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path)
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert load_run(folder).samples == ({"prompt": "a\u2028b\x85c"},)


def test_a_step_done_twice_is_shown_once_and_paid_twice(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": loss, "seconds": 1.0} for s, loss in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 2.0), (3, 3.0))]
    data = load_run(fake_run.write(tmp_path, metrics=rows))
    assert [row["loss"] for row in data.metrics] == [0.1, 2.0, 3.0]
    assert data.spent == {"seconds": 5.0}


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LimbeckError, match="not a run folder") as caught:
            load_run(folder)
        assert "\n" not in str(caught.value)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(LimbeckError, match="not a JSON object"):
        load_run(tmp_path)


def test_only_finite_numbers_are_numbers() -> None:
    row = {"a": 1, "b": math.nan, "c": None, "d": "3", "e": math.inf}
    assert [finite_number(row, key) for key in "abcdef"] == [1.0, None, None, None, None, None]
    assert finite_number(None, "a") is None


def test_accuracies_get_intervals_where_possible() -> None:
    interval = accuracy_interval({"accuracy": 0.25, "n": 4})
    assert interval is not None
    assert (interval.mean, interval.n) == (0.25, 4)
    assert interval.low < 0.25 < interval.high
    alone = accuracy_interval({"accuracy": 0.25})
    assert alone is not None
    assert math.isnan(alone.low)
    assert accuracy_interval({"accuracy": math.nan, "n": 4}) is None
    assert accuracy_interval({"accuracy": 1.5, "n": 4}) is None
