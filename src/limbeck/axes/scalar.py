"""Scalars: numbers, schedules of the step, and controllers, which change with the metrics of each step.

``step`` counts optimiser batches and starts at 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass

from ..errors import LimbeckError, number, shown, whole


@dataclass(frozen=True)
class Scalar:
    """A number that may depend on the step."""

    def at(self, step: int) -> float:
        """The value at a step."""
        raise NotImplementedError

    def now(self, step: int, memory: Mapping[str, float]) -> float:
        """The value at a step of a run. The value of a controller is in the run's memory."""
        del memory
        return self.at(step)

    def most(self, steps: int) -> float:
        """The largest value within so many steps. A monotonic schedule has it at the first or the last one."""
        return max(self.at(0), self.at(max(steps - 1, 0)))

    @property
    def controllers(self) -> tuple[Controller, ...]:
        """The controllers it is made of."""
        return tuple(c for part in scalars_within(self) if part is not self for c in part.controllers)

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 at every step; then the term that it multiplies is removed, with its needs."""
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
                "floor; give a decay of at least 0, and a floor that is not above start."
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

    def now(self, step: int, memory: Mapping[str, float]) -> float:
        return self.a.now(step, memory) * self.b.now(step, memory)

    def most(self, steps: int) -> float:
        return max(super().most(steps), self.a.most(steps) * self.b.most(steps))

    @property
    def is_zero(self) -> bool:
        return self.a.is_zero or self.b.is_zero

    def __str__(self) -> str:
        return f"{self.a}·{self.b}"


@dataclass(frozen=True)
class Stairs(Scalar):
    """``start + rise * floor(step / every)``, such as the number of turns k(n) of TCOD."""

    start: float
    every: int
    rise: float

    def at(self, step: int) -> float:
        return self.start + self.rise * (step // self.every)

    def __str__(self) -> str:
        return f"{self.start:g} {'+' if self.rise >= 0 else '−'} {abs(self.rise):g}·⌊step/{self.every}⌋"


@dataclass(frozen=True)
class Every(Scalar):
    """1 at every ``every``-th step, from step 0 on, else 0; with ``rest`` the other way round."""

    every: int
    rest: bool

    def at(self, step: int) -> float:
        return float((step % self.every == 0) != self.rest)

    def __str__(self) -> str:
        return f"[step mod {self.every} {'≠' if self.rest else '='} 0]"


@dataclass(frozen=True)
class Controller(Scalar):
    """A value that is updated after each step from metrics; its state is in the run's memory.

    A subclass defines ``at``, the value before the first update, and ``update``. The state is the value itself, unless
    the subclass also defines ``now``, which computes the value from the state (see ``EntropyGate``).
    """

    def now(self, step: int, memory: Mapping[str, float]) -> float:
        return memory[self.name] if self.name in memory else self.at(step)

    @property
    def name(self) -> str:
        """The key of its state in the memory."""
        return repr(self)  # str rounds the numbers, so two controllers could share a state

    @property
    def controllers(self) -> tuple[Controller, ...]:
        return (self, *super().controllers)

    def refuse_state(self, state: float) -> None:
        """Raise LimbeckError for a saved state that this controller cannot have had. By default any number will do."""

    def update(self, state: float | None, step: int, metrics: Mapping[str, float]) -> float:
        """The next state, from the last one (None at the start) and the metrics of the finished step."""
        raise NotImplementedError


@dataclass(frozen=True)
class EntropyGate(Controller):
    """Rising limits. Every so many steps it takes the next one if the mean token entropy is at least ``floor``.

    From arXiv:2605.16826, which does not publish the limits, the floor and the steps between gates. It reads
    ``heldout_entropy`` where the run evaluates during training (``eval_every``), else the entropy of the step's own
    rollouts.
    """

    levels: tuple[int, ...]
    floor: float
    every: int

    def at(self, step: int) -> float:
        del step
        return float(self.levels[0])

    def now(self, step: int, memory: Mapping[str, float]) -> float:
        del step
        return float(self.levels[int(memory.get(self.name, 0))])

    def most(self, steps: int) -> float:
        return float(self.levels[min(steps // self.every, len(self.levels) - 1)])

    def refuse_state(self, state: float) -> None:
        if state not in range(len(self.levels)):
            raise LimbeckError(
                f"the saved state of {self} is {shown(state)}, which is no place in its {len(self.levels)} limits; "
                "give the state that was saved with it."
            )

    def update(self, state: float | None, step: int, metrics: Mapping[str, float]) -> float:
        level = int(state or 0)
        if (step + 1) % self.every or level + 1 == len(self.levels):
            return level
        entropy = metrics.get("heldout_entropy", metrics.get("entropy"))
        if entropy is None:
            raise LimbeckError(
                "the entropy gate reads entropy, which is not measured here; set diagnostics=true in a run, and give "
                "lb.objective student_logits or student_hidden."
            )
        return level + 1 if entropy >= self.floor else level

    def __str__(self) -> str:
        return f"{' → '.join(map(str, self.levels))} while H ≥ {self.floor:g}, every {self.every} steps"


def move(
    controllers: Iterable[Controller], memory: MutableMapping[str, float], step: int, metrics: Mapping[str, float]
) -> None:
    """Update controllers after a step from its metrics and the other numbers of the memory."""
    known = {**memory, **metrics}
    for controller in controllers:
        try:
            state = controller.update(memory.get(controller.name), step, known)
        except KeyError as e:
            raise LimbeckError(
                f"the controller {controller} reads {e.args[0]!r}, which is not measured here; use one of "
                f"{', '.join(metrics) or 'no numbers'}."
            ) from None
        number(f"what update of the controller {controller} returns", state)
        memory[controller.name] = float(state)


def scalars_within(x: object) -> Iterator[Scalar]:
    """Every scalar that a value is made of, wherever in its fields it stands; a scalar itself is the first."""
    if isinstance(x, Scalar):
        yield x
    if is_dataclass(x) and not isinstance(x, type):
        for f in fields(x):
            yield from scalars_within(getattr(x, f.name))
    elif isinstance(x, tuple | list | frozenset):
        for item in x:
            yield from scalars_within(item)
    elif isinstance(x, Mapping):
        yield from scalars_within(tuple(x.values()))


def scalar(x: Scalar | float | str) -> Scalar:
    """A number or a string such as ``"0.002"`` or ``"anneal(5e-3, 1e-3, 5e-5)"`` (of a command line) as a Scalar.

    Raises:
        LimbeckError: for a string of another form, or a number that is not finite.
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
        if name == "stairs":
            return stairs(*numbers)
    except (ValueError, TypeError) as e:
        if isinstance(e, LimbeckError):
            raise
    raise LimbeckError(
        f"{x!r} is not a coefficient; give a number, 'anneal(start, floor, decay)', 'linear(start, end, steps)' or "
        "'stairs(start, every, rise)'."
    )


