"""Readers: policies seen at a temperature. A reader can write text, be read, and *be* a target.

Three clocks of the same weights: ``student`` now · ``old`` at the start of the batch, recomputed by the trainer ·
``writer`` as reported when the text was written. Frozen roles: ``teacher``, ``ref``, ``init``, ``other(name)``.
What only a reader sees (a context), weights derived by rule (EMA, synced) and other blends join here with the
self-distillation methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import LimbeckError, expect, number


@dataclass(frozen=True)
class Reader:
    """A policy.

    Attributes:
        role: whose weights.
        tau: temperature that divides its logits, > 0.
    """

    role: str
    tau: float = 1.0

    def __post_init__(self) -> None:
        expect("the name of a reader", self.role, str, "give a text, for instance other('critic')")
        number(f"the temperature of {self.role}", self.tau, 0)

    def at(self, tau: float) -> Reader:
        """The same policy at another temperature."""
        return replace(self, tau=tau)

    def __str__(self) -> str:
        return self.role if self.tau == 1.0 else f"{self.role}@{self.tau:g}"


@dataclass(frozen=True)
class Blend:
    """A mixture of policies, probability by probability: ``sum_i w_i pi_i`` (MiniLLM's teacher-mixed sampling)."""

    parts: tuple[tuple[Reader, float], ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            expect("a part of blend", part, tuple, "give (reader, weight), for instance (teacher, 0.2)")
            expect("a reader of blend", part[0], Reader, "give one such as student or teacher")
            number(f"the weight of {part[0]}", part[1])
        total = sum(w for _, w in self.parts)
        if any(w < 0 for _, w in self.parts) or not math.isclose(total, 1.0, abs_tol=1e-9):
            weights = ", ".join(f"{w:g}" for _, w in self.parts)
            raise LimbeckError(f"blend: the weights ({weights}) must be non-negative and sum to 1.")

    def __str__(self) -> str:
        return " + ".join(f"{w:g}·{r}" for r, w in self.parts)


student, old, writer = Reader("student"), Reader("old"), Reader("writer")
teacher, ref, init = Reader("teacher"), Reader("ref"), Reader("init")


def other(name: str) -> Reader:
    """A further frozen model that the user names."""
    return Reader(name)


def blend(*parts: tuple[Reader, float]) -> Blend:
    """A probability mixture of readers."""
    return Blend(parts)
