"""Divergences made of other divergences: a mixture of the two KLs, and the clip per entry of OPSD."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import LimbeckError
from ..lazy_torch import Tensor, torch
from .divergence import Divergence, fkl, rkl


@dataclass(frozen=True)
class KLMix(Divergence):
    """lambda RKL + (1 - lambda) FKL per token (arXiv:2605.16826); a sum of f-divergences is an f-divergence."""

    lam: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise LimbeckError(
                f"kl_mix(lam={self.lam}): the weight is out of range; give one between 0 (fkl) and 1 (rkl)."
            )

    @property
    def label(self) -> str:
        return f"kl_mix({self.lam:g})"

    def _mix(self, reverse: Tensor, forward: Tensor) -> Tensor:
        return self.lam * reverse + (1 - self.lam) * forward

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return self._mix(rkl.cells(logq, logp), fkl.cells(logq, logp))

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        return self._mix(rkl.flow(logq, logp), fkl.flow(logq, logp))

    def generator(self, log_u: Tensor) -> Tensor:
        return self._mix(rkl.generator(log_u), fkl.generator(log_u))

    def slope(self, log_u: Tensor) -> Tensor:
        return self._mix(rkl.slope(log_u), fkl.slope(log_u))

    def potential(self, log_u: Tensor) -> Tensor:
        return self._mix(rkl.potential(log_u), fkl.potential(log_u))


@dataclass(frozen=True)
class EntryClip(Divergence):
    """``sum_v min(cell_v, cap)``: the share of each vocabulary entry in a divergence, clipped before the sum.

    This is the pointwise clip of OPSD (arXiv:2601.18734 v3). Entries at the cap give no gradient. For forward KL these
    are the entries whose probability the teacher would raise most, so **a step can increase the divergence** (a test
    holds a counter-example). It is no f-divergence and has no sampled form; prefer the clip per token,
    ``divergence_loss(fkl, cap=...)``.
    """

    of: Divergence
    cap: float

    def __post_init__(self) -> None:
        if not (self.cap > 0 and math.isfinite(self.cap)):
            raise LimbeckError(
                f"entry_clip(cap={self.cap}): the cap of an entry must be positive and finite; give for instance 0.05."
            )
        if type(self.of).cells is Divergence.cells:
            raise LimbeckError(
                f"entry_clip({self.of.label}): {self.of.label} is no sum over vocabulary entries, so they cannot be "
                "clipped; use a cap per token (token_clip), or another divergence."
            )

    @property
    def label(self) -> str:
        return f"entry_clip({self.of.label}, {self.cap:g})"

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return self.of.cells(logq, logp).clamp(max=self.cap)

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        # A constant in f' cancels over a whole row, so flow leaves it out. Over the entries below the cap alone it does
        # not cancel, so it is added back.
        zero = logq.new_zeros(1)
        left_out = self.of.slope_at_one - float(self.of.flow(zero, zero))
        flow = self.of.flow(logq, logp) + left_out * logq.exp()
        return torch.where(self.of.cells(logq, logp) > self.cap, torch.zeros_like(flow), flow)

    def slope(self, log_u: Tensor) -> Tensor:
        del log_u
        raise LimbeckError(
            f"{self.label}: a clip per vocabulary entry has no form for sampled tokens; use divergence_loss "
            "with full rows."
        )
