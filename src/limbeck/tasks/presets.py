"""Named tasks: a reasoning-gym data set with fixed options and written-out solutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .gym import GymTask


def two_digit_sums(
    *,
    train_size: int = 12_000,
    test_size: int = 500,
    seed: int = 0,
    name: str = "two_digit_sums",
    reveal: bool = False,
) -> GymTask:
    """Sums and differences of two two-digit numbers, the task of the embedded teacher and student.

    The data set is ``chain_sum`` with two terms of two digits: 16,200 distinct questions such as ``45 - 67 =``. Its
    demonstrations calculate column by column, see :func:`column_working`.

    Args:
        train_size, test_size, seed, reveal: as in :class:`~limbeck.tasks.gym.GymTask`.
        name: of the task in reports.
    """
    return GymTask(
        "chain_sum",
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name=name,
        demonstrate=_demonstrate,
        reveal=reveal,
        min_terms=2,
        max_terms=2,
        min_digits=2,
        max_digits=2,
    )


PRESETS = {"two_digit_sums": two_digit_sums}


def column_working(left: int, sign: str, right: int) -> str:
    """Two-digit addition or subtraction, units first with the carry or the borrow, then the tagged answer.

    >>> column_working(45, "+", 67)
    '5+7=12,4+6+1=11<answer>112</answer>'
    >>> column_working(45, "-", 67)
    '67-45:7-5=2,6-4-0=2<answer>-22</answer>'

    A difference begins with the subtraction in the order larger minus smaller.
    """
    if sign == "+":
        units = left % 10 + right % 10
        carry = units // 10
        tens = left // 10 + right // 10 + carry
        working = f"{left % 10}+{right % 10}={units},{left // 10}+{right // 10}+{carry}={tens}"
        return f"{working}<answer>{left + right}</answer>"
    high, low = max(left, right), min(left, right)
    borrow = int(high % 10 < low % 10)
    units = high % 10 - low % 10 + 10 * borrow
    tens = high // 10 - low // 10 - borrow
    working = f"{high % 10 + 10 * borrow}-{low % 10}={units},{high // 10}-{low // 10}-{borrow}={tens}"
    return f"{high}-{low}:{working}<answer>{left - right}</answer>"


def _demonstrate(item: Mapping[str, Any]) -> str:
    left, sign, right = item["metadata"]["expression"].split()
    return column_working(int(left), sign, int(right))
