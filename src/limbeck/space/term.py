"""Terms: the addends of an objective, and weighted sums of terms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..axes.expression import Expr, Need, replace_reader
from ..axes.leaves import On
from ..axes.levels import Level
from ..axes.policy_gradient import reinforce
from ..axes.reader import Blend, Reader, TargetReader
from ..axes.reduction import PERS, Reduction
from ..axes.scalar import Constant, Scalar, product, scalar
from ..axes.signal import everywhere
from ..axes.surrogate import Surrogate
from ..errors import LimbeckError, expect, nearest, shown

REDUCTION = "give one such as token_mean, or as_reduction('token_mean')"


@dataclass(frozen=True)
class Term:
    """One addend of an objective.

    Attributes:
        signal: one value per unit (an Expr), or the target distribution (a reader).
        surrogate: the loss that takes the signal.
        where: a mask of the units that count; the others are left out before any arithmetic.
        weight: multiplies the losses; it is not part of the denominator unless ``per="weight"``.
        per: the units that the denominator counts, ``kept``, ``all`` or ``weight``.
        reduction: how units are summed; None takes the method's.
    """

    signal: Expr | TargetReader
    surrogate: Surrogate
    where: Expr = everywhere
    weight: Expr = everywhere
    per: str = "kept"
    reduction: Reduction | None = None

    def __post_init__(self) -> None:
        expect(
            "the signal of a term",
            self.signal,
            (Expr, Reader, Blend),
            "give an Expr such as group_advantage(), or a reader",
        )
        expect("the surrogate of a term", self.surrogate, Surrogate, "give one such as clip(0.2) or reinforce")
        expect("where of a term", self.where, Expr, "give a mask such as correct or entropy(old) > 1")
        expect("weight of a term", self.weight, Expr, "give an Expr, or multiply the whole term: 2.0 * Term(...)")
        if self.reduction is not None:
            expect("the reduction of a term", self.reduction, Reduction, REDUCTION)

    def __add__(self, other: Term | Sum) -> Sum:
        return as_sum(self) + other

    def __radd__(self, zero: Literal[0]) -> Sum:
        """``sum`` of terms starts from 0."""
        return _from_zero(zero, self)

    def __mul__(self, c: Scalar | float | str) -> Sum:
        return as_sum(self) * c

    __rmul__ = __mul__

    @property
    def needs(self) -> frozenset[Need]:
        """The readers that it needs, with the ability that it reads from each."""
        own = self.signal.needs if isinstance(self.signal, Expr) else frozenset()
        return own | self.surrogate.needs(self.signal) | self.where.needs | self.weight.needs

    @property
    def exprs(self) -> tuple[Expr, ...]:
        """Its expressions: signal, mask, weight and base."""
        parts = (self.signal, self.where, self.weight, self.surrogate.base)
        return tuple(v for v in parts if isinstance(v, Expr))

    @property
    def named_sources(self) -> set[str]:
        """The names of the sources that it selects with ``on``."""
        return {node.source for v in self.exprs for node in v.walk() if isinstance(node, On)}

    def with_reader(self, was: Reader, now: Reader) -> Term:
        """The same term with one reader replaced by another."""
        signal = replace_reader(self.signal, was, now) if isinstance(self.signal, Expr) else self.signal
        return replace(
            self,
            signal=signal,
            surrogate=self.surrogate.with_reader(was, now),
            where=replace_reader(self.where, was, now),
            weight=replace_reader(self.weight, was, now),
        )

    def check(self, reduction: Reduction) -> None:
        """Raise LimbeckError where the term cannot be computed; ``reduction`` is the method's."""
        self.surrogate.check(self.signal)
        if self.per not in PERS:
            raise LimbeckError(f"per={self.per!r}: unknown{nearest(self.per, PERS)}; use one of {', '.join(PERS)}.")
        (self.reduction or reduction).refuse_finer_than(self.surrogate.loss_level)
        self._check_live()

    def _check_live(self) -> None:
        """Raise LimbeckError where a value that must be known beforehand reads the student as it is now."""
        if self.per == "weight" and self.weight.live:
            raise LimbeckError(
                f"per='weight' divides by the sum of {self.weight}, which reads the student as it is now; use old "
                "instead of student."
            )
        if self.where.live:
            raise LimbeckError(
                f"where={self.where} reads the student as it is now, but the number of kept tokens must be known "
                "before that; use old instead of student."
            )
        loss_level, signal_level = self.surrogate.loss_level, self.surrogate.signal_level
        if loss_level != Level.TOKEN and (self.weight.live or self.weight.level < loss_level):
            raise LimbeckError(
                f"weight={self.weight} must have one value per {loss_level} or coarser and not read the student as it "
                f"is now, because {self.surrogate} gives one loss per {loss_level}; reduce it with "
                f".over('{loss_level}', 'mean') and use old."
            )
        if signal_level != Level.TOKEN and isinstance(self.signal, Expr) and self.signal.live:
            raise LimbeckError(
                f"{self.surrogate} takes one value per {signal_level}, but {self.signal} reads the student as it is "
                "now; use old instead of student."
            )
        for v in self.exprs:
            if v.live_scope > Level.TOKEN:
                raise LimbeckError(
                    f"{v} looks at a whole {v.live_scope} of the student as it is now, which a micro-batch does not "
                    "hold; use old instead of student."
                )

    def __str__(self) -> str:
        extra = [] if self.where == everywhere else [f"where {self.where}"]
        extra += [] if self.weight == everywhere else [f"weight {self.weight}"]
        extra += [] if self.per == "kept" else [f"per {self.per}"]
        if self.signal == everywhere and self.surrogate == reinforce:
            return f"nll[{', '.join(extra)}]" if extra else "nll"
        return f"{self.surrogate}[{', '.join([str(self.signal), *extra])}]"


