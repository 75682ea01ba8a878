"""Expressions over scores of readers and fields of a record: signals, weights, masks, gates and bases are all ``Expr``.

Expressions are frozen and compared by structure, and nothing here carries gradient. Arithmetic, comparisons (``<``,
``>=`` ...) and ``& | ~`` build expressions. ``==`` compares the structure of two expressions; ``.eq()`` builds one. The
named leaves and compositions are in ``signal``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import LimbeckError, expect, number, shown
from ..lazy_torch import Tensor, torch
from ..math.divergence import Divergence
from ..math.statistic import Statistic, Support
from .context import Context
from .levels import HOWS, Level, Levels, as_level
from .reader import Blend, Reader, TargetReader
from .scalar import Scalar

Need = tuple[Reader, str]
"""A reader and an ability that it must have: ``text`` to write; ``sampled``, ``topk``, ``at`` (the student's most
likely tokens) or ``dense`` to score."""


class EvalContext(Protocol):
    """The batch on which an expression is evaluated: all of it, without the student as it is now."""

    levels: Levels
    step: int
    memory: dict[str, float]

    def remember(self, name: str, update: Callable[[float | None], float | None]) -> float | None:
        """A number in the run's memory, updated once per batch; None where it is not known yet."""
        ...

    def read(
        self, reader: Reader, statistic: Statistic, target: TargetReader | None, support: Support | None = None
    ) -> Tensor:
        """A statistic of a reader at every scored token, ``[N]``."""
        ...


