"""Tasks: prompts with a verifier, and written responses where the data has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import LimbeckError, nearest
from .base import Response, Task, Verdict, found
from .gym import GymTask, gym_names
from .hf import FolderTask
from .jsonl import JsonlTask
from .presets import PRESETS

__all__ = ["FolderTask", "GymTask", "JsonlTask", "Response", "Task", "Verdict", "available_tasks", "load_task"]

# Set by load_task or by a preset, never by the user's options.
_RESERVED = ("self", "dataset", "path", "seed", "name", "demonstrate", "options")


def available_tasks() -> tuple[str, ...]:
    """Names that :func:`load_task` knows: our presets, then the reasoning-gym data sets."""
    return (*PRESETS, *gym_names())


def load_task(spec: str | Path | Task, *, seed: int = 0, **options: Any) -> Task:
    """The task of a name, a ``.jsonl`` file or a data set folder; a Task is passed through.

    A name wins over a folder of the same name in the working directory: write ``./name`` for the folder.

    Args:
        spec: for instance ``"two_digit_sums"``, ``"chain_sum"``, ``"problems.jsonl"``, ``"~/data/maths"``.
        seed: of generated tasks. The split of a file depends on its text alone.
        **options: those of :class:`GymTask`, :class:`JsonlTask` or :class:`FolderTask`; for a reasoning-gym data set
            also the fields of its configuration (``min_terms=2``).

    Raises:
        LimbeckError: unknown task or option (with the nearest name), or data that cannot be used.
    """
    if not isinstance(spec, str | Path):
        if options:
            raise LimbeckError(
                f"option {next(iter(options))!r} was given with a ready Task: set it where you build it."
            )
        return spec
    name = str(spec)
    if name in PRESETS:
        _check(name, options, PRESETS[name])
        return PRESETS[name](seed=seed, **options)
    if name.endswith(".jsonl"):
        _check(name, options, JsonlTask)
        return JsonlTask(name, **options)
    if name in gym_names():
        # GymTask itself refuses unknown fields of the configuration.
        return GymTask(name, seed=seed, **options)
    if found(name, "folder"):
        _check(name, options, FolderTask)
        return FolderTask(name, **options)
    if found(name, "file"):
        raise LimbeckError(f"task {name!r} is a file of another kind: give a .jsonl file or a data set folder.")
    if isinstance(spec, Path) or "/" in name or name.startswith("~"):
        raise LimbeckError(f"task {name!r} does not exist: check the path.")
    raise LimbeckError(
        f"task {name!r} is unknown{nearest(name, available_tasks())}: "
        "give a name of available_tasks(), a .jsonl file or a data set folder."
    )


def _check(name: str, options: Iterable[str], build: Callable[..., Task]) -> None:
    known = [p for p in inspect.signature(build).parameters if p not in _RESERVED]
    for option in options:
        if option not in known:
            raise LimbeckError(
                f"option {option!r} is not one of task {name!r}{nearest(option, known)}: it knows {', '.join(known)}."
            )