def product(a: Scalar | float | str, b: Scalar | float | str) -> Scalar:
    """The product of two scalars; a constant where both are."""
    a, b = scalar(a), scalar(b)
    if isinstance(a, Constant) and isinstance(b, Constant):
        return Constant(a.value * b.value)
    if isinstance(a, Constant) and a.value == 1:
        return b
    if isinstance(b, Constant) and b.value == 1:
        return a
    return Times(a, b)


def anneal(start: float, floor: float, decay: float) -> Anneal:
    """``max(start - decay * step, floor)``; KDRL uses ``anneal(5e-3, 1e-3, 5e-5)``."""
    return Anneal(start, floor, decay)


def linear(start: float, end: float, steps: int) -> Linear:
    """From ``start`` to ``end`` in a straight line over ``steps`` steps, and ``end`` afterwards."""
    return Linear(start, end, steps)


def stairs(start: float, every: float, rise: float = 1.0) -> Scalar:
    """``start + rise * floor(step / every)``: a rise every so many steps."""
    if every < 1 or every != int(every):
        raise LimbeckError(f"stairs(every={every:g}): the steps of a stair must be a whole number; give at least 1.")
    return Stairs(start, int(every), rise) if rise else Constant(start)


def every(n: float, rest: bool = False) -> Scalar:
    """1 at every n-th step, else 0 (with ``rest`` the other way round); ``n = inf`` means never."""
    if n == math.inf:
        return Constant(float(rest))
    if n < 1 or n != int(n):
        raise LimbeckError(f"every({n:g}): n must be a whole number of at least 1; give infinity for never.")
    return Every(int(n), rest) if n > 1 else Constant(float(not rest))


def entropy_gate(levels: tuple[int, ...], floor: float, steps: int) -> Scalar:
    """Rising limits that are taken one after the other while entropy stays high; see ``EntropyGate``."""
    for level in levels:
        whole("a level of entropy_gate", level, 1)
    if not levels or any(b <= a for a, b in itertools.pairwise(levels)) or levels[0] < 1 or steps < 1:
        raise LimbeckError(
            f"entropy_gate(levels={levels}, steps={steps}): it takes rising limits; give whole numbers above 0 that "
            "rise, and at least 1 step for each."
        )
    return EntropyGate(levels, floor, steps) if len(levels) > 1 else Constant(float(levels[0]))
