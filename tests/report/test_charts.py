"""What the charts say: units, intervals, whose numbers they are, what never moved, and names that try to act."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fake_run
import pytest

from limbeck.report import RunData, charts, load_run, picture, render_report
from limbeck.report.headline import comparison
from limbeck.report.plotting import Key
from limbeck.report.run_data import interval_of

EVIL = "[/b] <script> $x$ _"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load_run(fake_run.whole(tmp_path_factory.mktemp("run")))


_drawn: list[tuple[RunData, list[charts.Figured]]] = []


def figured(data: RunData, title: str) -> charts.Figured:
    """One chart of a run, which is drawn once."""
    if not any(of is data for of, _ in _drawn):
        _drawn.append((data, charts.curves(data)))
    drawn = next(drawn for of, drawn in _drawn if of is data)
    return next(chart for chart in drawn if chart.title == title)


def labels(data: RunData, title: str) -> list[str]:
    return [key.label for key in figured(data, title).keys]


def rows(**values: list[float]) -> tuple[dict[str, Any], ...]:
    """One row for each step."""
    return tuple({"step": i, **{k: v[i] for k, v in values.items()}} for i in range(len(next(iter(values.values())))))


def ticks(chart: charts.Figured) -> list[float]:
    """The numbers at the axis of values."""
    axis = chart.svg[chart.svg.index("matplotlib.axis_2") :]
    return [float(x.replace("−", "-")) for x in re.findall(r">([−\d.]+)</text>", axis)]


def test_sampled_and_greedy_numbers_have_different_labels(data: RunData) -> None:
    assert labels(data, "Accuracy") == [
        "training, sampled",
        "held-out, greedy, 95% interval",
        "teacher, 75.0%",
    ]
    assert "not trained on" in figured(data, "Accuracy").note


def test_evaluations_carry_their_intervals(data: RunData) -> None:
    assert labels(data, "Entropy of the student") == ["training, sampled", "held-out, greedy, 95% interval"]
    assert "reverse, held-out, greedy, 95% interval" in labels(data, "KL between student and teacher")
    assert labels(data, "Length of a response")[1] == "held-out, greedy"  # an old run has no interval of it
    table = {name: cells for name, _, *cells in comparison(data, spread=True)}
    assert table["KL reverse"] == ["0.600 [0.550, 0.650]", "0.200 [0.150, 0.250]", "−0.400"]
    assert table["reward"][0] == "0.225"


@pytest.mark.parametrize("odd", [None, "x", [1], [2, 3], [None, 1], [float("nan"), 1.0], {"low": 0}])
def test_an_odd_interval_is_none(odd: object) -> None:
    row = {"step": 0, "n": 4, "entropy": 0.5, "entropy_interval": odd}
    assert interval_of(row, "entropy") is None
    render_report(RunData(run={}, evaluations=(row, {**row, "step": 1, "entropy": 0.6})))


def test_every_measure_has_a_unit(data: RunData) -> None:
    assert {name: unit for name, unit, *_ in comparison(data)} == {
        "accuracy": "95%, n = 256",
        "KL reverse": "nats per token",
        "KL forward": "nats per token",
        "reward": "per response",
        "entropy": "nats per token",
        "length": "tokens",
        "perplexity": "per token",
    }


def test_a_series_that_never_moves_is_a_sentence_and_no_picture() -> None:
    still = RunData(
        run={},
        metrics=rows(reward=[0, 0, 0], kl_reverse=[0, 0, 0], truncated=[1, 1, 1], ended=[0, 0, 0], loss=[1, 2, 3]),
    )
    assert [chart.title for chart in charts.curves(still)] == ["Loss"]
    assert charts.flat(still) == [
        "Reward (mean reward per response) was 0 throughout.",
        "KL between student and teacher (nats per token) was 0 throughout (reverse).",
        "How responses end (share of responses): cut at the limit was 1.00, ended with an end token was 0 throughout.",
    ]
    assert "Reward (mean reward per response) was 0 throughout." in render_report(still)
    # One step is no history, and held-out values that differ from the training's are a picture.
    assert charts.flat(RunData(run={}, metrics=rows(reward=[0]))) == []
    other = RunData(run={}, metrics=rows(reward=[0, 0]), evaluations=({"step": 0, "reward": 1},))
    assert charts.flat(other) == []


@pytest.mark.parametrize("values", [[5.0, 5.1, 5.05], [0.98, 1.0, 0.99], [-5.0, -5.1, -5.2], [-0.1, 0.1, 0.2]])
@pytest.mark.parametrize("key", ["reward", "loss", "kl_reverse", "length", "grad_norm", "entropy"])
def test_no_axis_begins_off_zero(key: str, values: list[float]) -> None:
    (chart,) = charts.curves(RunData(run={}, metrics=rows(**{key: values})))
    seen = ticks(chart)
    assert min(seen) <= 0 <= max(seen)
    if min(values) >= 0:
        assert min(seen) == 0


def test_terms_have_their_names_and_a_share_of_the_gradient(data: RunData) -> None:
    names = [f"{key}: {words}" for key, words in fake_run.RUN["terms"].items()]
    assert labels(data, "Gradient by term") == labels(data, "Loss by term") == names
    assert "but its gradient is not 0" in figured(data, "Loss by term").note
    assert labels(data, "Coefficients") == names[:1]
    unnamed = RunData(run={}, metrics=tuple({**row} for row in data.metrics[:3]))
    assert labels(unnamed, "Loss by term") == ["term 1", "term 2"]


def test_signal_and_endings_are_drawn() -> None:
    run = RunData(run={}, metrics=rows(groups_with_signal=[0.0, 0.5], truncated=[0.1, 0.2], ended=[0.9, 0.8]))
    assert [chart.title for chart in charts.curves(run)] == ["Groups with a signal", "How responses end"]


def test_before_is_seen_where_it_equals_after() -> None:
    row = {"step": 0, "entropy_by_turn": [0.5, 0.5]}
    (chart,) = charts.turn_charts(RunData(run={}, evaluations=(row, {**row, "step": 9})))
    assert chart.keys == (Key("before", "square", "#7f7f7f"), Key("after", "line", "#0072b2"))
    before, after = (re.findall(rf'<use [^>]*x="([\d.]+)"[^>]*{mark}', chart.svg) for mark in ("grey", "line-0"))
    assert len(before) == len(after) == 2
    assert not set(before) & set(after)


def test_notices_are_at_the_top_of_the_page(data: RunData) -> None:
    text = render_report(data)
    top = text[text.index("<main>") : text.index("What was run")]
    assert "earned the same reward (first at step 3, seen in 7 steps)." in top
    assert "Without --student, the student is &#39;tiny&#39;." in top
    assert "The teacher solves 75.0% (95% interval 69.4 to 79.9) on 256 problems." in top
    for odd in (None, "x", {}, [None, 3, [], {"sentence": None}, {"steps": "x"}]):
        render_report(RunData(run={"notices": odd, "warnings": odd, "terms": odd, "teacher_accuracy": odd}))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = {**fake_run.RUN, "terms": {"1": EVIL, "2": EVIL}, "notices": [EVIL], "warnings": [{"sentence": EVIL}]}
    data = load_run(fake_run.write(tmp_path / "run", run, fake_run.metrics(9), fake_run.evaluations(9)))
    assert labels(data, "Loss by term") == [f"1: {EVIL}", f"2: {EVIL}"]
    text = render_report(data)
    assert "<script> $x$" not in text
    assert "[/b] &lt;script&gt; $x$ _" in text
    svg = picture([data, data], tmp_path / "a.svg", names=[EVIL, f"_{EVIL}"]).read_text()
    assert "<script>" not in svg
    picture(data, tmp_path / "a.png", names=["a\nb\x00\t"])
