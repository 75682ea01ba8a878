"""The order of prompts: every one once an epoch, shuffled by (seed, epoch); a cursor is all its state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import Prompt


class Feed:
    """Prompts for one process of a run.

    Args:
        prompts: of the task's training split.
        seed: of the run.
        rank, world: this process and how many there are; each takes its own part of every draw.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, rank: int = 0, world: int = 1):
        self.prompts, self.seed, self.rank, self.world = prompts, seed, rank, world
        self.cursor = 0
        self._epoch = -1
        self._order: list[int] = []

    def take(self, n: int) -> list[Prompt]:
        """This process's ``n`` of the next ``n * world`` prompts."""
        places = range(self.cursor + self.rank, self.cursor + n * self.world, self.world)
        self.cursor += n * self.world
        return [self.prompts[self._index(place)] for place in places]

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.prompts))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self.prompts), generator=generator).tolist()
            self._epoch = epoch
        return self._order[offset]
