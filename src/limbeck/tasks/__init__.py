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

from .. import user_files as own_files
from ..errors import LimbeckError, nearest, shown
from .base import Environment, Episode, EpisodeDied, Observation, Response, Task, Verdict, open_episode
from .calculator import CalculatorTask
from .corridor import Corridor
from .dataset import DatasetTask
from .guard import Guarded, Limits, Pool
from .gym import GymTask, gym_names
from .presets import PRESETS
from .retry import Retry
from .sources import FILES, is_local, on_hub
from .split import check_size
from .textworld import TextWorldTask

__all__ = [
    "CalculatorTask",
    "Corridor",
    "DatasetTask",
    "Environment",
    "Episode",
    "EpisodeDied",
    "Guarded",
    "GymTask",
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
    "task",
]

task = DatasetTask
"""``lb.task(dataset, reward=..., prompt=...)``: the short way to a task of one's own data."""

# Set by load_task or by a preset, never by the user's options.
_RESERVED = ("self", "seed", "name", "demonstrate", "options")
_NAMED: dict[str, Callable[..., Task]] = {**PRESETS, "corridor": Corridor, "textworld": TextWorldTask}
_RETRY, _CALCULATOR = "retry", "calculator"


def available_tasks() -> tuple[str, ...]:
    """Names that :func:`load_task` knows: our presets and environments, then the reasoning-gym data sets."""
    return (*_NAMED, _CALCULATOR, _RETRY, *gym_names())


_EARLIER = {"test_path": "test", "test_fraction": "test_size"}
"""Options of files under the names that they had before version 0.1."""


def load_task(spec: str | Path | Task, *, seed: int = 0, **options: Any) -> Task:
    """The task of a name, a file of data, a data set folder or a data set of the hub; a Task is passed through.

    Names are looked for in this order: tasks in the files of ``--import``, our own presets and environments, files
    (``.jsonl``, ``.parquet``, ``.csv``), the data sets of reasoning-gym, folders, and last the hub, where the name has
    an owner (``openai/gsm8k``). Write ``./name`` for a folder that is called as a task is.

    Args:
        spec: for instance ``"two_digit_sums"``, ``"chain_sum"``, ``"problems.jsonl"``, ``"openai/gsm8k"``.
        seed: of generated tasks. The split of a file depends on its text alone, unless its own option ``seed`` is set.
        **options: those of :class:`DatasetTask` for data, those of :class:`GymTask` and the fields of its configuration
            for a reasoning-gym data set (``min_terms=2``). ``"retry"`` takes those of :class:`Retry`, the name of the
            inner task as ``task``, and the options of that. A task function of the user's own takes its arguments.

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
    if (own := _of_own(name)) is not None:
        return _built(name, own, seed, options)
    if name in _NAMED:
        _check(name, options, _NAMED[name])
        return _NAMED[name](seed=seed, **options)
    if name == _CALCULATOR:
        # As with GymTask below: it refuses unknown fields of the data set's configuration itself.
        return CalculatorTask(seed=seed, **options)
    if name == _RETRY:
        return _retry(seed, options)
    if Path(name).suffix not in FILES and name in gym_names():
        # GymTask itself refuses unknown fields of the configuration.
        return GymTask(name, seed=seed, **options)
    if is_local(name) or (isinstance(spec, str) and "/" in name and on_hub(name)):
        return _of_data(spec, options)
    if isinstance(spec, Path) or "/" in name:
        raise LimbeckError(f"task {name!r} does not exist: check the path.")
    raise LimbeckError(
        f"task {name!r} is unknown{nearest(name, (*available_tasks(), *own_files.names()))}: give a name of "
        f"available_tasks(), a file ({', '.join(FILES)}), a data set folder, OWNER/NAME of the hub, or a task in a "
        "file of --import."
    )


def _of_data(spec: str | Path, options: dict[str, Any]) -> Task:
    known = [p for p in inspect.signature(DatasetTask).parameters if p not in ("dataset", "name")]
    for option in options:
        if option not in (*known, *_EARLIER, "name"):
            raise LimbeckError(
                f"option {option!r} is not one of task {str(spec)!r}{nearest(option, (*known, *_EARLIER))}: it knows "
                f"{', '.join(known)}."
            )
    for earlier, option in _EARLIER.items():
        if earlier in options and option in options:
            raise LimbeckError(f"{option} and {earlier} of task {str(spec)!r} are one option; give {option} alone.")
    if "test_fraction" in options:
        check_size(options["test_fraction"], "test_fraction")
    return DatasetTask(spec, **{_EARLIER.get(option, option): value for option, value in options.items()})


def _of_own(name: str) -> object:
    """The task, or the function that makes one, which a file of ``--import`` has under a name."""
    own = own_files.named(name) if name.isidentifier() else None
    if own is None or not (inspect.isfunction(own) or hasattr(own, "serves")):
        return None
    if name in available_tasks():
        raise LimbeckError(f"task {name!r} is one of Limbeck's own and a name in your file; give yours another name.")
    return own


def _built(name: str, own: Any, seed: int, options: dict[str, Any]) -> Task:
    """A task of the user's own; a function gets the options, and the run's seed where it has an argument for it."""
    if not inspect.isfunction(own):
        return load_task(own, **options)
    _check(name, options, own)
    seeded = {"seed": seed} if "seed" in inspect.signature(own).parameters else {}
    try:
        made = own(**{**seeded, **options})
    except TypeError as e:
        raise LimbeckError(f"task {name!r}: {e}; give its arguments with --set task_options.NAME=VALUE.") from None
    if not hasattr(made, "serves"):
        raise LimbeckError(f"task {name!r} is a function that returned {shown(made)}; have it return lb.task(...).")
    return made


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
                f"option {option!r} is not one of task {name!r}{nearest(option, known)}: it knows "
                f"{', '.join(known) or 'none'}."
            )
