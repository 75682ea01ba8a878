"""Surrogate losses of whole sequences: preferences within a group, and binary classification of sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import LimbeckError, number
from ..lazy_torch import Tensor, torch
from ..math.divergence import Divergence, as_divergence, rkl
from .expression import Expr, ExprLike, expr, replace_reader
from .levels import Level, segment
from .reader import Reader
from .signal import length, logp
from .surrogate import Rows, Surrogate


@dataclass(frozen=True)
class Contrast(Surrogate):
    r"""Cross-entropy between the signal, a distribution over the members of a group, and the softmax of their scores.

    :math:`-\sum_i q_i \log\mathrm{softmax}_i(s_i / \tau - \text{margin}\, q_i)`, with
    :math:`s_i = f'(\pi/\pi_{base})` of the sequence (the log-ratio for reverse KL, which is DPO), or the mean log-prob
    per token where ``length``.
    """

    tau: float
    against: Expr | None
    margin: float
    length: bool
    score: Divergence

    def __post_init__(self) -> None:
        number("tau of contrast (DPO's is 1 / beta)", self.tau, 0)
        number("margin of contrast", self.margin)
        if self.score != rkl:  # the default's slope is known to be log u + 1: no need to import PyTorch for it
            slope = self.score.slope(torch.tensor([0.5, 1.0]))  # raises where a sampled token has no slope
            if slope[0] == slope[1]:
                raise LimbeckError(
                    f"contrast(score={self.score}): its slope is constant, so the gradient would be zero; use rkl."
                )

    @property
    def signal_level(self) -> Level:
        return Level.SEQUENCE

    @property
    def loss_level(self) -> Level:
        return Level.GROUP

    @property
    def scope(self) -> Level:
        return Level.GROUP

    @property
    def linear(self) -> bool:
        return self.margin == 0

    @property
    def base(self) -> Expr | None:
        return self.against

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        assert signal is not None
        log_u_n = live[0] if base is None else live[0] - base
        log_u_B = rows.mean(log_u_n) if self.length else rows.sum(log_u_n)
        logit_B = self.score.slope(log_u_B) / self.tau - self.margin * signal
        groups, G = rows.group_B, int(rows.group_B[-1]) + 1 if rows.group_B.numel() else 0
        top_G = segment(logit_B.detach(), groups, G, "max")
        log_total_G = segment((logit_B - top_G[groups]).exp(), groups, G, "sum").log() + top_G
        return -segment(signal * (logit_B - log_total_G[groups]), groups, G, "sum")

    def __str__(self) -> str:
        parts = [f"τ={self.tau:g}"]
        parts += [f"base={self.against}"] if self.against is not None else []
        parts += [f"margin={self.margin:g}"] if self.margin else []
        parts += ["per token"] if self.length else []
        parts += [f"score={self.score.label}"] if self.score != rkl else []
        return f"contrast({', '.join(parts)})"


@dataclass(frozen=True)
class Logistic(Surrogate):
    r"""Binary classification of sequences by log-ratio: :math:`-\log\sigma(\pm(\beta\log\pi/\pi_{base} - \delta))`.

    The sign is that of the label, +1 or -1. Used by BCO, KTO and the E-step of VPD.
    """

    beta: float
    against: Expr
    shift: Expr

    @property
    def signal_level(self) -> Level:
        return Level.SEQUENCE

    @property
    def loss_level(self) -> Level:
        return Level.SEQUENCE

    @property
    def scope(self) -> Level:
        return Level.SEQUENCE

    @property
    def base(self) -> Expr:
        """The base, with the shift divided evenly over the tokens of a sequence."""
        return self.against + self.shift / (self.beta * length.clip(lo=1.0))

    def with_reader(self, was: Reader, now: Reader) -> Logistic:
        return replace(
            self,
            against=replace_reader(self.against, was, now),
            shift=replace_reader(self.shift, was, now),
        )

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        assert signal is not None
        assert base is not None
        margin_B = self.beta * rows.sum(live[0] - base)
        return -torch.nn.functional.logsigmoid(signal.sign() * margin_B)

    def __str__(self) -> str:
        return f"logistic(β={self.beta:g}, base={self.against}, δ={self.shift})"


def logistic(beta: float, base: Expr, shift: ExprLike = 0.0) -> Logistic:
    """Classify sequences labelled +1 or -1 by beta times their log-ratio to a base, minus a shift (one per batch)."""
    if not (beta > 0 and math.isfinite(beta)):
        raise LimbeckError(
            f"logistic(beta={beta}): the scale of the log-ratio must be positive and finite; give for instance 0.1."
        )
    return Logistic(beta, base, expr(shift))


def contrast(
    tau: float = 1.0,
    base: Reader | None = None,
    margin: float = 0.0,
    length: bool = False,
    score: Divergence | str | None = None,
) -> Contrast:
    """Preferences within a group; DPO is ``contrast(tau=1 / beta, base=ref)`` with the labels (1, 0)."""
    return Contrast(tau, None if base is None else logp(base), margin, length, as_divergence(score or rkl))
