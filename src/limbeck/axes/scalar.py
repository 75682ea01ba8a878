"""Scalars: numbers and schedules of the step. (Controllers, which read metrics, join with the methods that use one.)

``step`` counts optimiser batches and starts at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LimbeckError, number, whole


@dataclass(frozen=True)
class Scalar:
    """A number that may depend on the step."""

    def at(self, step: int) -> float:
        """The value at a step."""
        raise NotImplementedError

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 at every step; then what it multiplies is removed with its needs."""
        return False


@dataclass(frozen=True)
class Constant(Scalar):
    """The same value at every step."""

    value: float

    def __post_init__(self) -> None:
        number("a coefficient", self.value)

    def at(self, step: int) -> float:
        del step
        return self.value

    @property
    def is_zero(self) -> bool:
        return self.value == 0

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Anneal(Scalar):
    """``max(start - decay * step, floor)`` (KDRL section 3.3)."""

    start: float
    floor: float
    decay: float

    def __post_init__(self) -> None:
        for name in ("start", "floor", "decay"):
            number(f"anneal's {name}", getattr(self, name))
        if self.decay < 0 or self.floor > self.start:
            raise LimbeckError(
                f"anneal(start={self.start:g}, floor={self.floor:g}, decay={self.decay:g}): it falls from start to "
                "floor, so decay must not be negative and floor not above start."
            )

    def at(self, step: int) -> float:
        return max(self.start - self.decay * step, self.floor)

    def __str__(self) -> str:
        return f"max({self.start:g} − {self.decay:g}·step, {self.floor:g})"


@dataclass(frozen=True)
class Linear(Scalar):
    """From ``start`` to ``end`` over ``steps`` steps, then ``end``."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        number("linear's start", self.start)
        number("linear's end", self.end)
        whole("linear's steps", self.steps, 1)

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)

    def __str__(self) -> str:
        return f"{self.start:g}→{self.end:g} in {self.steps} steps"


@dataclass(frozen=True)
class Times(Scalar):
    """A product of scalars."""

    a: Scalar
    b: Scalar

    def at(self, step: int) -> float:
        return self.a.at(step) * self.b.at(step)

    @property
    def is_zero(self) -> bool:
        return self.a.is_zero or self.b.is_zero

    def __str__(self) -> str:
        return f"{self.a}·{self.b}"


def scalar(x: Scalar | float | str) -> Scalar:
    """A number as a Scalar; a string such as ``"0.002"`` or ``"anneal(5e-3, 1e-3, 5e-5)"`` comes from a command line.

    Raises:
        LimbeckError: where a string is neither, or a number is not finite.
    """
    if isinstance(x, Scalar):
        return x
    if not isinstance(x, str):
        number("a coefficient", x)
        return Constant(float(x))
    name, _, rest = x.replace(" ", "").partition("(")
    try:
        numbers = [float(n) for n in rest.rstrip(")").split(",")] if rest else [float(name)]
        if not rest:
            return Constant(numbers[0])
        if name == "anneal":
            return anneal(*numbers)
        if name == "linear":
            start, end, steps = numbers
            return linear(start, end, int(steps) if steps.is_integer() else steps)  # type: ignore[arg-type]
    except (ValueError, TypeError) as e:
        if isinstance(e, LimbeckError):
            raise
    raise LimbeckError(
        f"{x!r} is not a coefficient: give a number, 'anneal(start, floor, decay)' or 'linear(start, end, steps)'."
    )


def product(a: Scalar | float | str, b: Scalar | float | str) -> Scalar:
    """The product, folded where both are constants."""
    a, b = scalar(a), scalar(b)
    if isinstance(a, Constant) and isinstance(b, Constant):
        return Constant(a.value * b.value)
    if isinstance(a, Constant) and a.value == 1:
        return b
    if isinstance(b, Constant) and b.value == 1:
        return a
    return Times(a, b)


def anneal(start: float, floor: float, decay: float) -> Anneal:
    """``max(start - decay * step, floor)``; KDRL's annealing is ``anneal(5e-3, 1e-3, 5e-5)``."""
    return Anneal(start, floor, decay)


def linear(start: float, end: float, steps: int) -> Linear:
    """A straight line in the step, flat afterwards."""
    return Linear(start, end, steps)
