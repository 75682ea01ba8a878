"""Tasks: prompts with a verifier, an environment or written responses.

``base``      the interface of a task; verdicts, episodes, observations
``dataset``   tasks from the user's own data, with ``sources`` (files, folders, the hub), ``jsonl``, ``records``
              (parsing), ``split`` (held-out problems), ``answers`` (comparing answers) and ``rewards`` (own functions)
``gym``       reasoning-gym data sets; ``presets`` has named ones
``calculator``, ``corridor``, ``textworld``, ``retry``   tasks in several turns
``guard``     runs foreign code in a worker process

The names exported here are public.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import user_files as own_files
from ..errors import LimbeckError, nearest, shown
from .base import Environment, Episode, EpisodeDied, Observation, Response, Task, Verdict, reason_of
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
    "task",
]

task = DatasetTask
"""``lb.task(dataset, reward=..., prompt=...)`` makes a task of your own data."""

# Set by load_task or by a preset, and not available as options.
_RESERVED = ("self", "seed", "name", "demonstrate", "options")
_NAMED: dict[str, Callable[..., Task]] = {**PRESETS, Corridor.name: Corridor, TextWorldTask.name: TextWorldTask}
_RETRY, _CALCULATOR = "retry", "calculator"


def available_tasks() -> tuple[str, ...]:
    """Names that :func:`load_task` accepts: presets and environments, then the reasoning-gym data sets."""
    return (*_NAMED, _CALCULATOR, _RETRY, *gym_names())


_EARLIER = {"test_path": "test", "test_fraction": "test_size"}
"""Earlier names of options, which are still accepted."""


def load_task(spec: str | Path | Task, *, seed: int = 0, **options: Any) -> Task:
    """Load a task by name, from a file, from a data set folder or from the hub; a Task is returned as it is.

    Names are looked up in this order: tasks in the files of ``--import``, presets and environments, files
    (``.jsonl``, ``.parquet``, ``.csv``), the data sets of reasoning-gym, folders, and last the hub, if the name has an
    owner (``openai/gsm8k``). Write ``./name`` for a folder that has the name of a task.

    Args:
        spec: for instance ``"two_digit_sums"``, ``"chain_sum"``, ``"problems.jsonl"``, ``"openai/gsm8k"``.
        seed: of generated tasks. The split of data depends on its text alone, unless the option ``seed`` is set.
        **options: for data those of :class:`DatasetTask`; for a reasoning-gym data set those of :class:`GymTask` and
            the fields of the data set's configuration (``min_terms=2``); for ``"retry"`` those of :class:`Retry`, the
            name of the inner task as ``task``, and the inner task's options; for a task function of your own its
            arguments.

    Raises:
        LimbeckError: the task or an option is unknown, or the data cannot be used.
    """
    if not isinstance(spec, str | Path):
        if options:
            raise LimbeckError(
                f"option {next(iter(options))!r} was given with a Task object; pass it where you create the task."
            )
        return spec
    name = str(spec)
    if (own := _of_own(name)) is not None:
        return _built(name, own, seed, options)
    if name in _NAMED:
        _check(name, options, _NAMED[name])
        return _NAMED[name](seed=seed, **options)
    if name == _CALCULATOR:
        # CalculatorTask and GymTask refuse unknown fields of the configuration themselves.
        return CalculatorTask(seed=seed, **options)
    if name == _RETRY:
        return _retry(seed, options)
    if Path(name).suffix not in FILES and name in gym_names():
        return GymTask(name, seed=seed, **options)
    if is_local(name) or (isinstance(spec, str) and "/" in name and on_hub(name)):
        return _of_data(spec, options)
    if isinstance(spec, Path) or "/" in name:
        raise LimbeckError(f"task {name!r} does not exist; check the path.")
    raise LimbeckError(
        f"task {name!r} is unknown{nearest(name, (*available_tasks(), *own_files.imported_names()))}; give a name of "
        f"available_tasks(), a file ({', '.join(FILES)}), a data set folder, OWNER/NAME of the hub, or a task in a "
        "file of --import."
    )


def names_a_task(name: str) -> bool:
    """Whether :func:`load_task` would look for a task of this name: a known one, a path, or OWNER/NAME of the hub."""
    if name in (*_NAMED, _CALCULATOR, _RETRY) or is_local(name) or ("/" in name and on_hub(name)):
        return True
    return _of_own(name) is not None or name in gym_names()  # last, because it imports reasoning-gym


def _of_data(spec: str | Path, options: dict[str, Any]) -> Task:
    known = [p for p in inspect.signature(DatasetTask).parameters if p not in ("dataset", "name")]
    for option in options:
        if option not in (*known, *_EARLIER, "name"):
            raise LimbeckError(
                f"option {option!r} is not one of task {str(spec)!r}{nearest(option, (*known, *_EARLIER))}; it takes "
                f"{', '.join(known)}."
            )
    for earlier, option in _EARLIER.items():
        if earlier in options and option in options:
            raise LimbeckError(f"{option} and {earlier} of task {str(spec)!r} are the same option; give only {option}.")
    if "test_fraction" in options:
        check_size(options["test_fraction"], "test_fraction")
    return DatasetTask(spec, **{_EARLIER.get(option, option): value for option, value in options.items()})


def _of_own(name: str) -> object:
    """The task, or the function that returns one, with this name in a file of ``--import``; None if there is none."""
    own = own_files.imported_value(name) if name.isidentifier() else None
    if own is None or not (inspect.isfunction(own) or hasattr(own, "serves")):
        return None
    if name in available_tasks():
        raise LimbeckError(f"task {name!r} is both a task of Limbeck and a name in your file; rename yours.")
    return own


def _built(name: str, own: Any, seed: int, options: dict[str, Any]) -> Task:
    """Build a task of the user's own; a function gets the options, and the seed if it has an argument ``seed``."""
    if not inspect.isfunction(own):
        return load_task(own, **options)
    _check(name, options, own)
    seeded = {"seed": seed} if "seed" in inspect.signature(own).parameters else {}
    given = {**seeded, **options}
    try:
        inspect.signature(own).bind(**given)
    except TypeError as e:
        raise LimbeckError(f"task {name!r}: {e}; give its arguments with --set task_options.NAME=VALUE.") from None
    try:
        made = own(**given)
    except LimbeckError:
        raise
    except Exception as e:  # of any class, because it is the user's code
        raise LimbeckError(f"task {name!r} cannot be made ({reason_of(e)}); correct its function.") from None
    if not hasattr(made, "serves"):
        raise LimbeckError(f"task {name!r} is a function that returned {shown(made)}; have it return lb.task(...).")
    return made


def _retry(seed: int, options: dict[str, Any]) -> Task:
    """Build a Retry; options that Retry does not have are passed to the inner task, which refuses unknown ones."""
    if "task" not in options:
        raise LimbeckError("task 'retry' needs the option task; give the task to retry, for instance chain_sum.")
    own = {key: options[key] for key in ("turns", "template") if key in options}
    rest = {key: value for key, value in options.items() if key != "task" and key not in own}
    inner = options["task"]
    if not isinstance(inner, str | Path):
        raise LimbeckError(f"task of task 'retry' is {inner!r}; give a name or a path; wrap a Task as Retry(task).")
    if str(inner) == _RETRY:
        raise LimbeckError("task of task 'retry' is 'retry' itself; raise turns instead.")
    return Retry(load_task(inner, seed=seed, **rest), **own)


def _check(name: str, options: Iterable[str], build: Callable[..., Task]) -> None:
    known = [p for p in inspect.signature(build).parameters if p not in _RESERVED]
    for option in options:
        if option not in known:
            raise LimbeckError(
                f"option {option!r} is not one of task {name!r}{nearest(option, known)}; it takes "
                f"{', '.join(known) or 'none'}."
            )
