"""What a task is: prompts with a verifier, and, where it has them, written responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..types import Prompt


def found(path: str | Path, kind: Literal["file", "folder"]) -> Path | None:
    """The path with ``~`` expanded where such a file or folder is there; what no file system can name is not there."""
    try:
        there = Path(path).expanduser()
        return there if (there.is_file() if kind == "file" else there.is_dir()) else None
    except (OSError, RuntimeError, ValueError):  # a name too long, an unknown user, a zero byte
        return None


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    Attributes:
        reward: reward units, finite; usually 0 to 1.
        correct: whether the answer is right (masks are keyed on this, not on the reward).
        feedback: text a teacher may read (what was expected, what came), or None.
    """

    reward: float
    correct: bool
    feedback: str | None = None


@dataclass(frozen=True)
class Response:
    """A response that the task's data holds.

    Attributes:
        text: the assistant's text.
        label: NaN for a plain demonstration; 1 and 0 for the chosen and the rejected one of a pair.
    """

    text: str
    label: float = float("nan")


class Task(Protocol):
    """Prompts of two disjoint splits and what can be done with them.

    Attributes:
        name: how users and reports call it.
        serves: what it offers besides prompts, a subset of ``{"reward", "responses", "pairs"}``.
        train, test: prompts; no prompt of ``test`` occurs in ``train``.
    """

    name: str
    serves: frozenset[str]
    train: Sequence[Prompt]
    test: Sequence[Prompt]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Judge a response. Only called where ``"reward" in serves``."""
        ...

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:
        """Written responses, best first: one demonstration, or a pair (chosen, rejected)."""
        ...
