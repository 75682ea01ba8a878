"""Expressions that choose tokens, compare turns or keep a running value: top, draw, cohort, running.

They look at a whole batch (the part of it that *this process* has), so they cannot read the student as it is now. Use
``old``, which the engine scores before the first update.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ..errors import LimbeckError
from ..lazy_torch import Tensor, torch
from .expression import EvalContext, Expr
from .levels import Level, segment


@dataclass(frozen=True)
class Chosen(Expr):
    """True on ``max(1, floor(fraction * N))`` tokens of the batch; ties go to the earlier token.

    The fraction is of the tokens where ``among`` holds. Without such a token, nothing is chosen.
    """

    of: Expr
    fraction: float
    among: Expr | None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise LimbeckError(f"the fraction of the tokens is {self.fraction}; give one above 0 and at most 1.")

    @property
    def level(self) -> Level:
        return Level.TOKEN

    @property
    def scope(self) -> Level:
        return Level.BATCH

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.of,) if self.among is None else (self.of, self.among)

    def evaluate(self, batch: EvalContext) -> Tensor:
        levels = batch.levels
        priority = self.priority(levels.down(self.of.evaluate(batch), self.of.level, Level.TOKEN), batch)
        open_N = torch.ones_like(priority, dtype=torch.bool)
        if self.among is not None:
            open_N = levels.down(self.among.evaluate(batch), self.among.level, Level.TOKEN).bool()
        count = int(open_N.sum())
        chosen = torch.zeros_like(open_N)
        if count:
            places = open_N.nonzero().squeeze(-1)
            order = priority[places].argsort(descending=True, stable=True)
            chosen[places[order[: max(1, int(count * self.fraction))]]] = True
        return chosen

    def priority(self, of_N: Tensor, batch: EvalContext) -> Tensor:
        """The value by which tokens are ordered; larger ones are chosen first."""
        raise NotImplementedError


@dataclass(frozen=True)
class Top(Chosen):
    """The tokens with the largest values."""

    def priority(self, of_N: Tensor, batch: EvalContext) -> Tensor:
        del batch
        return of_N

    def __str__(self) -> str:
        return f"top {self.fraction:g} by {self.of}"


@dataclass(frozen=True)
class Draw(Chosen):
    """Tokens drawn without replacement with probability proportional to their values.

    Gumbel top-k, seeded by the step and the text, so that a resumed run draws the same.
    """

    def priority(self, of_N: Tensor, batch: EvalContext) -> Tensor:
        seed = zlib.crc32(batch.levels.record.ids_L.cpu().numpy().tobytes(), batch.step)
        uniform = torch.rand(of_N.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gumbel = -(-uniform.clamp(min=1e-300).log()).log()
        return of_N.double().clamp(min=1e-8).log() + gumbel.to(of_N.device)  # 1e-8: the release's floor (TIP)

    def __str__(self) -> str:
        return f"{self.fraction:g} drawn by {self.of}"


@dataclass(frozen=True)
class Cohort(Expr):
    """Mean over the turns of a group that have the same position in their sequences (the baseline of RLTF)."""

    of: Expr

    @property
    def level(self) -> Level:
        return Level.TURN

    @property
    def scope(self) -> Level:
        return Level.GROUP

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.of,)

    def evaluate(self, batch: EvalContext) -> Tensor:
        levels = batch.levels
        x_U = levels.down(self.of.evaluate(batch), self.of.level, Level.TURN)
        turn_U, group_U = levels.turn(), levels.record.group_B[levels.record.seq_U]
        longest = int(turn_U.max()) if turn_U.numel() else 1
        cell = group_U * longest + turn_U - 1
        there = levels.holding(Level.TURN)
        x, at = (x_U, cell) if there is None else (x_U[there], cell[there])
        return segment(x, at, levels.size(Level.GROUP) * longest, "mean")[cell]

    def __str__(self) -> str:
        return f"mean over the group at the same turn({self.of})"


@dataclass(frozen=True)
class Running(Expr):
    """A moving average of a value per batch: ``m <- rate m + (1 - rate) x``, starting at the first x.

    The average is part of the run's state. A batch without a unit in ``among`` does not move it; before the first such
    unit it is 0.
    """

    of: Expr
    rate: float
    among: Expr | None

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise LimbeckError(
                f"running(rate={self.rate}): the share of the past must lie in [0, 1); give for instance 0.99."
            )
        if self.of.level != Level.BATCH:
            raise LimbeckError(
                f"running({self.of}): it has one value per {self.of.level}; reduce it with .over('batch', 'mean')."
            )

    @property
    def level(self) -> Level:
        return Level.BATCH

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.of,) if self.among is None else (self.of, self.among)

    def evaluate(self, batch: EvalContext) -> Tensor:
        now = self.of.evaluate(batch)
        x, new = float(now), True
        if self.among is not None:
            there = batch.levels.up(self.among.evaluate(batch), self.among.level, Level.BATCH, "any")
            new = bool(there)

        def moved(m: float | None) -> float | None:
            return m if not new else x if m is None else self.rate * m + (1 - self.rate) * x

        return torch.full_like(now, batch.remember(repr(self), moved) or 0.0)

    def __str__(self) -> str:
        return f"running {self.rate:g}({self.of})"
