"""Runs side by side: what is paired with what, the numbers by hand, and the page."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import fake_run
import pytest
from page_tags import EVIL, Tags

from limbeck.errors import LimbeckError
from limbeck.evaluate.intervals import student_quantile
from limbeck.evaluate.paired import paired_difference
from limbeck.report.compare import (
    Comparison,
    Labelled,
    accuracy_change,
    compare_runs,
    differing,
    final,
    same_problems,
    sections,
    sentences,
)
from limbeck.report.compare_page import render_comparison, write_comparison
from limbeck.report.run_data import load_run

FIRST = [1, 1, 1, 0, 0, 0, 1, 0, 1, 0]
SECOND = [1, 1, 1, 1, 1, 0, 1, 0, 0, 1]


def run(
    folder: Path,
    correct: list[int],
    *,
    before: list[int] | None = None,
    seed: int = 7,
    digest: str = "same",
    **own: Any,
) -> Labelled:
    """A run whose last evaluation has these verdicts; ``own`` are fields of ``run.json`` (``config`` is merged)."""
    record = copy.deepcopy(fake_run.RUN)
    record |= {"seed": seed, "inputs": {"data": {"task": {"digest": digest, "test": 500}}}}
    record["config"] |= {"seed": seed, "eval_size": len(correct)} | own.pop("config", {})
    record |= own
    rows = [
        {"step": step, "accuracy": sum(c) / len(c), "n": len(c), "correct": c, "kl_reverse": 0.5, "length": 20.0}
        for step, c in ((0, before or [0] * len(correct)), (8, correct))
    ]
    written = fake_run.write(folder, record, fake_run.metrics(8), rows)
    return Labelled(folder.name, load_run(written))


def test_two_runs_are_paired_by_problem(tmp_path: Path) -> None:
    found = compare_runs([run(tmp_path / "a", FIRST), run(tmp_path / "b", SECOND)])
    (difference,) = found.differences
    assert (difference.first, difference.second, difference.paired_by) == ("a", "b", "problem")
    assert difference.interval == paired_difference(FIRST, SECOND)
    assert difference.interval.mean == pytest.approx(0.2)  # 7 of 10 less 5 of 10
    assert not found.notes
    (sentence,) = sentences(found)
    assert sentence.startswith("b minus a: +20.0 [")
    assert sentence.endswith(
        "points accuracy, paired by 10 problems; the interval contains zero, so this may be chance."
    )


def test_a_sure_difference_is_not_called_chance(tmp_path: Path) -> None:
    """Wilson's limits of 0/30 and 30/30 are 3.8415 / 33.8415 = 0.1135 away: 1 - 0.1135 * sqrt(2) = 0.839."""
    found = compare_runs([run(tmp_path / "a", [0] * 30), run(tmp_path / "b", [1] * 30)])
    assert sentences(found) == ["b minus a: +100.0 [+83.9, +100.0] points accuracy, paired by 30 problems."]


def test_the_first_problems_are_paired_where_one_was_asked_more(tmp_path: Path) -> None:
    found = compare_runs([run(tmp_path / "a", FIRST), run(tmp_path / "b", SECOND[:6])])
    assert found.differences[0].interval == paired_difference(FIRST[:6], SECOND[:6])
    assert found.notes == ("b and a were evaluated on 6 and 10 problems; they are paired on the first 6.",)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"digest": "other"}, "their data differs (a generated task has other problems with another seed)"),
        ({"inputs": {}}, "one of them does not record which data it used"),
        ({"task": "chain_sum"}, "their tasks are arithmetic and chain_sum"),
        ({"config": {"eval_size": 20}}, "one of them left out problems that were too long, without recording which"),
    ],
)
def test_why_two_runs_are_not_paired(tmp_path: Path, own: dict[str, Any], why: str) -> None:
    found = compare_runs([run(tmp_path / "a", FIRST), run(tmp_path / "b", SECOND, **own)])
    assert not found.differences
    assert f"b and a are not paired by problem: {why}." in found.notes


def test_verdicts_that_are_not_stored(tmp_path: Path) -> None:
    a = run(tmp_path / "a", FIRST)
    b = Labelled("b", load_run(fake_run.write(tmp_path / "b", a.data.run, evaluations=fake_run.evaluations(8))))
    c = Labelled("c", load_run(fake_run.write(tmp_path / "c", a.data.run)))
    assert same_problems(a.data, b.data)[1] == "one of them stored no verdict for each problem"
    assert same_problems(a.data, c.data)[1] == "one of them has no evaluation after training"
    assert "c has no evaluation after training, so its held-out numbers are missing." in compare_runs([a, c]).notes


def test_runs_of_different_tasks_get_a_note(tmp_path: Path) -> None:
    found = compare_runs([run(tmp_path / "a", FIRST), run(tmp_path / "b", SECOND, task="chain_sum")])
    words = "The runs have different tasks (arithmetic, chain_sum), so their numbers are for different problems."
    assert words in found.notes
    assert len(found.runs) == 2


