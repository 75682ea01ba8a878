"""Readers: policies seen at a temperature. A reader can write text, be read, and *be* a target.

Three clocks of the same weights: ``student`` now · ``old`` at the start of the batch, recomputed by the trainer ·
``writer`` as reported when the text was written. Frozen roles: ``teacher``, ``ref``, ``init``, ``other(name)``.
What only a reader sees (a context), weights derived by rule (EMA, synced) and other blends join here with the
self-distillation methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import LimbeckError


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
        if not self.tau > 0:
            raise LimbeckError(f"{self.role}.at({self.tau}): a temperature must be positive; use at(1.0) for none.")

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
