"""Vec: what each unit is told, and where it counts. One detached type for signals, weights, masks, gates and bases.

A Vec is an expression over what readers report and what a record holds. Values are frozen and compared by structure;
nothing here carries gradient. Arithmetic, comparisons (``<``, ``>=`` ...) and ``& | ~`` build expressions; ``==``
compares structure, ``.eq()`` builds one. The named leaves and compositions are in ``signal``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import LimbeckError, expect, number, shown
from ..math.divergence import Divergence
from ..math.statistic import Statistic, Support
from .context import Context
from .levels import HOWS, Ladder, Rung, as_rung
from .reader import Blend, Law, Reader
from .scalar import Scalar

Need = tuple[Reader, str]
"""(reader, ability): ``sampled``, ``topk``, ``at`` (entries the student chose), ``dense`` to read, ``text``."""


class Hearing(Protocol):
    """Where a Vec is evaluated: a whole batch without the live student."""

    ladder: Ladder
    step: int
    memory: dict[str, float]

    def remember(self, name: str, update: Callable[[float | None], float | None]) -> float | None:
        """A number of the run's memory, updated once a batch; None where it is not known yet."""
        ...

    def read(self, reader: Reader, statistic: Statistic, target: Law | None, support: Support | None = None) -> Tensor:
        """What a reader reports of every scored token, ``[N]``."""
        ...