def nll(where: Expr = everywhere, weight: Expr = everywhere, reduction: Reduction | None = None) -> Term:
    """Negative log-likelihood of the kept tokens: ``reinforce`` with the signal 1."""
    return Term(everywhere, reinforce, where, weight, reduction=reduction)


@dataclass(frozen=True)
class Sum:
    """Terms with their coefficients. A constant coefficient of 0 removes a term and its needs."""

    parts: tuple[tuple[Scalar, Term], ...]

    def __post_init__(self) -> None:
        expect("the parts of a sum", self.parts, tuple, "give ((coefficient, term), ...), or add terms with +")
        for part in self.parts:
            expect("a part of a sum", part, tuple, "give (coefficient, term), or add terms with +")
            coefficient, term = part
            expect("a coefficient of a sum", coefficient, Scalar, "write 0.5 * Term(...), or scalar(0.5) here")
            expect("a term of a sum", term, Term, "give Term(signal, surrogate)")

    def __add__(self, other: Term | Sum) -> Sum:
        return Sum(self.parts + as_sum(other).parts)

    def __radd__(self, zero: Literal[0]) -> Sum:
        return _from_zero(zero, self)

    def __mul__(self, c: Scalar | float | str) -> Sum:
        scaled = tuple((product(c, own), term) for own, term in self.parts)
        return Sum(tuple((s, term) for s, term in scaled if not s.is_zero))

    __rmul__ = __mul__

    def __str__(self) -> str:
        return " + ".join(f"{t}" if c == Constant(1.0) else f"{c} · {t}" for c, t in self.parts)


def _from_zero(zero: object, x: Term | Sum) -> Sum:
    if zero != 0:
        raise LimbeckError(f"{shown(zero)} + {x}: terms are added to terms only; multiply one by a number instead.")
    return as_sum(x)


def as_sum(x: Term | Sum) -> Sum:
    """A sum of one term, with coefficient 1; a sum stays as it is."""
    return x if isinstance(x, Sum) else Sum(((scalar(1.0), x),))


def routed(mask: Expr, a: Term, b: Term) -> Sum:
    """``a`` where the mask is true and ``b`` elsewhere, each divided by the number of all units (``per="all"``).

    ``routed(z, t, t)`` is the same objective as ``replace(t, per="all")``, which is t itself where t keeps every unit.
    A mask of ``a`` or ``b`` stays in force.

    Raises:
        LimbeckError: for ``per="weight"``, whose denominator would change its meaning, and for a mask that cuts units
            which the surrogate looks at as a whole.
    """
    expect("the mask of routed", mask, Expr, "give a mask such as correct")
    for term in (a, b):
        expect("a route", term, Term, "give one Term each")
        scope = term.surrogate.scope
        if term.per == "weight":
            raise LimbeckError(
                f"routed: {term} divides by its weights, but a route divides by all units; use per='kept'."
            )
        if mask.level < scope:
            raise LimbeckError(
                f"routed: {mask} has one value per {mask.level}, but {term.surrogate} looks at a whole {scope}; the "
                f"mask would cut it, so reduce it with .over('{scope}', 'any')."
            )
    return replace(a, where=_and(a.where, mask), per="all") + replace(b, where=_and(b.where, ~mask), per="all")


def _and(a: Expr, b: Expr) -> Expr:
    return b if a == everywhere else a & b
