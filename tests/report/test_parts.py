"""Heat map, words, costs, the terminal's table and the README picture."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import fake_run
import numpy as np
import pytest
from rich.console import Console

from limbeck.errors import LimbeckError
from limbeck.report import RunData, charts, load_run, picture, summary_table
from limbeck.report.charts import POINTS, series
from limbeck.report.headline import comparison
from limbeck.report.numbers import format_change, format_number, format_seconds
from limbeck.report.page import commands, costs, spent_sentence
from limbeck.report.token_heatmap import SHOWN, heat


def test_heat_is_shared_by_all_samples_and_grows_with_the_root() -> None:
    result = heat([{"tokens": ["a", "b"], "kl": [0.0, 0.25]}, {"tokens": ["c"], "kl": [1.0]}])
    assert result.top == 1.0
    assert [t.heat for s in result.samples for t in s.tokens] == [0.0, 0.5, 1.0]
    assert [t.text for t in result.samples[0].worst] == ["b"]


def test_one_outlier_does_not_fade_the_rest() -> None:
    assert heat([{"tokens": ["a"] * 100, "kl": [0.5] * 99 + [50.0]}]).top == 0.5
    assert heat([{"tokens": ["a"] * 2, "kl": [0.001, 0.0]}]).top == 0.1  # agreement is not blown up into heat


def test_missing_divergence_is_the_distance_of_log_probs() -> None:
    row = {
        "tokens": list("abc"),
        "kl": [None, 0.3],
        "student_logp": [-1.0, -9.0, -2.0],
        "teacher_logp": [-3.0, -1.0, None],
    }
    tokens = heat([row]).samples[0].tokens
    assert [t.value for t in tokens[:2]] == [2.0, 0.3]
    assert tokens[2].heat is None
    assert "student 36.8%" in tokens[0].hint
    assert "teacher 5.0%" in tokens[0].hint


def test_without_a_teacher_the_shade_is_entropy() -> None:
    result = heat([{"tokens": ["a", "b"], "teacher_logp": [None, None], "entropy": [0.0, 2.0]}])
    assert "entropy" in result.what
    assert result.samples[0].tokens[1].heat == 1.0
    assert heat([{"tokens": ["a"]}]).what == ""


def test_invisible_tokens_are_shown_by_a_sign() -> None:
    tokens = heat([{"tokens": ["\n", "", "\x00", "<b>"], "kl": [0, 0, 0, 0]}]).samples[0].tokens
    assert [t.text for t in tokens] == ["↵\n", "·", "␀", "<b>"]


def test_a_long_rollout_is_cut_and_says_so() -> None:
    sample = heat([{"tokens": ["a"] * (SHOWN + 3), "kl": [0.1] * SHOWN + [0.1, 0.1, 9.0]}]).samples[0]
    assert (len(sample.tokens), sample.hidden) == (SHOWN, 3)
    assert sample.worst[0].position == SHOWN + 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (None, "–"),
        (1.23456, "1.23"),
        (-0.01234, "-0.0123"),
        (1234.5, "1,234"),
        (1e-7, "1.00e-07"),
        (2e7, "2.00e+07"),
    ],
)
def test_numbers_are_shown_with_few_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (7.44, "7.4 s"),
        (59.97, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.9, "1 h 00 min"),
        (18125, "5 h 02 min"),
    ],
)
def test_durations_are_short_texts(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_changes_are_written_with_their_sign() -> None:
    assert [format_change(1, 3), format_change(3, 1), format_change(2, 2), format_change(None, 1)] == [
        "+2.00",
        "−2.00",
        "0",
        "–",
    ]


def test_costs_add_up() -> None:
    spent = {"seconds": 10.0, "seconds_write": 6.0, "seconds_train": 3.0, "tokens_written": 600}
    run = {"started": "2026-01-01T00:00:00", "finished": "2026-01-01T00:00:20"}
    rows = {row[0].split(" ")[0]: row[1:] for row in costs(RunData(run=run, spent=spent))}
    assert rows == {
        "write": ("6.0 s", "30%", "600", "100"),
        "train": ("3.0 s", "15%", "–", "–"),
        "rest": ("1.0 s", "5%", "–", "–"),
        "outside": ("10.0 s", "50%", "–", "–"),
        "all": ("20.0 s", "100%", "–", "–"),
    }
    # Of a resumed run `started` may be the second start: the steps then outlast the clock, and shares stay below 1.
    later = RunData(run={**run, "started": "2026-01-01T00:00:15"}, spent=spent)
    assert costs(later)[0][2] == "60%"
    assert costs(RunData(run={})) == []


def test_long_series_are_averaged_in_bins() -> None:
    rows = [{"step": i, "loss": 2.0 * i} for i in range(POINTS * 3 + 7)]
    x, y = series(rows, "loss")
    assert len(x) == POINTS
    np.testing.assert_allclose(y, 2 * x)
    assert series([{"step": 1, "loss": math.nan}], "loss")[0].size == 0


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(load_run(fake_run.whole(tmp_path, steps=8))))
    text = console.export_text()
    for cell in ("12.5% [9.0, 17.1]", "62.5% [56.4, 68.2]", "+50.0 points", "KL reverse, nats", "9 min 10 s", "16,000"):
        assert cell in text
    console.print(summary_table(RunData(run={"title": "[bold]x"})))
    assert "[bold]x" in console.export_text()


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures_are_written(tmp_path: Path, ending: str) -> None:
    folder = fake_run.whole(tmp_path / "run", steps=30)
    target = tmp_path / f"picture.{ending}"
    assert picture(folder, target) == target
    assert target.read_bytes()[:5] == {"svg": b"<?xml", "png": b"\x89PNG\r"}[ending]
    data = load_run(folder)
    picture([data, dataclasses.replace(data, metrics=())], target, names=["one", "two"])
    picture(RunData(run={}), target, narrow=True)
    picture([data, data], target, narrow=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [target.name, "run"]


def test_pictures_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    for runs, name, names, message in (
        (RunData(run={}), "a.gif", None, "ends in one of"),
        ([], "a.svg", None, "at least one run"),
        (RunData(run={}), "a.svg", ["x", "y"], "names has 2"),
        (tmp_path, "a.svg", None, "not a run folder"),
    ):
        with pytest.raises(LimbeckError, match=message):
            picture(runs, tmp_path / name, names)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_tells_the_steps_in_force_and_how_it_went_on(tmp_path: Path) -> None:
    folder = fake_run.whole(tmp_path, steps=8)
    record = json.loads((folder / "run.json").read_text())
    again = [{"command": f"limbeck train --resume runs/x --steps {n}", "step": 4} for n in (30, 40)]
    (folder / "run.json").write_text(json.dumps({**record, "config": {"steps": 40}, "resumed": again}))
    data = load_run(folder)
    assert commands(data) == [record["command"], *(row["command"] for row in again)]
    assert spent_sentence(data).startswith("8 of 40 steps, ")
    # The hours that it lay still are not its cost.
    assert data.wall_seconds is None
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(data))
    text = console.export_text()
    assert "KDRL, 8 of 40 steps" in text
    assert "resumed: limbeck train --resume runs/x --steps 40" in text
    assert "9 min 10 s" not in text


def test_an_accuracy_stands_beside_its_number_of_problems() -> None:
    row = {"step": 0, "accuracy": 0.5, "n": 12}
    assert [r[:2] for r in comparison(RunData(run={}, evaluations=(row,)))] == [("accuracy", "95%, n = 12")]
    assert comparison(RunData(run={}, evaluations=({"step": 0, "accuracy": 0.5},)))[0][1] == "95%"


def test_turns_are_separated_and_odd_records_of_turns_are_ignored() -> None:
    row = {"tokens": ["a", "b", "c"], "kl": [0, 0, 0], "turn": [1, 2, 2], "said": ["<b> now"], "rewards": [0.5, 1.0]}
    tokens = heat([row]).samples[0].tokens
    assert [t.between for t in tokens] == ["", "turn 2, reward 0.500: <b> now", ""]
    for odd in (
        {"turn": "x"},
        {"said": 3},
        {"turn": [1, None, None]},
        {"said": []},
        {"rewards": "x"},
        {"turn": [1, 9, 9]},
    ):
        heat([{**row, **odd}])


def test_measures_by_turn_are_drawn(tmp_path: Path) -> None:
    rows = [{"step": s, "n": 2, "accuracy": 0.5, "kl_reverse_by_turn": [0.1, 0.2, s / 9]} for s in (0, 4)]
    data = load_run(fake_run.write(tmp_path / "run", evaluations=rows))
    (figure,) = charts.turn_charts(data)
    assert figure.title == "KL between student and teacher, by turn"
    assert "before" in figure.svg
    assert "after" in figure.svg
    for odd in ([], [1.0], "x", [None, None], [float("nan"), "y"]):
        strange = load_run(fake_run.write(tmp_path / "odd", evaluations=[{**rows[0], "entropy_by_turn": odd}, rows[1]]))
        charts.turn_charts(strange)
