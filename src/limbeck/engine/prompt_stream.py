"""The order of prompts: each once an epoch, shuffled by (seed, epoch). Its only state is a cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..errors import LimbeckError
from ..types import Prompt


class PromptStream:
    """The training prompts of one process of a run.

    Args:
        prompts: of the task's training split.
        seed: of the run.
        rank, world: number of this process, and how many there are; each takes its own part of every draw.

    Attributes:
        fits: where it is set, a prompt for which it is false is replaced by the next one in the epoch's order, so that
            the cursor, and with it a resumed run, does not depend on how many are left out.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, rank: int = 0, world: int = 1):
        self.prompts, self.seed, self.rank, self.world = prompts, seed, rank, world
        self.fits: Callable[[Prompt], bool] | None = None
        self.cursor = 0
        self._epoch = -1
        self._order: list[int] = []

    def take(self, n: int) -> list[Prompt]:
        """This process's ``n`` of the next ``n * world`` prompts."""
        places = range(self.cursor + self.rank, self.cursor + n * self.world, self.world)
        self.cursor += n * self.world
        return [self._prompt(place) for place in places]

    def _prompt(self, place: int) -> Prompt:
        for further in range(len(self.prompts)):
            prompt = self.prompts[self._index(place, further)]
            if self.fits is None or self.fits(prompt):
                return prompt
        raise LimbeckError("every training prompt is too long for a model's window; shorten them, or lower max_tokens.")

    def _index(self, place: int, further: int = 0) -> int:
        epoch, offset = divmod(place, len(self.prompts))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self.prompts), generator=generator).tolist()
            self._epoch = epoch
        return self._order[(offset + further) % len(self._order)]