def test_methods_are_paired_by_seed(tmp_path: Path) -> None:
    """Accuracies .5, .6, .7 and .7, .7, 1: differences .2, .1, .3 of mean .2 and deviation .1."""
    runs = [
        run(tmp_path / f"{name}{seed}", [1] * right + [0] * (10 - right), seed=seed, digest=str(seed), method=name)
        for name, rights in (("kdrl", (5, 6, 7)), ("gkd", (7, 7, 10)))
        for seed, right in enumerate(rights)
    ]
    found = compare_runs(runs)
    by_seed = [d for d in found.differences if d.paired_by == "seed"]
    (difference,) = by_seed
    half = student_quantile(0.95, 2) * 0.1 / math.sqrt(3)  # 4.3027 * 0.1 / 1.7321
    assert half == pytest.approx(0.24841, abs=1e-5)
    interval = difference.interval
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert difference.second == "gkd (gkd0, gkd1, gkd2)"
    assert [label for label, _ in found.spreads] == ["kdrl (kdrl0, kdrl1, kdrl2)", "gkd (gkd0, gkd1, gkd2)"]
    assert found.spreads[0][1].mean == pytest.approx(0.6)


def test_one_seed_in_common_is_too_few(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"k{s}", FIRST, seed=s) for s in (0, 1)]
    found = compare_runs([*runs, run(tmp_path / "g1", SECOND, seed=1, method="gkd")])
    words = "gkd (g1) and kdrl (k0, k1) are not paired by seed: they have 1 seed in common, and two are needed."
    assert words in found.notes


def test_another_metric_is_not_paired_by_problem(tmp_path: Path) -> None:
    found = compare_runs([run(tmp_path / "a", FIRST), run(tmp_path / "b", SECOND)], "kl_reverse")
    assert found.notes == (
        "kl_reverse is not paired by problem, because a run stores only the verdict for each problem.",
    )


def test_settings_that_differ(tmp_path: Path) -> None:
    a = run(tmp_path / "a", FIRST, config={"lr": 1e-4, "arguments": {"coef": 1}, "same": [1]})
    b = run(tmp_path / "b", FIRST, seed=9, config={"lr": 2e-4, "arguments": {"gate": "all"}, "same": [1]})
    rows = dict(differing([a, b]))
    assert rows == {"lr": [1e-4, 2e-4], "coef": [1, None], "gate": [None, "all"]}


def test_the_best_comes_first(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", FIRST), run(tmp_path / "b", SECOND), run(tmp_path / "c", [0] * 10)]
    assert [r.label for r in compare_runs(runs, ordered=True).runs] == ["b", "a", "c"]
    assert [r.label for r in compare_runs(runs).runs] == ["a", "b", "c"]
    assert compare_runs(runs, ordered=True).differences[0].first == "a"


def test_numbers_of_one_run(tmp_path: Path) -> None:
    data = run(tmp_path / "a", SECOND, before=FIRST).data
    assert accuracy_change(data) == paired_difference(FIRST, SECOND)
    assert final(data, "loss") == data.metrics[-1]["loss"]
    assert final(data, "tokens_written") == 8 * 2000
    old = load_run(fake_run.whole(tmp_path / "old"))
    assert accuracy_change(old).mean == pytest.approx((160 - 32) / 256)  # type: ignore[union-attr]


def test_the_table_has_a_cell_for_every_run(tmp_path: Path) -> None:
    found = compare_runs([run(tmp_path / "a", FIRST), run(tmp_path / "b", SECOND)])
    made = dict(sections(found))
    assert all(len(cells) == 2 for rows in made.values() for _, cells in rows)
    assert dict(made["held-out, after training"])["accuracy after"] == ["50.0% [23.7, 76.3]", "70.0% [39.7, 89.2]"]
    assert dict(made["cost"])["tokens written"] == ["16,000", "16,000"]


def test_too_few_runs_and_an_unknown_metric(tmp_path: Path) -> None:
    a = run(tmp_path / "a", FIRST)
    with pytest.raises(LimbeckError, match="compare needs at least two runs"):
        compare_runs([a])
    with pytest.raises(LimbeckError, match=r"--metric acuracy: there is no such metric \(did you mean 'accuracy'"):
        compare_runs([a, a], "acuracy")


# ---------------------------------------------------------------- the page


def _many(tmp_path: Path, n: int) -> Comparison:
    return compare_runs([run(tmp_path / f"r{i}", SECOND, title=f"T{i}") for i in range(n)])


def test_the_page_shows_every_run_in_every_chart(tmp_path: Path) -> None:
    text = render_comparison(_many(tmp_path, 8))
    page = Tags(text)
    assert page.names.count("svg") > 5
    assert "script" not in page.names
    assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    for i in range(8):
        assert f"r{i}" in page.text
    assert "paired by 10 problems" in page.text


def test_nothing_from_a_run_acts_in_the_page(tmp_path: Path) -> None:
    a = run(tmp_path / "a", FIRST, title=EVIL, task=EVIL, method=EVIL)
    b = Labelled(EVIL, run(tmp_path / "b", SECOND, config={"x": EVIL}).data)
    names = Tags(render_comparison(compare_runs([a, b]))).names
    assert not {"script", "img"} & set(names)


def test_runs_that_recorded_nothing_have_a_page(tmp_path: Path) -> None:
    runs = [Labelled(name, load_run(fake_run.write(tmp_path / name, {}))) for name in ("a", "b")]
    target = tmp_path / "c.html"
    write_comparison(compare_runs(runs), target)
    assert "there is nothing to draw" in Tags(target.read_text()).text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c.html"]
