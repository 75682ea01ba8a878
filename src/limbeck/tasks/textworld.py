"""TextWorld: text adventures that are made here, one for each prompt, and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import LimbeckError
from ..types import Prompt
from .base import EpisodeDied, Turns, whole_number, yes_or_no
from .guard import Guarded, Limits, Pool
from .gym import Lazy
from .textworld_game import with_hints

# Increase it when the same options and seed give different games.
_EDITION = 1
_PLAY = Limits(step_s=20.0, start_s=120.0, memory_mb=4096)
# Making a game takes seconds, because a compiler runs.
_MAKE = Limits(step_s=300.0, start_s=120.0, memory_mb=4096, episodes=1)
_INSTRUCTIONS = """You play a text adventure. In each turn, write one command on a line of its own:
look, inventory, go north (south, east, west), examine X, open X, close X, take X, take X from Y, drop X, put X on Y, \
insert X into Y, unlock X with Y, lock X with Y, eat X."""


class TextWorldTask(Turns):
    """Text adventures in a few rooms, whose goal is stated at the start. Needs ``limbeck[textworld]``.

    The command of a turn is its last line, or the text in its last ``<action>...</action>``, in lower case. The reward
    of a turn is the score that it added, as a share of the highest score, so a game that was won has return 1. The goal
    is one quest, so nearly all of the reward comes with the last command.

    Games are made when their prompts are read; this takes seconds for each game that is not in the folder yet. The
    split of a game depends on its text, so no prompt is in both splits. ``prompt.privileged`` holds the walkthrough as
    ``solution``, one command a line.

    Args:
        world_size: rooms.
        quest_length: number of commands of the shortest solution.
        nb_objects: number of objects.
        train_size, test_size: number of prompts of each split, at least 1.
        max_turns: turns after which an episode ends; None means ``5 * quest_length + 5``.
        hints: whether every message lists the commands that are possible now.
        folder: for the games; None means a folder in the user's cache. ``~`` is expanded.
        seed: at least 0; another seed gives other games.

    Raises:
        LimbeckError: an option is out of its range, or TextWorld is not installed. When a prompt is first read:
            TextWorld cannot make a game with these options.
    """

    name = "textworld"
    serves = frozenset({"reward", "feedback", "episodes"})

    def __init__(
        self,
        *,
        world_size: int = 3,
        quest_length: int = 3,
        nb_objects: int = 5,
        train_size: int = 100,
        test_size: int = 20,
        max_turns: int | None = None,
        hints: bool = False,
        folder: str | None = None,
        seed: int = 0,
    ) -> None:
        count = functools.partial(whole_number, self.name)
        kind = {"world_size": world_size, "quest_length": quest_length, "nb_objects": nb_objects}
        self._kind = {field: count(field, value, 1) for field, value in kind.items()}
        self.max_turns = count("max_turns", 5 * quest_length + 5 if max_turns is None else max_turns, 1)
        self.hints = yes_or_no(self.name, "hints", hints)
        self._seed = count("seed", seed, 0)
        sizes = {"train": count("train_size", train_size, 1), "test": count("test_size", test_size, 1)}
        if folder is not None and not isinstance(folder, str | Path):
            raise LimbeckError(f"folder of task {self.name!r} is {folder!r}; give a path.")
        if importlib.util.find_spec("textworld") is None:
            raise LimbeckError(f"task {self.name!r} needs TextWorld; run pip install limbeck[textworld].")
        self.folder = _cache() / "textworld" if folder is None else Path(folder).expanduser()
        here = Path(__file__).with_name("textworld_game.py")
        self._makers, self._players = Pool(f"{here}:Maker", _MAKE), Pool(f"{here}:Play", _PLAY)
        self._about = functools.lru_cache(maxsize=10_000)(self._read)
        self._sizes = sizes
        self.train: Sequence[Prompt] = Lazy(sizes["train"], functools.partial(self._prompt, "train"))
        self.test: Sequence[Prompt] = Lazy(sizes["test"], functools.partial(self._prompt, "test"))

    def open(self, prompt: Prompt) -> Guarded:
        """Start an episode in a worker.

        Raises:
            EpisodeDied: the game did not start.
            LimbeckError: the prompt is not one of this task.
        """
        where = self._where(*self._index(prompt))
        self._about(*self._index(prompt))
        return self._players.open(file=str(where / "game.z8"), max_turns=self.max_turns, hints=self.hints)

    def close(self) -> None:
        """End the workers; new ones start when they are needed."""
        self._makers.close()
        self._players.close()

    def _index(self, prompt: Prompt) -> tuple[str, int]:
        split, _, number = prompt.id.partition("/")
        if not number.isdecimal() or int(number) >= self._sizes.get(split, 0):
            raise LimbeckError(f"prompt {prompt.id!r} is not one of task {self.name!r}; open it with its own task.")
        return split, int(number)

    def _where(self, split: str, index: int) -> Path:
        kind = json.dumps([_EDITION, importlib.metadata.version("textworld"), self._kind, self._seed, split, index])
        return self.folder / hashlib.sha256(kind.encode()).hexdigest()[:24]

    def _read(self, split: str, index: int) -> dict[str, Any]:
        """The description of a game, which is made if it is not in the folder."""
        where = self._where(split, index)
        # The stride gives each (seed, index) of a split its own number, for splits of up to a million games.
        wanted = {"folder": str(where), "split": split, "seed": self._seed * 1_000_003 + index}
        try:
            text = (where / "about.json").read_text(encoding="utf-8")
        except OSError:
            text = self._make(json.dumps(wanted))
        about: dict[str, Any] = json.loads(text)
        return about

    def _make(self, wanted: str) -> str:
        try:
            maker = self._makers.open(**self._kind)
            about = maker.step(wanted).text
            maker.close()
            return about
        except EpisodeDied as death:
            kind = ", ".join(f"{field}={value}" for field, value in self._kind.items())
            raise LimbeckError(
                f"task {self.name!r} with {kind} made no game in {str(self.folder)!r} ({death.reason}): "
                "give a shorter quest, a larger world, or another folder."
            ) from None

    def _prompt(self, split: str, index: int) -> Prompt:
        about = self._about(split, index)
        opening = with_hints(about["opening"], about["admissible"]) if self.hints else about["opening"]
        return Prompt(
            id=f"{split}/{index}",
            messages=({"role": "user", "content": f"{_INSTRUCTIONS}\n\n{opening}"},),
            privileged={"solution": "\n".join(about["walkthrough"])},
            columns={"quest_length": float(len(about["walkthrough"])), "max_score": float(about["max_score"])},
        )


def _cache() -> Path:
    """The user's cache folder for Limbeck."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "limbeck"
