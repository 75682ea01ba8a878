"""Divergences made of others: a mixture of the two KLs, and the per-entry clip of OPSD."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LimbeckError
from .divergence import Divergence, fkl, rkl


@dataclass(frozen=True)
class KLMix(Divergence):
    """lambda RKL + (1 - lambda) FKL, token by token (arXiv:2605.16826): an f-divergence, as sums of them are."""

    lam: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise LimbeckError(f"kl_mix(lam={self.lam}): a mixture's weight lies between 0 (fkl) and 1 (rkl).")

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
    """``sum_v min(cell_v, cap)``: each vocabulary entry's share of a divergence, cut from above before the sum.

    OPSD's pointwise clip (arXiv:2601.18734 v3). Entries at the cap give no gradient; for forward KL those are the
    entries that the teacher most wants raised, so **the step can increase the divergence** (a test pins a
    counter-example). It is no f-divergence and has no sampled form; prefer
    ``divergence_loss(fkl, cap=...)``, per token.
    """

    of: Divergence
    cap: float

    def __post_init__(self) -> None:
        if not (self.cap > 0 and math.isfinite(self.cap)):
            raise LimbeckError(f"entry_clip(cap={self.cap}): the cap of an entry must be positive and finite.")
        if type(self.of).cells is Divergence.cells:
            raise LimbeckError(
                f"entry_clip({self.of.label}): {self.of.label} is no sum over vocabulary entries, so none can be cut; "
                "use a cap per token (token_clip), or another divergence."
            )

    @property
    def label(self) -> str:
        return f"entry_clip({self.of.label}, {self.cap:g})"

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return self.of.cells(logq, logp).clamp(max=self.cap)

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        # A whole row's constants in f' cancel, and flow leaves them out; of the entries below the cap they do not.
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
