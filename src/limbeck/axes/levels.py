"""The levels of units: token < turn < sequence < group < batch.

Values go down (from a sequence to its tokens) implicitly, by broadcasting. They go up by a reduction, which is always
written out. This file and ``reduction`` are the only ones in which an axis is summed away.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from ..errors import LimbeckError, nearest, shown
from ..lazy_torch import Tensor, torch
from ..types import Rollout


class Level(IntEnum):
    """The unit for which there is one value; larger is coarser."""

    TOKEN = 0
    TURN = 1
    SEQUENCE = 2
    GROUP = 3
    BATCH = 4

    def __str__(self) -> str:
        return self.name.lower()


def as_level(x: Level | str) -> Level:
    """A level from its name; a ``Level`` is returned as it is.

    Raises:
        LimbeckError: for an unknown name, with the nearest one.
    """
    if isinstance(x, Level):
        return x
    names = [str(r) for r in Level]
    if not isinstance(x, str) or x.lower() not in names:
        raise LimbeckError(f"{shown(x)} is no unit of text{nearest(x, names)}; use one of {', '.join(names)}.")
    return Level[x.upper()]


HOWS = ("sum", "mean", "std", "min", "max", "any", "all", "first")
"""The reductions by which values go up the levels."""


def _identity(x: Tensor) -> Tensor:
    return x


class Levels:
    """The units of one record as index maps, and the movement of values along them.

    Args:
        record: the rollouts whose units are meant.
        all_sum: adds a tensor over the processes of a distributed run, so that *batch* always means the global batch.
    """

    def __init__(self, record: Rollout, all_sum: Callable[[Tensor], Tensor] = _identity):
        self.record = record
        self.all_sum = all_sum
        self._sizes = {
            Level.TOKEN: record.n_tokens,
            Level.TURN: record.n_turns,
            Level.SEQUENCE: record.n_sequences,
            Level.GROUP: record.n_groups,
            Level.BATCH: 1,
        }

    def size(self, level: Level) -> int:
        """The number of units of a level."""
        return self._sizes[level]

    def index(self, fine: Level, coarse: Level) -> Tensor:
        """int64 ``[size(fine)]``: the coarse unit of each fine unit."""
        steps = {Level.TURN: self.record.turn_N, Level.SEQUENCE: self.record.seq_U, Level.GROUP: self.record.group_B}
        if coarse == Level.BATCH:
            return torch.zeros(self.size(fine), dtype=torch.int64, device=self.record.pos_N.device)
        index = torch.arange(self.size(fine), device=self.record.pos_N.device)
        for level in range(fine + 1, coarse + 1):
            index = steps[Level(level)][index]
        return index

    def down(self, x: Tensor, coarse: Level, fine: Level) -> Tensor:
        """Broadcast ``[size(coarse)]`` to ``[size(fine)]``."""
        return x if coarse == fine else x[self.index(fine, coarse)]

    def up(
        self, x: Tensor, fine: Level, coarse: Level, how: str, where: Tensor | None = None, empty: bool = False
    ) -> Tensor:
        """Reduce ``[size(fine)]`` to ``[size(coarse)]``; nothing reduces to 0 (``any``: False, ``all``: True).

        A unit without a scored token is left out, as in every denominator, unless ``empty`` is set.

        ``std`` is the unbiased one (n - 1), as in TRL and verl, and 0 for a single value.
        """
        index = self.index(fine, coarse)
        there = None if fine == coarse or empty else self.holding(fine, coarse, how)
        if there is not None:
            where = there if where is None else there & where
        if where is not None:
            x, index = x[where], index[where]
        return segment(x, index, self.size(coarse), how, self.all_sum if coarse == Level.BATCH else _identity)

    def holding(self, fine: Level, coarse: Level = Level.BATCH, how: str = "mean") -> Tensor | None:
        """A mask of the units that hold a scored token and so count in a reduction; None where all do.

        A turn without a scored token does not count in a mean, but its reward is part of the sum over its sequence.
        """
        unit = Level.SEQUENCE if fine == Level.TURN and how == "sum" else fine
        if unit == Level.TOKEN or unit == coarse:
            return None
        there = torch.bincount(self.index(Level.TOKEN, unit), minlength=self.size(unit)) > 0
        if bool(there.all()):
            return None
        return there if unit == fine else there[self.index(fine, unit)]

    def to_go(self, x: Tensor, gamma: float, strict: bool, level: Level = Level.TOKEN) -> Tensor:
        """Discounted sum over the rest of the sequence: ``sum_{s >= t} gamma^(s-t) x_s`` (``strict``: s > t only).

        The sum runs over tokens, or over turns where ``level`` is ``TURN``.
        """
        place, padded = self._padded(x, level)
        total = torch.zeros_like(padded[:, 0])
        out = torch.zeros_like(padded)
        for t in range(padded.shape[1] - 1, -1, -1):
            out[:, t] = gamma * total
            total = padded[:, t] + gamma * total
            if not strict:
                out[:, t] = total
        return out[place]

    def position(self) -> Tensor:
        """1-based position of each scored token in its sequence, int64 ``[N]``."""
        return _place(self.record.seq_N, self.record.n_sequences)

    def turn(self) -> Tensor:
        """1-based position of each turn in its sequence, int64 ``[U]``."""
        return _place(self.record.seq_U, self.record.n_sequences)

    def _padded(self, x: Tensor, level: Level) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """``x`` padded to ``[B, T]`` with zeros, and the indices of its units there."""
        seq, at = (self.record.seq_N, self.position()) if level == Level.TOKEN else (self.record.seq_U, self.turn())
        place = (seq, at - 1)
        padded = x.new_zeros(self.record.n_sequences, int(at.max()) if at.numel() else 1)
        padded[place] = x
        return place, padded


def _place(index: Tensor, size: int) -> Tensor:
    """1-based position of each entry among those with the same index; ``index`` must not fall."""
    count = torch.bincount(index, minlength=size)
    return torch.arange(index.numel(), device=index.device) - (count.cumsum(0) - count)[index] + 1


def segment(x: Tensor, index: Tensor, size: int, how: str, all_sum: Callable[[Tensor], Tensor] = _identity) -> Tensor:
    """Reduce values that carry a segment number to ``[size]``; differentiable for ``sum`` and ``mean``.

    Args:
        x: ``[n]`` values.
        index: int64 ``[n]``, the segment of each value.
        size: number of segments.
        how: one of ``HOWS``.
        all_sum: adds over processes (only meaningful for segments that processes share).
    """
    if how in ("min", "max"):
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())  # of a mask: 0 and 1
        start = torch.zeros(size, dtype=x.dtype, device=x.device)
        ends = start.scatter_reduce(0, index, x, "amin" if how == "min" else "amax", include_self=False)
        return ends if _alone(all_sum, x) else _extreme(ends if x.numel() else None, how, all_sum, start)
    if how == "first":
        if not _alone(all_sum, x):
            raise LimbeckError(
                "over('batch', 'first') is not defined for a batch that several processes share; use 'mean' or 'max', "
                "or run one process."
            )
        place = torch.searchsorted(index, torch.arange(size, device=index.device))
        there = place < index.numel()
        there[there.clone()] = index[place[there]] == torch.arange(size, device=index.device)[there]
        out = torch.zeros(size, dtype=x.dtype, device=x.device)
        out[there] = x[place[there]]
        return out
    if how in ("any", "all"):
        hits = _add(x.bool() if how == "any" else ~x.bool(), index, size, torch.int64)
        return all_sum(hits) > 0 if how == "any" else all_sum(hits) == 0
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    # In float64, so that the mean of equal numbers is that number, and a group with equal rewards has no advantage.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    total = all_sum(_add(x, index, size, wide))
    if how == "sum":
        return total.to(dtype)
    count = all_sum(_add(torch.ones_like(x), index, size, wide))
    mean = total / count.clamp(min=1)
    if how == "mean":
        return mean.to(dtype)
    spread = all_sum(_add((x.to(wide) - mean[index]).square(), index, size, wide))
    return (spread / (count - 1).clamp(min=1)).sqrt().to(dtype)


def _alone(all_sum: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether no other process has a part of the batch."""
    return all_sum is _identity or int(all_sum(torch.ones(1, dtype=torch.int64, device=x.device))) == 1


def _extreme(own: Tensor | None, how: str, all_sum: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
    """The smallest or largest of one number per process, found with sums only; ``None`` is a process without a number.

    Doubles are ordered like whole numbers of 64 bits once the bits of the negative ones are inverted. So the largest is
    found bit by bit, each time by asking whether any process has a number that is as large.
    """
    sign, every = 1 << 63, (1 << 64) - 1
    key = -1
    if own is not None:
        bits = struct.unpack(">Q", struct.pack(">d", float(own) if how == "max" else -float(own)))[0]
        key = bits ^ every if bits & sign else bits | sign
    found = 0
    for bit in reversed(range(64)):
        tried = found | 1 << bit
        if int(all_sum(torch.tensor([int(key >= tried)], device=zero.device))) > 0:
            found = tried
    if found == 0:  # no process has a number
        return zero
    bits = found ^ sign if found & sign else found ^ every
    value = struct.unpack(">d", struct.pack(">Q", bits))[0]
    return torch.full_like(zero, value if how == "max" else -value)


def _add(x: Tensor, index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(size, dtype=dtype, device=x.device).index_add(0, index, x.to(dtype))
