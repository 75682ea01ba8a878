"""Readers: policies in a context, seen at a temperature. A reader can write text, be read, and *be* a target.

``weights x context x temperature``. Three clocks of the same weights: ``student`` now · ``old`` at the start of the
batch, recomputed by the trainer · ``writer`` as reported when the text was written. Frozen roles: ``teacher``, ``ref``,
``init``, ``other(name)``. Weights that follow the student by rule: ``ema(rate)``, ``synced(every)``; they are state.

Only the bare ``student`` is live. A student that sees a context is a detached view, read at the start of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import LimbeckError, expect, number, shown
from .context import Context


@dataclass(frozen=True)
class Follow:
    """How derived weights follow the student's.

    Attributes:
        rate: u of ``theta <- (1 - u) theta + u student``; 1 copies.
        every: batches between updates.
        reset: batches between hard copies; 0: none.
    """

    rate: float
    every: int = 1
    reset: int = 0


@dataclass(frozen=True)
class Reader:
    """A policy.

    Attributes:
        role: whose weights.
        tau: temperature that divides its logits, > 0.
        context: blocks that only it sees; empty reads the record's own prompt.
        follow: for weights derived from the student's.
    """

    role: str
    tau: float = 1.0
    context: tuple[Context, ...] = ()
    follow: Follow | None = None

    def __post_init__(self) -> None:
        expect("the name of a reader", self.role, str, "give a text, for instance other('critic')")
        number(f"the temperature of {self.role}", self.tau, 0)

    def at(self, tau: float) -> Reader:
        """The same policy at another temperature: its law is ``softmax(logits / tau)`` wherever it stands.

        Where something else has a temperature too (``divergence_loss(row, tau)``, ``sample(reader, tau=...)``), that one comes
        on top: the logits are divided by both.
        """
        if self.role == "writer" and tau != 1.0:
            raise LimbeckError(
                f"writer.at({shown(tau)}): the writer's log-probs are taken as they were reported, so they have no "
                f"other temperature; read old.at({shown(tau)}), which the trainer computes."
            )
        return replace(self, tau=tau)

    def given(self, *context: Context) -> Reader:
        """The same policy, seeing these contexts behind the student's own prompt."""
        for c in context:
            if not isinstance(c, Context):
                raise LimbeckError(f"{self.role}.given({c!r}): give contexts such as solution, feedback or hint.")
        if self.role in ("old", "writer"):
            raise LimbeckError(f"{self.role}.given(...): a context is read with weights; use student.given(...).")
        return replace(self, context=context)

    @property
    def bare(self) -> Reader:
        """The same policy without contexts."""
        return replace(self, context=())

    @property
    def key(self) -> str:
        """One view each: the role and what it sees."""
        return f"{self.role} given {', '.join(map(str, self.context))}" if self.context else self.role

    @property
    def slot(self) -> str:
        """What ``lb.objective`` calls its carriers: ``teacher``, ``ema``, ``student_given``."""
        return self.role.partition("(")[0] + ("_given" if self.context else "")

    @property
    def live(self) -> bool:
        """Whether it is the student as it is now, in its own prompt."""
        return self.role == "student" and not self.context

    def __str__(self) -> str:
        name = f"{self.role}({', '.join(map(str, self.context))})" if self.context else self.role
        return name if self.tau == 1.0 else f"{name}@{self.tau:g}"


SPACES = ("prob", "log")
"""How a blend mixes."""


@dataclass(frozen=True)
class Blend:
    """A mixture of policies: ``sum_i w_i pi_i`` (``prob``), or ``softmax(sum_i w_i log pi_i)`` (``log``).

    ``log`` weights may be negative and need not sum to 1 (G-OPD's extrapolation). A mixture of logits is the same law
    as one of log-probs, because a row's constant leaves with the normalisation: SDPO's trust region is such a blend.
    """

    parts: tuple[tuple[Reader, float], ...]
    space: str = "prob"

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise LimbeckError(f"blend(space={self.space!r}): use one of {', '.join(SPACES)}.")
        for part in self.parts:
            expect("a part of blend", part, tuple, "give (reader, weight), for instance (teacher, 0.2)")
            expect("a reader of blend", part[0], Reader, "give one such as student or teacher")
            number(f"the weight of {part[0]}", part[1])
        weights = ", ".join(f"{w:g}" for _, w in self.parts)
        total = sum(w for _, w in self.parts)
        unfit = any(w < 0 for _, w in self.parts) or not math.isclose(total, 1.0, abs_tol=1e-9)
        if self.space == "prob" and unfit:
            raise LimbeckError(f"blend: the weights ({weights}) must be non-negative and sum to 1.")

    @property
    def readers(self) -> tuple[Reader, ...]:
        """Those that have a weight."""
        return tuple(r for r, w in self.parts if w != 0)

    def __str__(self) -> str:
        if self.space == "log":
            return "Π " + " ".join(f"{r}^{w:g}" for r, w in self.parts)
        return " + ".join(f"{w:g}·{r}" for r, w in self.parts)


TargetReader = Reader | Blend
"""What a full-vocabulary loss can pull towards."""

student, old, writer = Reader("student"), Reader("old"), Reader("writer")
teacher, ref, init = Reader("teacher"), Reader("ref"), Reader("init")

BUILT_IN = ("student", "old", "writer", "teacher", "ref", "init", "ema", "synced")


def other(name: str) -> Reader:
    """A further frozen model that the user names."""
    if name in BUILT_IN:
        raise LimbeckError(f"other({name!r}): that name is a role of its own; choose another.")
    return Reader(name)


def ema(rate: float, every: int = 1, reset: int = 0) -> Reader:
    """An exponential moving average of the student: ``theta <- (1 - rate) theta + rate student`` every so many batches.

    Args:
        rate: u, between 0 and 1 (SDPO 0.05; TT-OPD's alpha 0.995 is 0.005).
        every: batches between updates.
        reset: batches between hard copies; 0: none.
    """
    if not 0 < rate <= 1 or every < 1 or reset < 0:
        raise LimbeckError(
            f"ema(rate={rate}, every={every}, reset={reset}): the rate lies in (0, 1], every is at least 1 and reset "
            "not negative; use init for weights that never move."
        )
    tail = (f", every {every}" if every > 1 else "") + (f", reset {reset}" if reset else "")
    return Reader(f"ema({rate:g}{tail})", follow=Follow(rate, every, reset))


def synced(every: int = 1) -> Reader:
    """The student's weights as they were at the last multiple of ``every`` batches; 1: at the start of each batch."""
    if every < 1:
        raise LimbeckError(f"synced(every={every}): give at least 1; use init for weights that never move.")
    return Reader(f"synced({every})", follow=Follow(1.0, every))


def blend(*parts: tuple[Reader, float], space: str = "prob") -> Blend:
    """A mixture of readers, of probabilities or of log-probs."""
    return Blend(parts, space)
