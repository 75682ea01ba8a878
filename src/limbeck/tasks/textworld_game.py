"""Make and play one TextWorld game. The file is loaded on its own in a guarded worker, and needs ``textworld``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Z-machine commands that act on the session and not in the world; some end it, some write files.
_META = frozenset(
    {"brief", "die", "full", "fullscore", "notify", "noscript", "nouns", "oops", "pronouns", "q", "quit", "recording"}
    | {"replay", "restart", "restore", "save", "score", "script", "superbrief", "transcript", "undo", "unscript"}
    | {"verbose", "verify", "version"}
)
_COMPLAINTS = ("That's not", "You can't", "I beg your pardon", "I didn't", "I only", "You must", "You need", "What do")
_LONGEST_COMMAND = 200
# A hash of a game decides its split, with probability 1/2 each; the chance of 64 misses is negligible.
_TRIES = 64


def side(objective: str) -> str:
    """The split of a game, which depends on its objective alone, so equal prompts are never in both splits."""
    return "test" if hashlib.sha256(objective.encode()).digest()[0] % 2 else "train"


def clean(text: str) -> str:
    """The game's text without the banner, the status line and the menu at its end."""
    text = text.rpartition("$$")[2].partition("\n")[2] if "$$" in text else text
    text = re.sub(r"\n?>\s+-= .*? =-\s*-?\d+/\d+\s*$", "", text)
    text = text.partition("Would you like to RESTART")[0]
    text = re.sub(r"[ \t]+(?=\n|$)|(?<=\n)[ \t]+", "", text)
    return re.sub(r"\n{2,}", "\n\n", text).strip()


def command(text: str) -> str:
    """The command in an assistant turn: the last ``<action>...</action>``, else the last line that is not empty."""
    marked = re.findall(r"<action>(.*?)</action>", text, re.DOTALL)
    lines = [line for line in text.splitlines() if line.strip()]
    last = marked[-1] if marked else lines[-1] if lines else ""
    plain = " ".join(last.lower().encode("ascii", "replace").decode().split())
    return plain.removeprefix(">").strip()[:_LONGEST_COMMAND]


def with_hints(text: str, admissible: list[str]) -> str:
    """The text followed by the commands that are possible now."""
    return f"{text}\n\nPossible commands: {'; '.join(admissible)}"


class Maker:
    """An environment whose actions make games; the text of an observation is the description of a game.

    Args:
        world_size, quest_length, nb_objects: of the games.
    """

    def __init__(self, world_size: int, quest_length: int, nb_objects: int) -> None:
        self.rooms, self.quest, self.objects = world_size, quest_length, nb_objects

    def step(self, text: str) -> dict[str, Any]:
        """Make a game in a folder, unless it is there already; the action is ``{"folder", "split", "seed"}``."""
        wanted = json.loads(text)
        folder = Path(wanted["folder"])
        if not (folder / "about.json").is_file():
            self._make(folder, wanted["split"], wanted["seed"])
        return {"text": (folder / "about.json").read_text(encoding="utf-8")}

    def _make(self, folder: Path, split: str, seed: int) -> None:
        from textworld.generator import compile_game

        game, options = self._game(split, seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            options.path = str(beside / "game.z8")
            compile_game(game, options)
            play = Play(str(beside / "game.z8"), 1, False)
            opening, admissible, most = play.opening, play.admissible, play.most
            play.close()
            about = {"opening": opening, "admissible": admissible, "max_score": most, "walkthrough": list(_steps(game))}
            (beside / "about.json").write_text(json.dumps(about), encoding="utf-8")
            # The rename makes the folder appear complete. If another process was faster, its folder has the same game.
            if not (folder / "about.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
            os.rename(beside, folder)
        except OSError:
            if not (folder / "about.json").is_file():
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _game(self, split: str, seed: int) -> tuple[Any, Any]:
        import textworld
        from textworld.generator import make_game

        for attempt in range(_TRIES):
            options = textworld.GameOptions()
            options.nb_rooms, options.nb_objects, options.quest_length = self.rooms, self.objects, self.quest
            options.seeds = int.from_bytes(hashlib.sha256(f"{split} {seed} {attempt}".encode()).digest()[:4]) % 2**31
            game = make_game(options)
            if side(game.objective) == split:
                return game, options
        raise ValueError(f"no game for the split {split} was found in {_TRIES} tries")

    def close(self) -> None:
        """Do nothing; there is nothing to release."""


def _steps(game: Any) -> list[str]:
    walkthrough = game.metadata["walkthrough"]
    return [str(step) for step in walkthrough]


class Play:
    """One episode of a game.

    Args:
        file: the compiled game.
        max_turns: turns after which the episode ends.
        hints: whether observations list the possible commands.
    """

    def __init__(self, file: str, max_turns: int, hints: bool) -> None:
        import textworld

        wanted = ("feedback", "admissible_commands", "max_score", "score", "won", "lost")
        self._game = textworld.start(file, textworld.EnvInfos(**dict.fromkeys(wanted, True)))
        self._left, self._hints, self._score = max_turns, hints, 0
        state = self._game.reset()
        self.opening = clean(state.feedback)
        self.admissible: list[str] = sorted(state.admissible_commands)
        self.most = int(state.max_score)

    def step(self, text: str) -> dict[str, Any]:
        """Play one command. The reward is the score that it added, as a share of the highest score."""
        self._left -= 1
        words = command(text)
        if not words or words.split()[0] in _META:
            message = f"{words!r} is not a command of this game." if words else "Write a command."
            return self._seen(message, message)
        state, _, over = self._game.step(words)
        message = clean(state.feedback)
        gained, self._score = state.score - self._score, state.score
        self.admissible = sorted(state.admissible_commands or [])
        complaint = message.startswith(_COMPLAINTS) and words not in map(str.lower, self.admissible)
        seen = self._seen(message, message if complaint else None, over=bool(over or state.won or state.lost))
        return {**seen, "reward": gained / max(self.most, 1), "correct": bool(state.won)}

    def _seen(self, message: str, feedback: str | None, over: bool = False) -> dict[str, Any]:
        done = over or self._left <= 0
        text = with_hints(message, self.admissible) if self._hints and not done else message
        return {"text": text, "feedback": feedback, "done": done}

    def close(self) -> None:
        """End the game."""
        self._game.close()