@dataclass(frozen=True)
class Vec:
    """An expression with one value per unit of ``rung``."""

    # ---- structure
    @property
    def rung(self) -> Rung:
        """One value per what."""
        raise NotImplementedError

    @property
    def children(self) -> tuple[Vec, ...]:
        """The expressions it is made of."""
        return ()

    def walk(self) -> Iterator[Vec]:
        """Itself and all below."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def reach(self) -> Rung:
        """The widest rung this node itself looks at."""
        return Rung.TOKEN

    @property
    def live_reach(self) -> Rung:
        """The widest rung at which the live student is looked at."""
        return max((node.reach for node in self.walk() if node.live), default=Rung.TOKEN)

    @property
    def live(self) -> bool:
        """Whether it reads the student as it is now (detached)."""
        return any(c.live for c in self.children)

    def own_needs(self) -> frozenset[Need]:
        """What this node itself reads."""
        return frozenset()

    @property
    def needs(self) -> frozenset[Need]:
        """Everything it reads: the leaves of an expression are its needs."""
        return frozenset(need for node in self.walk() for need in node.own_needs())

    @property
    def own_fields(self) -> frozenset[str]:
        """Record fields that this node itself reads."""
        return frozenset()

    def own_contexts(self) -> frozenset[Context]:
        """Contexts whose presence this node itself looks at."""
        return frozenset()

    @property
    def contexts(self) -> frozenset[Context]:
        """Contexts whose presence it looks at."""
        return frozenset(c for node in self.walk() for c in node.own_contexts())

    @property
    def fields(self) -> frozenset[str]:
        """Record fields it reads."""
        return frozenset(name for node in self.walk() for name in node.own_fields)

    def evaluate(self, hearing: Hearing) -> Tensor:
        """``[size(rung)]`` values on a whole batch."""
        raise NotImplementedError

    def __bool__(self) -> bool:
        # Python's "and", "or", "not" and "0 < x < 1" ask for one truth and would silently drop half of the expression.
        raise LimbeckError(f"{self} has no single truth; combine masks with &, | and ~, and write (x > 0) & (x < 1).")

    # ---- arithmetic
    def __add__(self, x: Vec | Scalar | float) -> Vec:
        return op("+", self, x)

    def __radd__(self, x: Scalar | float) -> Vec:
        return op("+", x, self)

    def __sub__(self, x: Vec | Scalar | float) -> Vec:
        return op("−", self, x)

    def __rsub__(self, x: Scalar | float) -> Vec:
        return op("−", x, self)

    def __mul__(self, x: Vec | Scalar | float) -> Vec:
        return op("·", self, x)

    def __rmul__(self, x: Scalar | float) -> Vec:
        return op("·", x, self)

    def __truediv__(self, x: Vec | Scalar | float) -> Vec:
        return op("/", self, x)

    def __rtruediv__(self, x: Scalar | float) -> Vec:
        return op("/", x, self)

    def __neg__(self) -> Vec:
        return op("neg", self)

    def __gt__(self, x: Vec | float) -> Vec:
        return op(">", self, x)

    def __ge__(self, x: Vec | float) -> Vec:
        return op("≥", self, x)

    def __lt__(self, x: Vec | float) -> Vec:
        return op("<", self, x)

    def __le__(self, x: Vec | float) -> Vec:
        return op("≤", self, x)

    def eq(self, x: Vec | float) -> Vec:
        """Where the values are equal."""
        return op("=", self, x)

    def __and__(self, x: Vec) -> Vec:
        return op("∧", self, x)

    def __or__(self, x: Vec) -> Vec:
        return op("∨", self, x)

    def __invert__(self) -> Vec:
        return op("¬", self)

    def exp(self) -> Vec:
        """e to the power of the value; for a ratio of laws see ``importance``, which bounds its logarithm."""
        return op("exp", self)

    def log(self) -> Vec:
        """Natural logarithm."""
        return op("log", self)

    def sigmoid(self) -> Vec:
        """1 / (1 + e^-x)."""
        return op("σ", self)

    def __abs__(self) -> Vec:
        return op("abs", self)

    def clip(self, lo: float | None = None, hi: float | None = None) -> Vec:
        """Held between ``lo`` and ``hi`` (None: open)."""
        return Clip(self, lo, hi)

    # ---- ladder
    def over(self, rung: Rung | str, how: str, where: Vec | None = None, empty: bool = False) -> Vec:
        """Up the ladder: one value per unit of ``rung``; a reduction of nothing is 0.

        Units without a kept token are left out, as in every denominator; ``empty`` counts them.
        """
        return Over(self, as_rung(rung), how, where, empty)

    @property
    def total(self) -> Vec:
        """Sum over the sequence."""
        return self.over(Rung.SEQUENCE, "sum")

    @property
    def mean(self) -> Vec:
        """Mean over the group."""
        return self.over(Rung.GROUP, "mean")


VecLike = Vec | Scalar | float | bool


def vec(x: VecLike) -> Vec:
    """A number or schedule as a Vec.

    Raises:
        LimbeckError: for anything else.
    """
    if isinstance(x, Vec):
        return x
    if isinstance(x, Reader):
        raise LimbeckError(f"{x} is a reader, not a number per token; write logp({x}) or entropy({x}).")
    if not isinstance(x, bool | Scalar):
        number("a value in an expression", x)
    return Scheduled(x) if isinstance(x, Scalar) else Const(float(x))


# ---------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Const(Vec):
    """A number."""

    value: float

    @property
    def rung(self) -> Rung:
        return Rung.BATCH

    def evaluate(self, hearing: Hearing) -> Tensor:
        reward = hearing.ladder.record.reward_U
        return torch.full((1,), self.value, dtype=reward.dtype, device=reward.device)

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Scheduled(Vec):
    """A schedule of the step, or a controller at its present value."""

    scalar: Scalar

    @property
    def rung(self) -> Rung:
        return Rung.BATCH

    def evaluate(self, hearing: Hearing) -> Tensor:
        return Const(self.scalar.now(hearing.step, hearing.memory)).evaluate(hearing)

    def __str__(self) -> str:
        return f"({self.scalar})"


# ---------------------------------------------------------------- nodes


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask.bool(), a, b)


_LOGICAL = ("∧", "∨", "¬", "where", ">", "≥", "<", "≤", "=")


def as_numbers(x: Tensor) -> Tensor:
    """Masks and whole numbers as floating-point numbers: true is 1, and nothing overflows or is a logical sum."""
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
    "exp": torch.exp,
    "log": torch.log,
    "σ": torch.sigmoid,
    "abs": torch.abs,
    "where": _where,
}
_PREFIX = {"neg": "−", "¬": "¬", "exp": "exp", "log": "log", "σ": "σ", "abs": "abs"}


def _standardised(x: Vec) -> str:
    """The short name of (x − mean) / (std + eps) and of x − mean; empty where the expression is something else."""
    match x:
        case Op("/", (Op("−", (_, Over(how="mean"))) as centred, Op("+", (Over(how="std"), _)))):
            return _standardised(centred).replace("centre", "standardise", 1)
        case Op("−", (of, Over(of=inner, how="mean") as mean)) if inner == of:
            return f"centre_{mean.to}({of}{'' if mean.mask is None else f' where {mean.mask}'})"
    return ""


@dataclass(frozen=True)
class Op(Vec):
    """An element-wise operation; coarser arguments are broadcast down."""

    name: str
    args: tuple[Vec, ...]

    @property
    def rung(self) -> Rung:
        return min(a.rung for a in self.args)

    @property
    def children(self) -> tuple[Vec, ...]:
        return self.args

    def combine(self, values: list[Tensor]) -> Tensor:
        """The operation on values of one rung."""
        operands = values if self.name in _LOGICAL else [as_numbers(x) for x in values]
        return _OPS[self.name](*operands)

    def evaluate(self, hearing: Hearing) -> Tensor:
        down = hearing.ladder.down
        return self.combine([down(a.evaluate(hearing), a.rung, self.rung) for a in self.args])

    def __str__(self) -> str:
        if self.name in _PREFIX:
            return f"{_PREFIX[self.name]}({self.args[0]})"
        pattern = _standardised(self)
        if pattern:
            return pattern
        if self.name == "where":
            return f"[{self.args[0]} ? {self.args[1]} : {self.args[2]}]"
        return f"({self.args[0]} {self.name} {self.args[1]})"


def op(name: str, *args: VecLike) -> Vec:
    return Op(name, tuple(vec(a) for a in args))


@dataclass(frozen=True)
class Clip(Vec):
    """A value held within bounds."""

    of: Vec
    lo: float | None
    hi: float | None

    def __post_init__(self) -> None:
        for bound in (self.lo, self.hi):
            if bound is not None:
                number("a bound of clip", bound, ends=True)
        if self.lo is None and self.hi is None:
            raise LimbeckError("clip() has no bound; give lo, hi or both.")
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise LimbeckError(f"clip({self.lo:g}, {self.hi:g}): nothing lies between; give lo first.")

    @property
    def rung(self) -> Rung:
        return self.of.rung

    @property
    def children(self) -> tuple[Vec, ...]:
        return (self.of,)

    def combine(self, values: list[Tensor]) -> Tensor:
        """The clip on values of one rung."""
        return as_numbers(values[0]).clamp(self.lo, self.hi)

    def evaluate(self, hearing: Hearing) -> Tensor:
        return self.combine([self.of.evaluate(hearing)])

    def __str__(self) -> str:
        return f"clip({self.of}, {self.lo}, {self.hi})"


@dataclass(frozen=True)
class Slope(Vec):
    """``f'(1) − f'(u)`` with ``u = exp(log_u)``: the policy-gradient advantage of a divergence at a sampled token."""

    divergence: Divergence
    log_u: Vec

    @property
    def rung(self) -> Rung:
        return self.log_u.rung

    @property
    def children(self) -> tuple[Vec, ...]:
        return (self.log_u,)

    def combine(self, values: list[Tensor]) -> Tensor:
        """The slope on values of one rung."""
        return self.divergence.advantage(values[0])

    def evaluate(self, hearing: Hearing) -> Tensor:
        return self.combine([self.log_u.evaluate(hearing)])

    def __str__(self) -> str:
        return f"−{self.divergence.label}′({self.log_u})"


@dataclass(frozen=True)
class Over(Vec):
    """A reduction up the ladder."""

    of: Vec
    to: Rung
    how: str
    mask: Vec | None = None
    empty: bool = False

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise LimbeckError(f"over(..., how={self.how!r}): unknown reduction; use one of {', '.join(HOWS)}.")
        if self.mask is not None:
            expect("the mask of over", self.mask, Vec, "give a comparison or a mask such as correct")
        if self.to < self.of.rung:
            raise LimbeckError(
                f"over({self.to}): {self.of} has one value per {self.of.rung}, which is coarser; going down the ladder "
                "is implicit, so leave the call out."
            )

    @property
    def rung(self) -> Rung:
        return self.to

    @property
    def reach(self) -> Rung:
        return self.to

    @property
    def children(self) -> tuple[Vec, ...]:
        return (self.of,) if self.mask is None else (self.of, self.mask)

    def evaluate(self, hearing: Hearing) -> Tensor:
        values = self.of.evaluate(hearing)
        mask = None
        if self.mask is not None:
            mask = hearing.ladder.down(self.mask.evaluate(hearing), self.mask.rung, self.of.rung).bool()
        return hearing.ladder.up(values, self.of.rung, self.to, self.how, mask, self.empty)

    def __str__(self) -> str:
        condition = "" if self.mask is None else f" where {self.mask}"
        return f"{self.how}_{self.to}({self.of}{condition}{', empty ones too' if self.empty else ''})"


@dataclass(frozen=True)
class ToGo(Vec):
    """Discounted rest of the sequence, token by token, or turn by turn where the signal has one value a turn.

    ``average`` divides by the number of tokens left (MiniLLM).
    """

    of: Vec
    gamma: float
    strict: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        expect("what to_go sums", self.of, Vec, "give an expression such as log_ratio(teacher)")
        if not isinstance(self.gamma, int | float) or not 0 <= self.gamma <= 1:
            raise LimbeckError(f"to_go(gamma={shown(self.gamma)}): a discount lies between 0 and 1; 0 for no future.")

    @property
    def rung(self) -> Rung:
        return Rung.TURN if self.of.rung == Rung.TURN else Rung.TOKEN

    @property
    def reach(self) -> Rung:
        return Rung.SEQUENCE

    @property
    def children(self) -> tuple[Vec, ...]:
        return (self.of,)

    def evaluate(self, hearing: Hearing) -> Tensor:
        ladder = hearing.ladder
        if self.rung == Rung.TURN:
            return ladder.to_go(as_numbers(self.of.evaluate(hearing)), self.gamma, self.strict, Rung.TURN)
        of_N = ladder.down(as_numbers(self.of.evaluate(hearing)), self.of.rung, Rung.TOKEN)
        rest = ladder.to_go(of_N, self.gamma, self.strict)
        if not self.average:
            return rest
        left = ladder.record.length_B[ladder.record.seq_N] - ladder.position() + 1
        return rest / left

    def __str__(self) -> str:
        return (
            f"to_go({self.of}, γ={self.gamma:g}{', mean' if self.average else ''}{', strict' if self.strict else ''})"
        )


# ---------------------------------------------------------------- looking at expressions


def replace_reader(of: Vec, was: Reader, now: Reader) -> Vec:
    """The same expression with one reader in another's place (temperatures kept)."""

    def swap(x: Any) -> Any:
        if isinstance(x, Reader):
            return now.at(x.tau) if x.key == was.key else x
        if isinstance(x, Blend):
            return Blend(tuple((swap(reader), weight) for reader, weight in x.parts), x.space)
        if isinstance(x, tuple):
            return tuple(swap(item) for item in x)
        if isinstance(x, Vec):
            return type(x)(**{name: swap(value) for name, value in vars(x).items()})
        return x

    swapped: Vec = swap(of)
    return swapped


def evaluate_rows(of: Vec, known: Callable[[Vec], Tensor | None]) -> Tensor:
    """A live expression on some rows of tokens: ``known`` gives every leaf and every part that is not live."""
    value = known(of)
    if value is not None:
        return value
    if not isinstance(of, Op | Clip | Slope):
        raise LimbeckError(
            f"{of} looks at a whole {of.reach} of the live student, which a micro-batch does not hold; read old "
            "instead of student."
        )
    return of.combine([evaluate_rows(child, known) for child in of.children])
