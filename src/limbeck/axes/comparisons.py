"""The differences among the responses of one prompt that an expression takes; they vanish where there is only one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .choice import Cohort
from .expression import Const, Expr, Op, Over
from .levels import Level


def compared(of: Expr) -> Iterator[Expr]:
    """The differences in an expression that are 0 wherever a group is one sequence, the outermost first.

    Examples are a reward minus the mean of its group, a leave-one-out baseline, and the return of a turn minus the mean
    of its cohort.
    """
    for node in of.walk():
        if isinstance(node, Op) and node.name == "−" and node.args[0] != node.args[1]:
            a, b = map(_alone, node.args)
            if a == b:
                yield node


def _alone(of: Expr) -> Expr:
    """The same expression, simplified for groups of one sequence.

    A reduction over the group is then its argument (0 for a std), unless a mask may leave nothing to reduce or the
    argument has several values per sequence.
    """
    if isinstance(of, Over) and of.to == Level.GROUP and of.mask is None and of.of.level >= Level.SEQUENCE:
        return Const(0.0) if of.how == "std" else _alone(of.of)
    if isinstance(of, Cohort):
        return _alone(of.of)

    def swap(x: Any) -> Any:
        if isinstance(x, Expr):
            return _alone(x)
        return tuple(map(swap, x)) if isinstance(x, tuple) else x

    if not of.children:
        return of
    swapped: Expr = type(of)(**{name: swap(value) for name, value in vars(of).items()})
    return swapped
