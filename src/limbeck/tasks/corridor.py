"""A walk along a corridor: the smallest task in turns, with a known optimal policy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from ..errors import LimbeckError
from ..types import Prompt
from .base import Observation, Turns, refuse_if_over, whole_number

_MOVES = {"l": -1, "left": -1, "r": 1, "right": 1}


class Corridor(Turns):
    """Cells in a row; each turn moves one cell to the left or to the right, until the goal is reached.

    The last message contains the whole state (``at 2, goal 5``), so a table with a row for each state can be a
    student, and the optimal policy is known: ``r`` below the goal, ``l`` above it. Each pair of a start and a different
    goal is one prompt; the splits are disjoint sets of pairs, drawn with ``seed``. ``prompt.privileged`` holds the
    optimal moves as ``solution``, one a line.

    An action is the first letter or word of the turn: ``l``, ``left``, ``r`` or ``right``, in any case. Anything else,
    and a step into the wall, leaves the position unchanged and uses the turn. Reaching the goal gives reward 1.

    Args:
        cells: at least 2.
        train_size: prompts of the training split; None means all pairs that are not held out.
        test_size: pairs held out, at least 1.
        max_turns: turns after which an episode ends; None means twice the number of cells.
        step_cost: reward units subtracted for every turn, in [0, 1]; the return of the optimal policy is then
            ``1 - step_cost * distance``.
        seed: decides the split; at least 0.

    Raises:
        LimbeckError: an option is out of its range.
    """

    name = "corridor"
    serves = frozenset({"reward", "feedback", "episodes"})

    def __init__(
        self,
        *,
        cells: int = 9,
        train_size: int | None = None,
        test_size: int = 12,
        max_turns: int | None = None,
        step_cost: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.cells = whole_number(self.name, "cells", cells, 2)
        self.max_turns = whole_number(self.name, "max_turns", 2 * cells if max_turns is None else max_turns, 1)
        if isinstance(step_cost, bool) or not isinstance(step_cost, int | float) or not 0 <= step_cost <= 1:
            raise LimbeckError(f"step_cost of task {self.name!r} is {step_cost!r}; give a number from 0 to 1.")
        self.step_cost = float(step_cost)
        pairs = list(itertools.permutations(range(1, cells + 1), 2))
        random.Random(whole_number(self.name, "seed", seed, 0)).shuffle(pairs)
        held_out = whole_number(self.name, "test_size", test_size, 1)
        rest = len(pairs) - held_out
        wanted = whole_number(self.name, "train_size", rest if train_size is None else train_size, min(rest, 1))
        if held_out + wanted > len(pairs) or not wanted:
            raise LimbeckError(
                f"test_size of task {self.name!r} is {held_out} and train_size is {train_size}, but {cells} cells give "
                f"only {len(pairs)} prompts for both; lower them or raise cells."
            )
        self.test: Sequence[Prompt] = tuple(self._prompt(*pair) for pair in pairs[:held_out])
        self.train: Sequence[Prompt] = tuple(self._prompt(*pair) for pair in pairs[held_out : held_out + wanted])

    def open(self, prompt: Prompt) -> CorridorEpisode:
        """Start an episode.

        Raises:
            LimbeckError: the prompt is not one of this task.
        """
        start, goal = self._ends(prompt)
        return CorridorEpisode(start, goal, self.cells, self.max_turns, self.step_cost)

    def _ends(self, prompt: Prompt) -> tuple[int, int]:
        ends = [prompt.columns.get(key) for key in ("start", "goal")]
        if not all(isinstance(cell, float) and cell in range(1, self.cells + 1) for cell in ends):
            raise LimbeckError(f"prompt {prompt.id!r} is not one of task {self.name!r}; open it with its own task.")
        start, goal = (int(cell) for cell in ends if cell is not None)
        return start, goal

    def _prompt(self, start: int, goal: int) -> Prompt:
        text = f"Walk to the goal: write l or r.\n{_place(start, goal)}"
        moves = ("r" if goal > start else "l",) * abs(goal - start)
        return Prompt(
            id=f"{start}-{goal}",
            messages=({"role": "user", "content": text},),
            privileged={"solution": "\n".join(moves)},
            columns={"start": float(start), "goal": float(goal), "distance": float(len(moves))},
        )


class CorridorEpisode:
    """One episode of :class:`Corridor`."""

    def __init__(self, start: int, goal: int, cells: int, max_turns: int, step_cost: float) -> None:
        self._at, self._goal, self._cells, self._left, self._cost = start, goal, cells, max_turns, step_cost

    def step(self, text: str) -> Observation:
        """Move one cell."""
        refuse_if_over(self._at == self._goal or self._left == 0)
        self._left -= 1
        words = text.lower().split()
        move = _MOVES.get(words[0]) if words else None
        feedback = None if move else "write l or r and nothing else"
        before, self._at = self._at, min(max(self._at + (move or 0), 1), self._cells)
        if move and self._at == before:
            feedback = "there is a wall"
        elif abs(self._goal - self._at) > abs(self._goal - before):
            feedback = f"the goal is to the {'right' if self._goal > self._at else 'left'}"
        arrived = self._at == self._goal
        reward = float(arrived) - self._cost
        return Observation(_place(self._at, self._goal), arrived or self._left == 0, reward, arrived, feedback)

    def close(self) -> None:
        """Do nothing; the episode holds no resources."""


def _place(at: int, goal: int) -> str:
    return f"at {at}, goal {goal}"
