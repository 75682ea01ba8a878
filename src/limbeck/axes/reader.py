"""Readers: policies in a context and at a temperature. A reader can write text, score it, and be a target.

A reader is ``weights x context x temperature``. Its ``kind`` says which policy it is, and its ``weights`` whose
parameters that policy has:

* ``student`` is the policy in training as it is now, ``old`` the same policy at the start of the batch, recomputed by
  the trainer, and ``behavior`` the policy that wrote the text, whose log-probs are taken as they were reported;
* ``teacher``, ``ref``, ``init`` and ``other(name)`` are frozen;
* ``ema(rate)`` and ``synced(every)`` are copies of the student that move with it; a checkpoint stores them.

Only the bare ``student`` carries gradient. A student that sees a context is a detached view, read at the start of the
batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from ..errors import LimbeckError, expect, nearest, number, shown, whole
from .context import Context


class Weights(Enum):
    """The origin of a reader's weights. Every question about whose weights they are is a property here."""

    STUDENT_NOW = "the student as it is now"
    STUDENT_BEFORE = "the student at the start of the batch"
    STUDENT_FOLLOWING = "a copy of the student that moves with it"
    INITIAL = "the student before training (for ref, unless another model is named)"
    GIVEN = "a model that the user names"

    @property
    def of_student(self) -> bool:
        """Whether they are the student's own, now or earlier, and not those of another model."""
        return self is not Weights.GIVEN

    @property
    def from_run(self) -> bool:
        """Whether the run derives them from the student at every step, so that no model is loaded for them."""
        return self in (Weights.STUDENT_NOW, Weights.STUDENT_BEFORE, Weights.STUDENT_FOLLOWING)

    @property
    def in_student(self) -> bool:
        """Whether the student's module itself has them at the start of a batch."""
        return self in (Weights.STUDENT_NOW, Weights.STUDENT_BEFORE)


_WEIGHTS = {
    "student": Weights.STUDENT_NOW,
    "old": Weights.STUDENT_BEFORE,
    "behavior": Weights.STUDENT_BEFORE,
    "synced": Weights.STUDENT_FOLLOWING,
    "ema": Weights.STUDENT_FOLLOWING,
    "init": Weights.INITIAL,
    "ref": Weights.INITIAL,
    "teacher": Weights.GIVEN,
    "other": Weights.GIVEN,
}

KINDS = tuple(_WEIGHTS)
"""The kinds of readers."""


@dataclass(frozen=True)
class Follow:
    """The rule by which a copy of the student moves.

    Attributes:
        rate: u of ``theta <- (1 - u) theta + u student``; 1 copies.
        every: batches between updates.
        reset: batches between hard copies; 0 for none.
    """

    rate: float
    every: int
    reset: int


@dataclass(frozen=True)
class Reader:
    """A policy.

    Attributes:
        kind: one of ``KINDS``.
        tau: temperature that divides its logits, > 0.
        context: blocks of text that only it sees; empty reads the record's own prompt.
        follow: how its weights move, for ``ema`` and ``synced``.
        name: of the model, for ``other``.
    """

    kind: str
    tau: float = 1.0
    context: tuple[Context, ...] = ()
    follow: Follow | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = nearest(self.kind, KINDS)
            raise LimbeckError(f"{shown(self.kind)} is no kind of reader{near}; use other(name) for further models.")
        number(f"the temperature of {self.role}", self.tau, 0)

    @property
    def weights(self) -> Weights:
        """The origin of its weights."""
        if self.kind == "synced" and self.follow is not None and self.follow.every == 1:
            return Weights.STUDENT_BEFORE
        return _WEIGHTS[self.kind]

    @property
    def role(self) -> str:
        """The name of its weights: ``teacher``, ``ema(0.05, every 5)``, or the name of an ``other``."""
        if self.kind == "other":
            return self.name
        if self.follow is None:
            return self.kind
        if self.kind == "synced":
            return f"synced({self.follow.every})"
        every = f", every {self.follow.every}" if self.follow.every > 1 else ""
        reset = f", reset {self.follow.reset}" if self.follow.reset else ""
        return f"{self.kind}({self.follow.rate:g}{every}{reset})"

    def at(self, tau: float) -> Reader:
        """The same policy at another temperature: its distribution is ``softmax(logits / tau)`` wherever it is used.

        If something else has a temperature too (``divergence_loss(row, tau)``, ``sample(reader, tau=...)``), the logits
        are divided by both.
        """
        if self.kind == "behavior" and tau != 1.0:
            raise LimbeckError(
                f"behavior.at({shown(tau)}): its log-probs are taken as they were reported, so they have no other "
                f"temperature; use old.at({shown(tau)}), which the trainer computes."
            )
        return replace(self, tau=tau)

    def given(self, *context: Context) -> Reader:
        """The same policy, which sees these contexts behind the student's own prompt."""
        for c in context:
            if not isinstance(c, Context):
                raise LimbeckError(
                    f"{self.role}.given({c!r}): this is no context; give one such as solution, feedback or hint."
                )
        if self.kind in ("old", "behavior"):
            raise LimbeckError(
                f"{self.role}.given(...): its log-probs are those of the plain prompt; use student.given(...)."
            )
        return replace(self, context=context)

    @property
    def bare(self) -> Reader:
        """The same policy without contexts."""
        return replace(self, context=())

    @property
    def key(self) -> str:
        """The name of its view: its role and what it sees."""
        return f"{self.role} given {', '.join(map(str, self.context))}" if self.context else self.role

    @property
    def slot(self) -> str:
        """The prefix of its arguments in ``lb.objective``: ``teacher``, ``ema``, ``student_given``."""
        return (self.name or self.kind) + ("_given" if self.context else "")

    @property
    def live(self) -> bool:
        """Whether it is the student as it is now, in its own prompt."""
        return self.kind == "student" and not self.context

    @property
    def is_policy(self) -> bool:
        """Whether it is the policy in training: now (student), at the batch's start (old) or when it wrote (behavior).

        It is one in its own prompt only. Such a reader needs no model in addition to the student.
        """
        return not self.context and any(self.kind == policy.kind for policy in POLICIES)

    def __str__(self) -> str:
        name = f"{self.role}({', '.join(map(str, self.context))})" if self.context else self.role
        return name if self.tau == 1.0 else f"{name}@{self.tau:g}"


