r"""Surrogate losses: functions of the student's log-probs and a detached signal; the only differentiable step.

A surrogate is a function of *live statistics* of the student (the log-prob of the token, or one divergence row) and of
detached values. It says at which level it takes its signal and gives its losses, whether it is linear in its signal,
and which live statistics it asks for. It is called on a slice: a tile where everything is per token, a micro-batch
where it looks at sequences or groups.

===================  =======================================================  ==================================
``divergence_loss``  a target distribution; any row of the divergence table   KD, GKD, full-vocabulary OPD
``policy``           a signal; reinforce, ratio, clip, cispo                   REINFORCE, OPD, GRPO/DAPO/GSPO, CISPO
``sampled``          log-probs of a target at the sampled token; k2, k3, h(u)  KDRL, reference-KL terms
``contrast``         labels over the members of a group                        DPO, SimPO, f-DPO, list-wise forms
``logistic``         +1 / -1 per sequence                                      BCO, VPD's E-step
===================  =======================================================  ==================================

``divergence_loss`` is here, ``policy`` and ``sampled`` in ``policy_gradient.py``, the last two in ``preference.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import LimbeckError, number
from ..math.divergence import Divergence, as_divergence
from ..math.statistic import Distance, LogProb, Statistic, Support
from .expression import Expr, Need
from .leaves import ability, readers_of
from .levels import Level, segment
from .reader import Blend, Reader, TargetReader


@dataclass(frozen=True)
class Rows:
    """Which units a slice of kept tokens belongs to.

    Attributes:
        seq_n: int64 ``[n]``, the sequence of each kept token.
        group_B: int64 ``[B]``, the group of each sequence.
    """

    seq_n: Tensor
    group_B: Tensor

    def sum(self, x_n: Tensor) -> Tensor:
        """Per sequence, ``[B]``."""
        return segment(x_n, self.seq_n, self.group_B.numel(), "sum")

    def mean(self, x_n: Tensor) -> Tensor:
        """Per sequence, ``[B]``, 0 where it is empty."""
        return segment(x_n, self.seq_n, self.group_B.numel(), "mean")


@dataclass(frozen=True)
class Question:
    """A live statistic that a surrogate asks of the student.

    Attributes:
        statistic, support: what is asked.
        target: the law that it is compared with, at its readers' own temperatures.
        tau: temperature of the student.
        target_tau: temperature of the target, on top of its readers' own; None takes ``tau``.
    """

    statistic: Statistic
    target: TargetReader | None = None
    tau: float = 1.0
    support: Support | None = None
    target_tau: float | None = None


@dataclass(frozen=True)
class Surrogate:
    """How a signal is heard."""

    @property
    def signal_level(self) -> Level:
        """The finest level of a signal that it takes."""
        return Level.TOKEN

    @property
    def loss_level(self) -> Level:
        """The level of its losses."""
        return Level.TOKEN

    @property
    def scope(self) -> Level:
        """The widest level it looks at; ``TOKEN`` makes a term separable."""
        return Level.TOKEN

    @property
    def linear(self) -> bool:
        """Whether surrogate(a + b) = surrogate(a) + surrogate(b)."""
        return False

    def questions(self, signal: Expr | TargetReader) -> tuple[Question, ...]:
        """The live statistics it needs."""
        del signal
        return (Question(LogProb()),)

    @property
    def base(self) -> Expr | None:
        """A detached log-prob that ratios are taken against."""
        return None

    def with_reader(self, was: Reader, now: Reader) -> Surrogate:
        """The same surrogate with one reader of its base in another's place."""
        del was, now
        return self

    def needs(self, signal: Expr | TargetReader) -> frozenset[Need]:
        """What it reads besides the student as it is now."""
        del signal
        return self.base.needs if self.base is not None else frozenset()

    def check(self, signal: Expr | TargetReader) -> None:
        """Raise LimbeckError where it cannot take this signal."""
        if not isinstance(signal, Expr):
            raise LimbeckError(
                f"{self} takes a signal per {self.signal_level}, but was given the reader {signal}; give it an "
                f"expression such as log_ratio({signal}), or use divergence_loss(...) to pull towards its "
                "whole distribution."
            )
        if signal.level < self.signal_level:
            raise LimbeckError(
                f"{self} takes one value per {self.signal_level}, but {signal} has one per {signal.level}; reduce it, "
                f"for instance with .over('{self.signal_level}', 'sum')."
            )

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        """Losses ``[units of loss_level]``.

        Args:
            live: one vector ``[n]`` a question, over the kept tokens of the slice.
            signal: ``[n]`` where it takes one value a token, else ``[units of signal_level]``.
            base: the detached base ``[n]`` where there is one.
            rows: which units the kept tokens belong to.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DivergenceLoss(Surrogate):
    """A divergence of the student's law to a target law, differentiated through the student's row.

    ``cap`` cuts the divergence of each *token* from above: a token at the cap gives no gradient.
    """

    row: Divergence
    tau: float
    support: Support | None
    cap: float | None

    def __post_init__(self) -> None:
        number("tau of divergence_loss", self.tau, 0)
        if self.cap is not None:
            number("cap of divergence_loss", self.cap, 0)
        if self.support is not None and self.tau != 1.0:
            raise LimbeckError(
                f"divergence_loss(top_k={self.support.k}, tau={self.tau:g}): a top-k target needs tau = 1, because its "
                "tail has no temperature; use dense logits for tau != 1."
            )

    def questions(self, signal: Expr | TargetReader) -> tuple[Question, ...]:
        assert isinstance(signal, TargetReader)
        tail = self.support is None or self.support.tail
        return (Question(Distance(self.row, tail), signal, self.tau, self.support),)

    def needs(self, signal: Expr | TargetReader) -> frozenset[Need]:
        assert isinstance(signal, TargetReader)
        whole = isinstance(signal, Blend)
        return frozenset((reader, "dense" if whole else ability(reader, self.support)) for reader in readers_of(signal))

    def check(self, signal: Expr | TargetReader) -> None:
        if not isinstance(signal, TargetReader):
            raise LimbeckError(
                f"{self} pulls towards a whole distribution and needs a reader such as teacher, not {signal}; for a "
                "signal per token use policy(...) or sampled(...)."
            )
        if all(r.weights.in_student and not r.context and r.tau == 1.0 for r in readers_of(signal)):
            raise LimbeckError(
                f"{self} was given {signal}, the student itself, so its gradient is zero; name another reader, such as "
                "teacher, ref or init, or give it a context it does not see: student.given(feedback)."
            )
        policies = [r for r in readers_of(signal) if r.is_policy]
        if policies or (isinstance(signal, Blend) and self.support is not None and self.support.by == "target"):
            what = f"{policies[0]}, which is live" if policies else "a blend, which has no top-k of its own"
            raise LimbeckError(f"{self} was given {what}; use readers with weights of their own, and their full rows.")

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        del signal, base, rows
        return live[0] if self.cap is None else live[0].clamp(max=self.cap)

    def __str__(self) -> str:
        heat = "" if self.tau == 1.0 else f", τ={self.tau:g}"
        over = "" if self.support is None else f", {self.support}"
        cut = "" if self.cap is None else f", at most {self.cap:g} a token"
        return f"divergence_loss({self.row.label}{heat}{over}{cut})"


def divergence_loss(
    row: Divergence | str,
    tau: float = 1.0,
    top_k: int | None = None,
    by: str = "target",
    tail: bool = True,
    cap: float | None = None,
) -> DivergenceLoss:
    """Pull the student's law towards a target law; ``tau`` divides both sides' logits (multiply by tau^2 outside).

    A target with a temperature of its own (``teacher.at(2)``) is divided by it too, and the student is not.

    ``top_k`` takes only the k likeliest entries of ``by`` (the ``target`` or the ``student``) and one tail bucket: the
    exact divergence of the coarser laws, a lower bound of the full one, equal at k = V. ``tail=False`` normalises both
    laws within the k instead, which is biased. ``cap`` cuts a token's divergence from above.
    """
    return DivergenceLoss(as_divergence(row), tau, None if top_k is None else Support(top_k, by, tail), cap)
