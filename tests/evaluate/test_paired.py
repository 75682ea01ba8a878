"""The paired difference of two proportions, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from limbeck.errors import LimbeckError
from limbeck.evaluate import PairCounts, pair_counts, paired_difference, wilson


def answers(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    """Two lists of verdicts with these counts."""
    a = [1] * both + [1] * first + [0] * second + [0] * neither
    b = [1] * both + [0] * first + [1] * second + [0] * neither
    return a, b


def test_the_four_counts() -> None:
    assert pair_counts([1, 1, 0, 0, 1], [1, 0, 1, 0, 1]) == PairCounts(both=2, first=1, second=1, neither=1)


def test_the_interval_by_hand() -> None:
    """20, 2, 12, 16 of 50: Wilson's limits of 22/50 and 32/50, and phi = (320 - 24 - 25) / sqrt(22 28 32 18)."""
    found = paired_difference(*answers(20, 2, 12, 16))
    assert found.n == 50
    assert found.mean == pytest.approx(0.2)
    low_a, high_a, low_b, high_b = 0.311643, 0.576886, 0.501423, 0.758603  # of 22/50 and 32/50, by hand
    assert (wilson(22, 50).low, wilson(22, 50).high) == pytest.approx((low_a, high_a), abs=1e-4)
    assert (wilson(32, 50).low, wilson(32, 50).high) == pytest.approx((low_b, high_b), abs=1e-4)
    phi = 271 / math.sqrt(22 * 28 * 32 * 18)
    x, y = 0.64 - low_b, high_a - 0.44
    assert found.low == pytest.approx(0.2 - math.sqrt(x * x - 2 * phi * x * y + y * y), abs=1e-4)
    assert (found.low, found.high) == pytest.approx((0.0562, 0.3292), abs=1e-4)


def test_without_a_problem_that_neither_solved() -> None:
    """36, 2, 12, 0 of 50: the correlation is negative, and is not corrected."""
    found = paired_difference(*answers(36, 2, 12, 0))
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)


def test_it_turns_round_with_its_arguments() -> None:
    a, b = answers(7, 5, 2, 6)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))


def test_full_agreement_has_a_width() -> None:
    found = paired_difference([1, 0] * 5, [1, 0] * 5)
    assert found.mean == 0
    assert found.low < -0.05
    assert found.high > 0.05


def test_a_sure_difference_stays_inside() -> None:
    found = paired_difference([0] * 4, [1] * 4)
    assert found.mean == found.high == 1
    assert -1 <= found.low < 1


def test_nothing_is_known_of_no_problem() -> None:
    assert math.isnan(paired_difference([], []).mean)


def test_lists_of_two_lengths() -> None:
    with pytest.raises(LimbeckError, match="first has 2 values and second 1"):
        paired_difference([1, 0], [1])