@dataclass(frozen=True)
class Expr:
    """An expression with one value per unit of ``level``."""

    # ---- structure
    @property
    def level(self) -> Level:
        """The unit for which it has one value."""
        raise NotImplementedError

    @property
    def children(self) -> tuple[Expr, ...]:
        """The expressions that it is computed from."""
        return ()

    def walk(self) -> Iterator[Expr]:
        """This expression and, recursively, the expressions that it is computed from."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def scope(self) -> Level:
        """The widest level over which this node itself combines values."""
        return Level.TOKEN

    @property
    def live_scope(self) -> Level:
        """The widest level over which it combines values of the student as it is now."""
        return max((node.scope for node in self.walk() if node.live), default=Level.TOKEN)

    @property
    def live(self) -> bool:
        """Whether it reads the student as it is now; the value is detached all the same."""
        return any(c.live for c in self.children)

    def own_needs(self) -> frozenset[Need]:
        """The readers that this node itself reads, with the ability that each must have."""
        return frozenset()

    @property
    def needs(self) -> frozenset[Need]:
        """The needs of all its nodes."""
        return frozenset(need for node in self.walk() for need in node.own_needs())

    @property
    def own_fields(self) -> frozenset[str]:
        """Record fields that this node itself reads."""
        return frozenset()

    def own_contexts(self) -> frozenset[Context]:
        """Contexts whose evidence this node itself tests for."""
        return frozenset()

    @property
    def contexts(self) -> frozenset[Context]:
        """Contexts whose evidence it tests for."""
        return frozenset(c for node in self.walk() for c in node.own_contexts())

    @property
    def fields(self) -> frozenset[str]:
        """Record fields that it reads."""
        return frozenset(name for node in self.walk() for name in node.own_fields)

    def evaluate(self, batch: EvalContext) -> Tensor:
        """``[size(level)]`` values on a whole batch."""
        raise NotImplementedError

    @property
    def own_values(self) -> frozenset[tuple[str, str]]:
        """The given values that this node itself takes, as (kind, name).

        ``role``: the scores of a reader, by its key; ``sampled``: its log-probs of the scored tokens; ``field``: a
        number per sequence; ``token``: a number per token.
        """
        return frozenset()

    def used(self, units: Tensor, batch: EvalContext) -> Iterator[tuple[Expr, Tensor]]:
        """Each child with the units of its level whose values can change the given units of this node.

        An element-wise node uses a child wherever it is used itself. A node that reduces, looks ahead or chooses
        overrides this.

        Args:
            units: bool ``[size(level)]``.
            batch: for masks, which are evaluated.
        """
        for child in self.children:
            yield child, batch.levels.touched(units, self.level, child.level)

    def __bool__(self) -> bool:
        # Python's "and", "or", "not" and "0 < x < 1" convert to a bool, which would silently drop half of it.
        raise LimbeckError(
            f"{self} cannot be used as one Python bool; combine masks with &, | and ~, and write (x > 0) & (x < 1)."
        )

    # ---- arithmetic
    def __add__(self, x: Expr | Scalar | float) -> Expr:
        return op("+", self, x)

    def __radd__(self, x: Scalar | float) -> Expr:
        return op("+", x, self)

    def __sub__(self, x: Expr | Scalar | float) -> Expr:
        return op("−", self, x)

    def __rsub__(self, x: Scalar | float) -> Expr:
        return op("−", x, self)

    def __mul__(self, x: Expr | Scalar | float) -> Expr:
        return op("·", self, x)

    def __rmul__(self, x: Scalar | float) -> Expr:
        return op("·", x, self)

    def __truediv__(self, x: Expr | Scalar | float) -> Expr:
        return op("/", self, x)

    def __rtruediv__(self, x: Scalar | float) -> Expr:
        return op("/", x, self)

    def __neg__(self) -> Expr:
        return op("neg", self)

    def __gt__(self, x: Expr | Scalar | float) -> Expr:
        return op(">", self, x)

    def __ge__(self, x: Expr | Scalar | float) -> Expr:
        return op("≥", self, x)

    def __lt__(self, x: Expr | Scalar | float) -> Expr:
        return op("<", self, x)

    def __le__(self, x: Expr | Scalar | float) -> Expr:
        return op("≤", self, x)

    def eq(self, x: Expr | Scalar | float) -> Expr:
        """A mask that is true where the values are equal."""
        return op("=", self, x)

    def __and__(self, x: Expr) -> Expr:
        return op("∧", self, x)

    def __or__(self, x: Expr) -> Expr:
        return op("∨", self, x)

    def __invert__(self) -> Expr:
        return op("¬", self)

    def exp(self) -> Expr:
        """e to the power of the value. For a ratio of policies use ``importance``, which bounds its logarithm."""
        return op("exp", self)

    def log(self) -> Expr:
        """Natural logarithm."""
        return op("log", self)

    def sigmoid(self) -> Expr:
        """1 / (1 + e^-x)."""
        return op("σ", self)

    def __abs__(self) -> Expr:
        return op("abs", self)

    def clip(self, lo: float | None = None, hi: float | None = None) -> Expr:
        """The value clamped to ``lo`` and ``hi`` (None: no bound on that side)."""
        return Clip(self, lo, hi)

    # ---- levels
    def over(self, level: Level | str, how: str, where: Expr | None = None, empty: bool = False) -> Expr:
        """A reduction to one value per unit of ``level``; a reduction of nothing is 0.

        Units without a kept token are left out, as in every denominator; ``empty`` counts them.

        Raises:
            LimbeckError: for an unknown level or reduction, or a level that is finer than the expression's.
        """
        return Over(self, as_level(level), how, where, empty)

    @property
    def total(self) -> Expr:
        """The sum over the sequence."""
        return self.over(Level.SEQUENCE, "sum")

    @property
    def mean(self) -> Expr:
        """The mean over the group."""
        return self.over(Level.GROUP, "mean")


ExprLike = Expr | Scalar | float | bool


def expr(x: ExprLike) -> Expr:
    """A number, schedule or controller as an expression; an ``Expr`` is returned as it is.

    Raises:
        LimbeckError: for anything else.
    """
    if isinstance(x, Expr):
        return x
    if isinstance(x, Reader):
        raise LimbeckError(f"{x} is a reader, not a number per token; write logp({x}) or entropy({x}).")
    if not isinstance(x, bool | Scalar):
        number("a value in an expression", x)
    return Scheduled(x) if isinstance(x, Scalar) else Const(float(x))


# ---------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Const(Expr):
    """A number."""

    value: float

    @property
    def level(self) -> Level:
        return Level.BATCH

    def evaluate(self, batch: EvalContext) -> Tensor:
        reward = batch.levels.record.reward_U
        return torch.full((1,), self.value, dtype=reward.dtype, device=reward.device)

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Scheduled(Expr):
    """A schedule of the step, or a controller at its present value."""

    scalar: Scalar

    @property
    def level(self) -> Level:
        return Level.BATCH

    def evaluate(self, batch: EvalContext) -> Tensor:
        return Const(self.scalar.now(batch.step, batch.memory)).evaluate(batch)

    def __str__(self) -> str:
        return f"({self.scalar})"


# ---------------------------------------------------------------- nodes


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask.bool(), a, b)


_LOGICAL = ("∧", "∨", "¬", "where", ">", "≥", "<", "≤", "=")


def as_numbers(x: Tensor) -> Tensor:
    """Masks and whole numbers as floating-point numbers, so that a sum of masks is a count and nothing overflows."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


