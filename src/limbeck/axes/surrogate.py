r"""Surrogate losses: functions of the student's log-probs and a detached signal; the only differentiable step.

A surrogate is a function of *live statistics* of the student (the log-prob of the token, or a divergence of its
distribution), which carry gradient, and of detached values. It declares the level of its signal and of its losses,
whether it is linear in its signal, and the live statistics that it needs. It is called on a slice of the batch: a tile
where everything is per token, a micro-batch where a loss depends on a sequence or group.

===================  =======================================================  ==================================
``divergence_loss``  a target distribution; any divergence of the table       KD, GKD, full-vocabulary OPD
``policy``           a signal; reinforce, ratio, clip, cispo                   REINFORCE, OPD, GRPO/DAPO/GSPO, CISPO
``sampled``          log-probs of a target at the sampled token; k2, k3, h(u)  KDRL, reference-KL terms
``contrast``         labels over the members of a group                        DPO, SimPO, f-DPO, list-wise forms
``logistic``         +1 / -1 per sequence                                      BCO, VPD's E-step
===================  =======================================================  ==================================

``divergence_loss`` is in this file, ``policy`` and ``sampled`` are in ``policy_gradient.py``, the others in
``preference.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import LimbeckError, number
from ..lazy_torch import Tensor
from ..math.divergence import Divergence, as_divergence
from ..math.statistic import Distance, LogProb, Statistic, Support
from .expression import Expr, Need
from .leaves import ability, readers_of
from .levels import Level, segment
from .reader import Blend, Reader, TargetReader


@dataclass(frozen=True)
class Rows:
    """The sequences and groups to which a slice of kept tokens belongs.

    Attributes:
        seq_n: int64 ``[n]``, the sequence of each kept token.
        group_B: int64 ``[B]``, the group of each sequence.
    """

    seq_n: Tensor
    group_B: Tensor

    def sum(self, x_n: Tensor) -> Tensor:
        """The sum per sequence, ``[B]``."""
        return segment(x_n, self.seq_n, self.group_B.numel(), "sum")

    def mean(self, x_n: Tensor) -> Tensor:
        """The mean per sequence, ``[B]``; 0 for an empty one."""
        return segment(x_n, self.seq_n, self.group_B.numel(), "mean")


@dataclass(frozen=True)
class Question:
    """A live statistic that a surrogate needs of the student.

    Attributes:
        statistic, support: the statistic, and the entries of the vocabulary that it reads.
        target: the distribution that the student is compared with, at its readers' own temperatures.
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
    """A loss of the student's log-probs and a detached signal."""

    @property
    def signal_level(self) -> Level:
        """The finest level of a signal that it accepts."""
        return Level.TOKEN

    @property
    def loss_level(self) -> Level:
        """The level of its losses."""
        return Level.TOKEN

    @property
    def scope(self) -> Level:
        """The widest level that one of its losses depends on; ``TOKEN`` makes a term separable."""
        return Level.TOKEN

    @property
    def linear(self) -> bool:
        """Whether surrogate(a + b) = surrogate(a) + surrogate(b)."""
        return False

    def questions(self, signal: Expr | TargetReader) -> tuple[Question, ...]:
        """The live statistics that it needs."""
        del signal
        return (Question(LogProb()),)

    @property
    def base(self) -> Expr | None:
        """The detached log-probs that ratios are taken against; None without a ratio."""
        return None

    def with_reader(self, was: Reader, now: Reader) -> Surrogate:
        """The same surrogate with one reader of its base replaced by another."""
        del was, now
        return self

    def needs(self, signal: Expr | TargetReader) -> frozenset[Need]:
        """The readers that it needs in addition to the student as it is now."""
        del signal
        return self.base.needs if self.base is not None else frozenset()

    def check(self, signal: Expr | TargetReader) -> None:
        """Raise LimbeckError where it cannot take this signal."""
        if not isinstance(signal, Expr):
            raise LimbeckError(
                f"{self} takes a signal per {self.signal_level}, but was given the reader {signal}; give it an "
                f"expression such as log_ratio({signal}), or use divergence_loss(...), which takes a reader's whole "
                "distribution."
            )
        if signal.level < self.signal_level:
            raise LimbeckError(
                f"{self} takes one value per {self.signal_level}, but {signal} has one per {signal.level}; reduce it, "
                f"for instance with .over('{self.signal_level}', 'sum')."
            )

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        """Losses ``[units of loss_level]``.

        Args:
            live: one vector ``[n]`` per question, over the kept tokens of the slice.
            signal: ``[n]`` where it takes one value per token, else ``[units of signal_level]``.
            base: the detached base ``[n]`` where there is one.
            rows: the units to which the kept tokens belong.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DivergenceLoss(Surrogate):
    """A divergence of the student's distribution to a target distribution, differentiated through the student.

    ``cap`` clips the divergence of each *token* from above: a token at the cap gives no gradient.
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
                f"{self} compares whole distributions and cannot take {signal}; give it a reader such as teacher, or "
                "use policy(...) or sampled(...) for a signal per token."
            )
        if all(r.weights.in_student and not r.context and r.tau == 1.0 for r in readers_of(signal)):
            raise LimbeckError(
                f"{self} was given {signal}, which is the student itself, so its gradient is zero; name another reader "
                "such as teacher, ref or init, or give it a context, as in student.given(feedback)."
            )
        policies = [r for r in readers_of(signal) if r.is_policy]
        if policies or (isinstance(signal, Blend) and self.support is not None and self.support.by == "target"):
            what = (
                f"{policies[0]}, which is the policy in training"
                if policies
                else "a blend, which has no top-k of its own"
            )
            raise LimbeckError(f"{self} was given {what}; use readers with weights of their own, and their full rows.")

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        del signal, base, rows
        return live[0] if self.cap is None else live[0].clamp(max=self.cap)

    def __str__(self) -> str:
        temperature = "" if self.tau == 1.0 else f", τ={self.tau:g}"
        over = "" if self.support is None else f", {self.support}"
        cut = "" if self.cap is None else f", at most {self.cap:g} a token"
        return f"divergence_loss({self.row.label}{temperature}{over}{cut})"


def divergence_loss(
    row: Divergence | str,
    tau: float = 1.0,
    top_k: int | None = None,
    by: str = "target",
    tail: bool = True,
    cap: float | None = None,
) -> DivergenceLoss:
    """A divergence of the student's distribution to that of a target reader, as a loss.

    ``tau`` divides the logits of both sides (multiply the term by tau^2 where that is wanted). The temperature of a
    target (``teacher.at(2)``) divides its logits in addition, and not those of the student.

    ``top_k`` takes only the k most likely entries of ``by`` (the ``target`` or the ``student``) and one bucket for the
    tail: the exact divergence of the coarser distributions, which is a lower bound of the full one and equal to it at
    k = V. ``tail=False`` normalises both distributions within the k entries instead, which is biased. ``cap`` clips the
    divergence of a token from above.
    """
    return DivergenceLoss(as_divergence(row), tau, None if top_k is None else Support(top_k, by, tail), cap)
