"""The memory of ``lb.objective`` between optimiser steps, which the micro-batches of a step move once together."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from ..axes.choice import Running
from ..axes.scalar import Controller, move
from ..errors import LimbeckError, expect, number
from ..space.method import Method

RATIOS = {
    "entropy": "tokens",
    "length": "sequences",
    "truncated": "sequences",
    "reward": "sequences",
    "accuracy": "sequences",
}
"""Measurements that are means, and the count that each is divided by."""


def read_memory(what: str, memory: object) -> None:
    """Raise unless the memory is a dictionary of finite numbers by name."""
    expect(what, memory, MutableMapping, "give a dictionary of numbers by name, such as the memory of an objective")
    assert isinstance(memory, MutableMapping)
    for name, value in memory.items():
        expect(f"a name in {what}", name, str, "names are texts")
        number(f"{what}[{name!r}]", value)


def refuse_strange_states(method: Method, memory: Mapping[str, float]) -> None:
    """Raise for the state of a controller that the method does not have, or that the controller cannot use.

    A saved state of another method, or of a controller whose arguments have changed, would otherwise be ignored.
    """
    controllers = {controller.name: controller for controller in method.controllers}
    exprs = (node for _, term in method.parts for v in term.exprs for node in v.walk())
    averages = {repr(node) for node in exprs if isinstance(node, Running)}
    for name, value in memory.items():
        if name not in controllers and name not in averages:
            kept = ", ".join(map(repr, (*controllers, *averages))) or "nothing"
            raise LimbeckError(
                f"memory holds {name!r}, which {method.name or 'this method'} does not keep (it keeps {kept}); give "
                "the state of an objective of the same method."
            )
        if name in controllers:
            controllers[name].refuse_state(value)


@dataclass
class StepSoFar:
    """The micro-batches of one optimiser step that were seen before its last one.

    Attributes:
        step: the number of the step, None before its first micro-batch.
        measured: sums of what controllers read.
        averages: for each micro-batch its number of tokens and the numbers of the memory that it changed.
    """

    step: int | None = None
    measured: dict[str, float] = field(default_factory=dict)
    averages: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def refuse_unfinished(self, step: int) -> None:
        """Raise where a call belongs to another step than the micro-batches before it."""
        if self.step not in (None, step):
            raise LimbeckError(
                f"step is {step}, but the micro-batches of step {self.step} are not finished; give accumulate=False "
                "with the last micro-batch of each step."
            )

    def add(self, step: int, tokens: float, changed: dict[str, float], measured: Mapping[str, float]) -> None:
        """One more micro-batch; coefficients are those of the step, everything else adds up."""
        self.step = step
        self.averages.append((tokens, changed))
        for name, x in measured.items():
            first = name.startswith("coef/") or name not in self.measured
            self.measured[name] = x if first else self.measured[name] + x

    def finish(self, step: int, memory: MutableMapping[str, float], controllers: Sequence[Controller]) -> None:
        """Move the memory once by all micro-batches, and forget them."""
        for name in dict.fromkeys(name for _, changed in self.averages for name in changed):
            seen = [(tokens, changed[name]) for tokens, changed in self.averages if name in changed]
            total = sum(tokens for tokens, _ in seen)
            alone = len(seen) == 1 or not total
            memory[name] = seen[-1][1] if alone else sum(tokens / total * x for tokens, x in seen)
        measured = self.measured
        self.clear()
        if controllers:
            means = {k: x / max(measured[RATIOS[k]], 1.0) if k in RATIOS else x for k, x in measured.items()}
            move(controllers, memory, step, {k: x for k, x in means.items() if k not in RATIOS.values()})

    def clear(self) -> None:
        """Forget the micro-batches."""
        self.step, self.measured, self.averages = None, {}, []