_OPS: dict[str, Callable[..., Tensor]] = {
    "+": lambda a, b: a + b,
    "−": lambda a, b: a - b,
    "·": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "neg": lambda a: -a,
    ">": lambda a, b: a > b,
    "≥": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "≤": lambda a, b: a <= b,
    "=": lambda a, b: a == b,
    "∧": lambda a, b: a.bool() & b.bool(),
    "∨": lambda a, b: a.bool() | b.bool(),
    "¬": lambda a: ~a.bool(),
    "exp": lambda a: a.exp(),
    "log": lambda a: a.log(),
    "σ": lambda a: a.sigmoid(),
    "abs": lambda a: a.abs(),
    "where": _where,
}
_PREFIX = {"neg": "−", "¬": "¬", "exp": "exp", "log": "log", "σ": "σ", "abs": "abs"}


def _standardised(x: Expr) -> str:
    """The short name of (x − mean) / (std + eps) or of x − mean; empty for any other expression."""
    match x:
        case Op("/", (Op("−", (_, Over(how="mean"))) as centred, Op("+", (Over(how="std"), _)))):
            return _standardised(centred).replace("centre", "standardise", 1)
        case Op("−", (of, Over(of=inner, how="mean") as mean)) if inner == of:
            return f"centre_{mean.to}({of}{'' if mean.mask is None else f' where {mean.mask}'})"
    return ""


@dataclass(frozen=True)
class Op(Expr):
    """An element-wise operation; arguments of coarser levels are broadcast to the finest."""

    name: str
    args: tuple[Expr, ...]

    @property
    def level(self) -> Level:
        return min(a.level for a in self.args)

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.args

    def combine(self, values: list[Tensor]) -> Tensor:
        """The operation on values of one level."""
        operands = values if self.name in _LOGICAL else [as_numbers(x) for x in values]
        return _OPS[self.name](*operands)

    def evaluate(self, batch: EvalContext) -> Tensor:
        down = batch.levels.down
        return self.combine([down(a.evaluate(batch), a.level, self.level) for a in self.args])

    def used(self, units: Tensor, batch: EvalContext) -> Iterator[tuple[Expr, Tensor]]:
        if self.name != "where" or self.args[0].live:
            yield from super().used(units, batch)
            return
        mask, a, b = self.args
        holds = batch.levels.down(mask.evaluate(batch), mask.level, self.level).bool()
        for child, chosen in ((mask, units), (a, units & holds), (b, units & ~holds)):
            yield child, batch.levels.touched(chosen, self.level, child.level)

    def __str__(self) -> str:
        if self.name in _PREFIX:
            return f"{_PREFIX[self.name]}({self.args[0]})"
        pattern = _standardised(self)
        if pattern:
            return pattern
        if self.name == "where":
            return f"[{self.args[0]} ? {self.args[1]} : {self.args[2]}]"
        return f"({self.args[0]} {self.name} {self.args[1]})"


def op(name: str, *args: ExprLike) -> Expr:
    """An operation of the table above on expressions and numbers."""
    return Op(name, tuple(expr(a) for a in args))


@dataclass(frozen=True)
class Clip(Expr):
    """A value clamped to bounds."""

    of: Expr
    lo: float | None
    hi: float | None

    def __post_init__(self) -> None:
        for bound in (self.lo, self.hi):
            if bound is not None:
                number("a bound of clip", bound, ends=True)
        if self.lo is None and self.hi is None:
            raise LimbeckError("clip() has no bound; give lo, hi or both.")
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise LimbeckError(f"clip({self.lo:g}, {self.hi:g}): lo is above hi; give the smaller bound first.")

    @property
    def level(self) -> Level:
        return self.of.level

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.of,)

    def combine(self, values: list[Tensor]) -> Tensor:
        """The clip on values of one level."""
        return as_numbers(values[0]).clamp(self.lo, self.hi)

    def evaluate(self, batch: EvalContext) -> Tensor:
        return self.combine([self.of.evaluate(batch)])

    def __str__(self) -> str:
        return f"clip({self.of}, {self.lo}, {self.hi})"


@dataclass(frozen=True)
class Slope(Expr):
    """``f'(1) − f'(u)`` with ``u = exp(log_u)``: the policy-gradient advantage of a divergence at a sampled token."""

    divergence: Divergence
    log_u: Expr

    @property
    def level(self) -> Level:
        return self.log_u.level

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.log_u,)

    def combine(self, values: list[Tensor]) -> Tensor:
        """The slope on values of one level."""
        return self.divergence.advantage(values[0])

    def evaluate(self, batch: EvalContext) -> Tensor:
        return self.combine([self.log_u.evaluate(batch)])

    def __str__(self) -> str:
        return f"−{self.divergence.label}′({self.log_u})"


