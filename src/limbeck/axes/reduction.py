"""Reductions: how the units of a term are summed, and the denominator of the sum.

Every term is ``coefficient / Z * sum of share * weight * loss`` over its kept units. Shares and totals come from masks,
offsets and weights and never from losses, so they are known before the first backward pass. Totals are sums over
micro-batches and processes.

``per`` says which units the denominator counts: ``kept`` (those of the term's mask, the default), ``all`` (every scored
token of the record) or ``weight`` (the sum of the weights of the kept units). Two terms share a denominator if and only
if their reduction, their ``per``, and the mask or weight that ``per`` refers to are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LimbeckError, expect, nearest, number
from ..lazy_torch import Tensor, torch
from .levels import Level, Levels

PERS = ("kept", "all", "weight")
"""The values of ``per``."""


@dataclass(frozen=True)
class Reduction:
    """How the units of a term are summed.

    Attributes:
        name: its name in formulas.
        unit: the level whose units count equally.
        average: whether the share of a token is 1/|unit| (a mean within the unit) or 1 (a sum).
        total: a constant in the denominator, or None.
        per_unit: whether the number of units is in the denominator too.
    """

    name: str
    unit: Level
    average: bool = False
    total: float | None = None
    per_unit: bool = True

    def __str__(self) -> str:
        return self.name

    def divisor(self, counted: str) -> str:
        """The denominator in words; ``counted`` says how units are counted, such as ``the number of all``."""
        units = {
            Level.TOKEN: "tokens",
            Level.TURN: "turns",
            Level.SEQUENCE: "sequences",
            Level.GROUP: "groups",
            Level.BATCH: "1",
        }[self.unit]
        if self.total is None:
            return f"{counted} {units}"
        if not self.per_unit:
            return f"{self.total:g}"
        return f"{counted} {units} × {self.total:g}"

    def shares(
        self, kept: Tensor, weight: Tensor, loss_level: Level, per: str, levels: Levels
    ) -> tuple[Tensor, Tensor]:
        """The share of each loss in the sum, and the total Z.

        Args:
            kept: bool ``[size(loss_level)]``, the units that the term keeps.
            weight: ``[size(loss_level)]``.
            loss_level: the level of the surrogate's losses.
            per: one of ``PERS``.
            levels: the levels of the whole batch (``all_sum`` makes totals global).

        Returns:
            share ``[size(loss_level)]`` and Z ``[1]``. Z is 1 where no unit is kept, so that an empty batch gives 0.
        """
        self.refuse_finer_than(loss_level)
        counted = torch.ones_like(weight)
        if per != "all":
            counted = torch.where(kept, weight if per == "weight" else counted, torch.zeros_like(weight))
        unit = max(self.unit, loss_level) if self.unit != Level.BATCH else Level.BATCH
        inside = levels.up(counted, loss_level, unit, "sum")
        share = torch.ones_like(weight)
        if self.average and unit != loss_level:
            size = levels.down(inside, unit, loss_level)
            share = torch.where(
                size > 0, 1 / torch.where(size > 0, size, torch.ones_like(size)), torch.zeros_like(size)
            )
        return share, self._total(inside, unit, loss_level, levels)

    def _total(self, inside: Tensor, unit: Level, loss_level: Level, levels: Levels) -> Tensor:
        if self.total is not None and not self.per_unit:
            return torch.full_like(inside[:1] if inside.numel() else inside.new_ones(1), self.total)
        units = inside if unit == loss_level else (inside > 0).to(inside.dtype)
        total = levels.up(units, unit, Level.BATCH, "sum")
        floor = torch.where(total > 0, total, torch.ones_like(total))  # a sum of weights may lie below 1
        return floor * (self.total if self.total is not None else 1.0)

    def refuse_finer_than(self, loss_level: Level) -> None:
        """Raise LimbeckError where the units are finer than the losses of the surrogate."""
        if self.unit < loss_level:
            raise LimbeckError(
                f"reduction {self.name} counts every {self.unit}, but the surrogate gives one loss per {loss_level}; "
                f"use {'group_mean' if loss_level == Level.GROUP else 'sequence_mean'}."
            )


token_mean = Reduction("token_mean", Level.TOKEN)
"""Sum over tokens, divided by the number of tokens of the global batch (DAPO)."""

turn_mean = Reduction("turn_mean", Level.TURN, average=True)
"""Mean over turns of token means, so that each turn counts equally (TCOD)."""

sequence_mean = Reduction("sequence_mean", Level.SEQUENCE, average=True)
"""Mean over sequences of token means (GRPO, GSPO). It counts sequences with a kept token, as verl does; TRL counts an
empty sequence as 0 in the mean over all of them."""

sequence_sum = Reduction("sequence_sum", Level.SEQUENCE)
"""Mean over sequences (with a kept token) of token sums."""

token_sum = Reduction("token_sum", Level.BATCH, total=1.0, per_unit=False)
"""Sum over tokens, without a denominator (Thinking Machines)."""

group_mean = Reduction("group_mean", Level.GROUP, average=True)
"""Mean over groups of the means within each group (pairs, lists)."""


def _positive(name: str, tokens: int) -> None:
    number(f"the number of tokens that {name}(...) divides by", tokens, 0)


def fixed(length: int) -> Reduction:
    """Mean over sequences of token sums, divided by a constant length (Dr. GRPO, arXiv:2503.20783)."""
    _positive("fixed", length)
    return Reduction(f"fixed({length})", Level.SEQUENCE, total=float(length))


def budget(tokens: int) -> Reduction:
    """Sum over tokens, divided by a constant number of tokens (C3PO)."""
    _positive("budget", tokens)
    return Reduction(f"budget({tokens})", Level.BATCH, total=float(tokens), per_unit=False)


_COUNTED = {"fixed": fixed, "budget": budget}
_NAMED = {r.name: r for r in (token_mean, turn_mean, sequence_mean, sequence_sum, token_sum, group_mean)}


def as_reduction(x: Reduction | str) -> Reduction:
    """A reduction from its name: ``"token_mean"`` ..., ``"fixed(3000)"``, ``"budget(409600)"``.

    Raises:
        LimbeckError: for an unknown name, with the nearest one.
    """
    if isinstance(x, Reduction):
        return x
    expect("reduction", x, str, f"give one of {', '.join(_NAMED)}, or fixed(1000) or budget(1000)")
    name, _, number = x.replace(" ", "").rstrip(")").partition("(")
    if name in _NAMED and not number:
        return _NAMED[name]
    if name in _COUNTED and number.isdigit() and int(number) > 0:
        return _COUNTED[name](int(number))
    known = [*_NAMED, *(f"{n}(1000)" for n in _COUNTED)]
    raise LimbeckError(f"reduction={x!r}: unknown{nearest(x, known)}; use one of {', '.join(known)}.")