SPACES = ("prob", "log")
"""The spaces in which a blend mixes: probabilities or log-probs."""


@dataclass(frozen=True)
class Blend:
    """A mixture of policies: ``sum_i w_i pi_i`` (``prob``), or ``softmax(sum_i w_i log pi_i)`` (``log``).

    Weights in ``log`` space may be negative and need not sum to 1 (the extrapolation of G-OPD). A mixture of logits is
    the same distribution as one of log-probs, because the normalisation removes a constant of the row. The trust region
    of SDPO is such a blend.
    """

    parts: tuple[tuple[Reader, float], ...]
    space: str

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise LimbeckError(f"blend(space={self.space!r}): unknown space; use one of {', '.join(SPACES)}.")
        for part in self.parts:
            expect("a part of blend", part, tuple, "give (reader, weight), for instance (teacher, 0.2)")
            expect("a reader of blend", part[0], Reader, "give one such as student or teacher")
            number(f"the weight of {part[0]}", part[1])
        weights = ", ".join(f"{w:g}" for _, w in self.parts)
        total = sum(w for _, w in self.parts)
        unfit = any(w < 0 for _, w in self.parts) or not math.isclose(total, 1.0, abs_tol=1e-9)
        if self.space == "prob" and unfit:
            raise LimbeckError(f"blend: the weights ({weights}) must be non-negative and sum to 1; or use space='log'.")

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The readers whose weight is not 0."""
        return tuple(r for r, w in self.parts if w != 0)

    def __str__(self) -> str:
        if self.space == "log":
            return "Π " + " ".join(f"{r}^{w:g}" for r, w in self.parts)
        return " + ".join(f"{w:g}·{r}" for r, w in self.parts)


TargetReader = Reader | Blend
"""A target distribution of a full-vocabulary loss."""

student, old, behavior = Reader("student"), Reader("old"), Reader("behavior")
teacher, ref, init = Reader("teacher"), Reader("ref"), Reader("init")

POLICIES = (student, old, behavior)
"""The policy in training: now, at the start of the batch, and when it wrote the text."""

FROZEN = (teacher, ref, init)
"""Models that do not change during a run and that have a name of their own."""


def other(name: str) -> Reader:
    """A further frozen model that the user names."""
    expect("the name of a reader", name, str, "give a text, for instance other('critic')")
    if name in KINDS:
        raise LimbeckError(f"other({name!r}): that name is a role of its own; choose another.")
    return Reader("other", name=name)


def by_role(role: str) -> Reader:
    """The student or a frozen model, by the name under which a run knows it."""
    return next((r for r in (student, *FROZEN) if r.role == role), None) or other(role)


def ema(rate: float, every: int = 1, reset: int = 0) -> Reader:
    """An exponential moving average of the student: ``theta <- (1 - rate) theta + rate student`` every so many batches.

    Args:
        rate: u, between 0 and 1 (SDPO 0.05; TT-OPD's alpha 0.995 is 0.005).
        every: batches between updates.
        reset: batches between hard copies; 0 for none.
    """
    number("the rate of ema", rate)
    whole("every of ema", every, 0)
    whole("reset of ema", reset, 0)
    if not 0 < rate <= 1 or every < 1:
        raise LimbeckError(
            f"ema(rate={rate}, every={every}, reset={reset}): the rate lies in (0, 1], every is at least 1 and reset "
            "is not negative; use init for weights that never move."
        )
    return Reader("ema", follow=Follow(rate, every, reset))


def synced(every: int = 1) -> Reader:
    """The student's weights as they were at the last multiple of ``every`` batches; 1: at the start of each batch."""
    whole("every of synced", every, 0)
    if every < 1:
        raise LimbeckError(f"synced(every={every}): every must be at least 1; use init for weights that never move.")
    return Reader("synced", follow=Follow(1.0, every, 0))


HELD_BY_STUDENT = frozenset(r.role for r in (student, old, synced()))
"""Roles whose weights are in the student's own module when a batch begins."""


def blend(*parts: tuple[Reader, float], space: str = "prob") -> Blend:
    """A mixture of readers, of probabilities or of log-probs."""
    return Blend(parts, space)
