"""Tasks: prompts, with a verifier, an environment or written responses.

``base``      what a task is; verdicts, episodes, observations
``records``   JSONL files and data sets (``jsonl``, ``hf``); ``split`` what is held out; ``answers`` compares answers
``gym``       reasoning-gym data sets; ``presets`` named ones; ``arithmetic`` and ``calculator`` sums, alone and
              with a tool
``corridor``, ``textworld``, ``retry``   several turns
``guard``     foreign code in a process of its own
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import LimbeckError, nearest
from .base import Environment, Episode, EpisodeDied, Observation, Response, Task, Verdict, found, open_episode
from .calculator import CalculatorTask
from .corridor import Corridor
from .guard import Guarded, Limits, Pool
from .gym import GymTask, gym_names
from .hf import FolderTask
from .jsonl import JsonlTask
from .presets import PRESETS
from .retry import Retry
from .textworld import TextWorldTask

__all__ = [
    "CalculatorTask",
    "Corridor",
    "Environment",
    "Episode",
    "EpisodeDied",
    "FolderTask",
    "Guarded",
    "GymTask",
    "JsonlTask",
    "Limits",
    "Observation",
    "Pool",
    "Response",
    "Retry",
    "Task",
    "TextWorldTask",
    "Verdict",
    "available_tasks",
    "load_task",
    "open_episode",
]

# Set by load_task or by a preset, never by the user's options.
_RESERVED = ("self", "path", "seed", "name", "demonstrate", "options")
_NAMED: dict[str, Callable[..., Task]] = {**PRESETS, "corridor": Corridor, "textworld": TextWorldTask}
_RETRY, _CALCULATOR = "retry", "calculator"


def available_tasks() -> tuple[str, ...]:
    """Names that :func:`load_task` knows: our presets and environments, then the reasoning-gym data sets."""
    return (*_NAMED, _CALCULATOR, _RETRY, *gym_names())


def load_task(spec: str | Path | Task, *, seed: int = 0, **options: Any) -> Task:
    """The task of a name, a ``.jsonl`` file or a data set folder; a Task is passed through.

    A name wins over a folder of the same name in the working directory: write ``./name`` for the folder.

    Args:
        spec: for instance ``"two_digit_sums"``, ``"chain_sum"``, ``"problems.jsonl"``, ``"~/data/maths"``.
        seed: of generated tasks. The split of a file depends on its text alone.
        **options: those of :class:`GymTask`, :class:`JsonlTask` or :class:`FolderTask`; for a reasoning-gym data set
            also the fields of its configuration (``min_terms=2``). ``"retry"`` takes those of :class:`Retry`, the
            name of the inner task as ``task``, and the options of that.

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
    if name in _NAMED:
        _check(name, options, _NAMED[name])
        return _NAMED[name](seed=seed, **options)
    if name == _CALCULATOR:
        # As with GymTask below: it refuses unknown fields of the data set's configuration itself.
        return CalculatorTask(seed=seed, **options)
    if name == _RETRY:
        return _retry(seed, options)
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


def _retry(seed: int, options: dict[str, Any]) -> Task:
    """The options that Retry does not know are those of the inner task, which refuses what it does not know either."""
    if "task" not in options:
        raise LimbeckError("task 'retry' needs the option task: give the task to retry, for instance chain_sum.")
    own = {key: options[key] for key in ("turns", "template") if key in options}
    rest = {key: value for key, value in options.items() if key != "task" and key not in own}
    inner = options["task"]
    if not isinstance(inner, str | Path):
        raise LimbeckError(f"task of task 'retry' is {inner!r}, give a name or a path; wrap a Task as Retry(task).")
    if str(inner) == _RETRY:
        raise LimbeckError("task of task 'retry' is 'retry' itself: raise turns instead.")
    return Retry(load_task(inner, seed=seed, **rest), **own)


def _check(name: str, options: Iterable[str], build: Callable[..., Task]) -> None:
    known = [p for p in inspect.signature(build).parameters if p not in _RESERVED]
    for option in options:
        if option not in known:
            raise LimbeckError(
                f"option {option!r} is not one of task {name!r}{nearest(option, known)}: it knows {', '.join(known)}."
            )
