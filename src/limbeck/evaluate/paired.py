"""The difference of two proportions that were measured on the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.errors import LimbeckError
from limbeck.evaluate.intervals import Interval, wilson


@dataclass(frozen=True)
class PairCounts:
    """Counts of problems that the first, the second, both or neither solved.

    Attributes:
        both, neither: problems that both solved, and that neither solved.
        first, second: problems that only the first, and only the second, solved.
    """

    both: int
    first: int
    second: int
    neither: int

    @property
    def n(self) -> int:
        """The number of problems."""
        return self.both + self.first + self.second + self.neither


def pair_counts(first: Sequence[int], second: Sequence[int]) -> PairCounts:
    """Count the problems that both, one or neither solved.

    Args:
        first, second: 1 for each problem that was solved, else 0, in the same order.

    Raises:
        LimbeckError: if the two differ in length.
    """
    if len(first) != len(second):
        raise LimbeckError(f"first has {len(first)} values and second {len(second)}; give the same problems in both.")
    pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    return PairCounts(
        pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)), pairs.count((False, False))
    )


def paired_difference(first: Sequence[int], second: Sequence[int], level: float = 0.95) -> Interval:
    """Interval of the second proportion minus the first, problem by problem (Newcombe 1998, Stat. Med. 17:2635,
    method 10).

    It combines both Wilson intervals with the correlation between the two answers, which is corrected for continuity if
    it is positive. Unlike Student's interval of the differences, it has a positive width if the two agree everywhere.

    Args:
        first, second: 1 for each problem that was solved, else 0, in the same order.
        level: probability that the interval is meant to cover.

    Returns:
        The difference in [-1, 1] on ``n`` problems; all is NaN if there are none.

    Raises:
        LimbeckError: if the two differ in length, or not ``0 < level < 1``.
    """
    count = pair_counts(first, second)
    a, b = (wilson(count.both + alone, count.n, level) for alone in (count.first, count.second))
    if not count.n:
        return Interval(math.nan, math.nan, math.nan, 0)
    phi = _correlation(count)
    difference = (count.second - count.first) / count.n
    down = _root(b.mean - b.low, a.high - a.mean, phi)
    up = _root(b.high - b.mean, a.mean - a.low, phi)
    return Interval(difference, max(-1.0, difference - down), min(1.0, difference + up), count.n)


def _correlation(count: PairCounts) -> float:
    """Phi of the four counts, with its numerator lowered by n/2 if it is positive; 0 if a margin is empty."""
    solved = (count.both + count.first, count.both + count.second)
    margins = math.prod(solved) * math.prod(count.n - x for x in solved)
    if not margins:
        return 0.0
    cross = count.both * count.neither - count.first * count.second
    return (max(cross - count.n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins)


def _root(x: float, y: float, phi: float) -> float:
    """The combined half-width of two correlated estimates."""
    return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))
