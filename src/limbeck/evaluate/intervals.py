"""Confidence intervals of a proportion, a difference of proportions, and means over seeds or problems.

Every function returns an :class:`Interval` in the unit of its input. Student's quantile is computed here because SciPy
is not a dependency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval.

    Attributes:
        mean: the estimate, in the unit of the values.
        low, high: ends of the interval, same unit; NaN if they cannot be estimated (from one seed).
        n: number of observations.
    """

    mean: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson 1927, JASA 22:209).

    Unlike the normal interval, it stays inside [0, 1] and has a positive width if ``successes`` is 0 or ``n``.

    Args:
        successes: number of the ``n`` trials that succeeded; may be fractional, if an accuracy is an average.
        n: number of independent trials; 0 gives mean NaN and the interval [0, 1].
        level: probability that the interval is meant to cover.

    Raises:
        LimbeckError: if not ``0 <= successes <= n`` or not ``0 < level < 1``.
    """
    z = _normal_quantile(level)
    if not 0 <= successes <= n:
        raise LimbeckError(f"successes is {successes}; give a number from 0 to n = {n}.")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The ends are exact if p is 0 or 1; rounding would leave 1e-18 there, and the mean outside of its interval.
    return Interval(p, 0.0 if p == 0 else max(0.0, centre - half), 1.0 if p == 1 else min(1.0, centre + half), n)


def wilson_difference(before: Interval, after: Interval) -> Interval:
    """Interval of ``after - before`` for two independent proportions (Newcombe 1998, Stat. Med. 17:873, method 10).

    If both were measured on the same problems, this interval is wider than necessary; with the verdict for each
    problem, use :func:`~limbeck.evaluate.paired_difference`.

    Args:
        before, after: Wilson intervals of the same level.

    Returns:
        The difference in [-1, 1]; ``n`` is the smaller of the two.
    """
    difference = after.mean - before.mean
    down = math.hypot(after.mean - after.low, before.high - before.mean)
    up = math.hypot(after.high - after.mean, before.mean - before.low)
    return Interval(difference, difference - down, difference + up, min(before.n, after.n))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean (Student 1908), for instance of a measure over several seeds.

    It assumes that the values are independent and roughly normal. With one value the ends are NaN;
    with no value everything is NaN.

    Raises:
        LimbeckError: if not ``0 < level < 1``.
    """
    _normal_quantile(level)
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = fmean(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = student_quantile(level, n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def ratio_interval(totals: Sequence[float], counts: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of ``sum(totals) / sum(counts)``, for instance a mean over tokens, of which every problem has several.

    The tokens of one problem are not independent of each other, so the problems are the observations (the linearised
    variance of a ratio, Cochran 1977, "Sampling Techniques", section 6.3, with Student's quantile). With counts of 1
    it is :func:`mean_interval`. With one problem the ends are NaN; if all counts are 0, everything is NaN.

    Args:
        totals: for each problem, the sum of its values.
        counts: for each problem, the number of its values.
        level: probability that the interval is meant to cover.

    Raises:
        LimbeckError: if the two differ in length, or not ``0 < level < 1``.
    """
    _normal_quantile(level)
    if len(totals) != len(counts):
        raise LimbeckError(
            f"there are {len(totals)} totals and {len(counts)} counts; give one of each for every problem."
        )
    n, whole = len(totals), math.fsum(counts)
    if not whole:
        return Interval(math.nan, math.nan, math.nan, n)
    ratio = math.fsum(totals) / whole
    if n == 1:
        return Interval(ratio, math.nan, math.nan, 1)
    aside = [total - ratio * count for total, count in zip(totals, counts, strict=True)]
    squares = math.fsum(x * x for x in aside)
    half = student_quantile(level, n - 1) * math.sqrt(n / (n - 1) * squares) / whole
    return Interval(ratio, ratio - half, ratio + half, n)


def paired_interval(before: Sequence[float], after: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of ``after[i] - before[i]``: the same seeds, or the same problems, twice.

    Raises:
        LimbeckError: if the two differ in length.
    """
    if len(before) != len(after):
        raise LimbeckError(
            f"before has {len(before)} values and after {len(after)}; give the same seeds or problems in both."
        )
    return mean_interval([b - a for a, b in zip(before, after, strict=True)], level)


def student_quantile(level: float, degrees: int) -> float:
    """The ``t`` with ``P(|T| < t) = level`` for Student's distribution with ``degrees`` degrees of freedom.

    Up to 200 degrees the finite series of Abramowitz and Stegun 26.7.3-4 is inverted by bisection; beyond, four terms
    of the expansion 26.7.5 about the normal quantile are exact to 1e-8.

    Raises:
        LimbeckError: if ``degrees < 1`` or not ``0 < level < 1``.
    """
    z = _normal_quantile(level)
    if degrees < 1:
        raise LimbeckError(f"degrees is {degrees}; give at least 1.")
    if degrees > 200:
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        )
        return z + sum(term / degrees**power for power, term in enumerate(terms, 1))
    # The angle atan(t / sqrt(degrees)) is bounded, so bisection needs no search for an upper end.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _central_mass(angle: float, degrees: int) -> float:
    """``P(|T| < sqrt(degrees) * tan(angle))`` (Abramowitz and Stegun 26.7.3 for odd, 26.7.4 for even degrees)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for i in range(degrees // 2):
        total += term
        term *= cosine * cosine * ((2 * i + 2) / (2 * i + 3) if odd else (2 * i + 1) / (2 * i + 2))
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _normal_quantile(level: float) -> float:
    """The ``z`` with ``P(|Z| < z) = level``; a level outside (0, 1) is refused."""
    if not 0 < level < 1:
        raise LimbeckError(f"level is {level}; give a number between 0 and 1, for instance 0.95.")
    return NormalDist().inv_cdf(0.5 + level / 2)