@dataclass(frozen=True)
class Over(Expr):
    """A reduction to a coarser level."""

    of: Expr
    to: Level
    how: str
    mask: Expr | None
    empty: bool

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise LimbeckError(f"over(..., how={self.how!r}): unknown reduction; use one of {', '.join(HOWS)}.")
        if self.mask is not None:
            expect("the mask of over", self.mask, Expr, "give a comparison or a mask such as correct")
        if self.to < self.of.level:
            raise LimbeckError(
                f"over({self.to}): {self.of} has one value per {self.of.level}, which is coarser; leave the call out, "
                "because values of coarser levels are broadcast."
            )

    @property
    def level(self) -> Level:
        return self.to

    @property
    def scope(self) -> Level:
        return self.to

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.of,) if self.mask is None else (self.of, self.mask)

    def evaluate(self, batch: EvalContext) -> Tensor:
        values = self.of.evaluate(batch)
        mask = None
        if self.mask is not None:
            mask = batch.levels.down(self.mask.evaluate(batch), self.mask.level, self.of.level).bool()
        return batch.levels.up(values, self.of.level, self.to, self.how, mask, self.empty)

    def used(self, units: Tensor, batch: EvalContext) -> Iterator[tuple[Expr, Tensor]]:
        # A statistic of the batch is read by the other processes as well.
        units = torch.ones_like(units) if self.to == Level.BATCH else units
        inside = batch.levels.down(units, self.to, self.of.level)
        if self.mask is not None:
            yield self.mask, batch.levels.touched(inside, self.of.level, self.mask.level)
            if not self.mask.live:
                inside = inside & batch.levels.down(self.mask.evaluate(batch), self.mask.level, self.of.level).bool()
        yield self.of, inside

    def __str__(self) -> str:
        condition = "" if self.mask is None else f" where {self.mask}"
        return f"{self.how}_{self.to}({self.of}{condition}{', empty ones too' if self.empty else ''})"


@dataclass(frozen=True)
class ToGo(Expr):
    """The discounted sum over the rest of the sequence, per token, or per turn where the signal has one value per turn.

    ``average`` divides by the number of tokens left (MiniLLM).
    """

    of: Expr
    gamma: float
    strict: bool
    average: bool

    def __post_init__(self) -> None:
        expect("what to_go sums", self.of, Expr, "give an expression such as log_ratio(teacher)")
        if not isinstance(self.gamma, int | float) or not 0 <= self.gamma <= 1:
            raise LimbeckError(
                f"to_go(gamma={shown(self.gamma)}): a discount lies between 0 and 1; 0 ignores the future."
            )

    @property
    def level(self) -> Level:
        return Level.TURN if self.of.level == Level.TURN else Level.TOKEN

    @property
    def scope(self) -> Level:
        return Level.SEQUENCE

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.of,)

    def evaluate(self, batch: EvalContext) -> Tensor:
        levels = batch.levels
        if self.level == Level.TURN:
            return levels.to_go(as_numbers(self.of.evaluate(batch)), self.gamma, self.strict, Level.TURN)
        of_N = levels.down(as_numbers(self.of.evaluate(batch)), self.of.level, Level.TOKEN)
        rest = levels.to_go(of_N, self.gamma, self.strict)
        if not self.average:
            return rest
        left = levels.record.length_B[levels.record.seq_N] - levels.position() + 1
        return rest / left

    def used(self, units: Tensor, batch: EvalContext) -> Iterator[tuple[Expr, Tensor]]:
        whole = batch.levels.touched(units, self.level, Level.SEQUENCE)
        yield self.of, batch.levels.touched(whole, Level.SEQUENCE, self.of.level)

    def __str__(self) -> str:
        return (
            f"to_go({self.of}, γ={self.gamma:g}{', mean' if self.average else ''}{', strict' if self.strict else ''})"
        )


# ---------------------------------------------------------------- rewriting and evaluating expressions


def replace_reader(of: Expr, was: Reader, now: Reader) -> Expr:
    """The same expression with one reader replaced by another; temperatures are kept."""

    def swap(x: Any) -> Any:
        if isinstance(x, Reader):
            return now.at(x.tau) if x.key == was.key else x
        if isinstance(x, Blend):
            return Blend(tuple((swap(reader), weight) for reader, weight in x.parts), x.space)
        if isinstance(x, tuple):
            return tuple(swap(item) for item in x)
        if isinstance(x, Expr):
            return type(x)(**{name: swap(value) for name, value in vars(x).items()})
        return x

    swapped: Expr = swap(of)
    return swapped


def evaluate_rows(of: Expr, known: Callable[[Expr], Tensor | None]) -> Tensor:
    """An expression of the student as it is now, on some tokens; ``known`` gives its leaves and detached parts."""
    value = known(of)
    if value is not None:
        return value
    if not isinstance(of, Op | Clip | Slope):
        raise LimbeckError(
            f"{of} looks at a whole {of.scope} of the student as it is now, which a micro-batch does not hold; use old "
            "instead of student."
        )
    return of.combine([evaluate_rows(child, known) for child in of.children])
