"""Intervals against tables, against identities, and by counting how often they cover."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.evaluate import (
    mean_interval,
    paired_interval,
    ratio_interval,
    student_quantile,
    wilson,
    wilson_difference,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998 (Stat. Med. 17:857), table I, method 3: the score interval without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_table(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_newcombes_difference_equals_the_published_table() -> None:
    # Newcombe 1998 (Stat. Med. 17:873), table II, method 10: 56/70 - 48/80 and 9/10 - 3/10.
    difference = wilson_difference(wilson(48, 80), wilson(56, 70))
    assert (round(difference.low, 4), round(difference.high, 4)) == (0.0524, 0.3339)
    difference = wilson_difference(wilson(3, 10), wilson(9, 10))
    assert (round(difference.low, 4), round(difference.high, 4)) == (0.1705, 0.8090)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_symmetric_holds_its_mean_and_solves_the_score_equation(case: tuple[int, int]) -> None:
    c, n = case
    interval, mirrored = wilson(c, n), wilson(n - c, n)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    for end in (interval.low, interval.high):
        # At an end, the estimate lies exactly z standard errors away, with the error taken *at the end*.
        assert (c / n - end) ** 2 * n == pytest.approx(1.959963984540054**2 * end * (1 - end), abs=1e-9)


def test_wilson_without_trials_knows_nothing() -> None:
    interval = wilson(0, 0)
    assert (interval.low, interval.high) == (0, 1)
    assert math.isnan(interval.mean)


@pytest.mark.parametrize("successes", [-1, 6])
def test_wilson_refuses_impossible_counts(successes: int) -> None:
    with pytest.raises(LimbeckError, match="successes"):
        wilson(successes, 5)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_levels_are_probabilities(level: float) -> None:
    for call in (lambda: wilson(1, 2, level), lambda: mean_interval([1.0], level)):
        with pytest.raises(LimbeckError, match=r"0\.95"):
            call()


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # Two-sided 95%: any table of Student's t.
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (120, 1.9799), (1000, 1.9623)],
)
def test_student_quantile_equals_the_table(degrees: int, expected: float) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("degrees", [1, 2, 7, 200, 201, 5000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_student_quantile_equals_scipys(degrees: int, level: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student_quantile(level, degrees) == pytest.approx(stats.t.ppf(0.5 + level / 2, degrees), abs=1e-8)


def test_student_quantile_is_continuous_where_the_formula_changes() -> None:
    inside, edge, beyond = (student_quantile(0.99, degrees) for degrees in (199, 200, 201))
    assert (inside - edge) == pytest.approx(edge - beyond, rel=0.03)


def test_mean_interval_by_hand() -> None:
    # Values 1..5: mean 3, s = sqrt(2.5), t(4) = 2.7764.
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert interval.high - 3 == pytest.approx(2.776445 * math.sqrt(2.5 / 5), abs=1e-5)
    assert interval.low + interval.high == pytest.approx(6)


def test_one_seed_has_no_interval() -> None:
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert mean_interval([]).n == 0


def test_pairing_removes_what_both_share() -> None:
    before, after = [1.0, 5.0, 9.0], [2.0, 6.1, 9.9]
    interval = paired_interval(before, after)
    assert interval.mean == pytest.approx(1.0)
    assert interval == mean_interval([a - b for a, b in zip(after, before, strict=True)])
    with pytest.raises(LimbeckError, match="same seeds or problems"):
        paired_interval([1.0], [1.0, 2.0])


def test_the_mean_interval_has_its_nominal_coverage() -> None:
    dice = random.Random(0)
    hits = 0
    for _ in range(2000):
        interval = mean_interval([dice.gauss(3, 2) for _ in range(4)], 0.9)
        hits += interval.low <= 3 <= interval.high
    assert 0.88 < hits / 2000 < 0.92


def test_a_ratio_with_counts_of_one_is_a_mean() -> None:
    values = [0.1, 0.7, 0.3, 0.2]
    one, other = ratio_interval(values, [1] * 4), mean_interval(values)
    assert (one.mean, one.low, one.high, one.n) == pytest.approx((other.mean, other.low, other.high, 4))


def test_a_ratio_counts_problems_and_not_tokens() -> None:
    # Every problem twice as long with the same tokens: as many problems, so the same interval.
    totals, counts = [3.0, 1.0, 8.0], [2, 1, 5]
    once = ratio_interval(totals, counts)
    assert once.mean == pytest.approx(12 / 8)
    assert ratio_interval([2 * x for x in totals], [2 * x for x in counts]) == once
    # By hand: residuals 0, -0.5, 0.5; s^2 = 3/2 * 0.5; t(2) = 4.30265.
    assert once.high - once.mean == pytest.approx(4.30265 * math.sqrt(0.75) / 8, abs=1e-5)


def test_a_ratio_without_a_spread_says_so() -> None:
    assert math.isnan(ratio_interval([3.0], [2]).low)
    assert math.isnan(ratio_interval([], []).mean)
    assert math.isnan(ratio_interval([0.0, 0.0], [0, 0]).mean)
    assert math.isnan(ratio_interval([math.inf, 1.0], [1, 1]).low)
    with pytest.raises(LimbeckError, match="one of each"):
        ratio_interval([1.0], [1, 2])


def test_the_ratio_interval_has_its_nominal_coverage() -> None:
    """Tokens of one problem share an offset, which an interval over tokens would not see."""
    dice = random.Random(0)
    hits = 0
    for _ in range(1500):
        counts = [dice.randint(5, 40) for _ in range(25)]
        totals = [count * (3 + dice.gauss(0, 2)) for count in counts]
        interval = ratio_interval(totals, counts, 0.9)
        hits += interval.low <= 3 <= interval.high
    assert 0.86 < hits / 1500 < 0.93
