"""The engine: one loop for every method. ``distill`` is the way in from Python."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..errors import LimbeckError, shown
from ..space.method import Method
from ..space.registry import Recipe
from ..tasks import Task
from ..terminal import screen
from .config import RunConfig, checked, configure
from .measuring import evaluate
from .pipeline import run_pipeline
from .run import Result, resume, train
from .storage.run_folder import folder_of

__all__ = ["Result", "RunConfig", "configure", "distill", "evaluate", "resume", "run_pipeline", "train"]


def distill(
    method: str | Method | Recipe,
    *,
    student: str | Path | PreTrainedModel = "embedded",
    teacher: str | Path | PreTrainedModel | None = None,
    ref: str | Path | PreTrainedModel | None = None,
    task: str | Path | Task = "two_digit_sums",
    steps: int = 100,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train a student by any method.

    Args:
        method: a registered name or recipe (then ``settings`` may hold its arguments), or a ``Method`` of your own.
        student, teacher, ref: a model folder, a hub name, ``"embedded"``, or a Hugging Face model object whose
            ``name_or_path`` has a tokenizer.
        task: a reasoning-gym data set, a JSONL file, a dataset folder, a preset, or a Task object.
        steps: optimiser batches.
        out: folder of the run; default ``runs/METHOD-DATE``.
        overwrite: replace a run that the folder holds.
        quiet: no progress on standard error.
        **settings: fields of ``RunConfig`` (``lr``, ``prompts``, ``max_tokens`` ...) and arguments of the method.

    Raises:
        LimbeckError: one sentence that names the field, the value and the remedy.
    """
    # ``Result.student`` is a path, and a path is a natural thing to give.
    named: dict[str, Any] = {"student": student, "teacher": teacher, "ref": ref, "task": task}
    named = {k: str(v) if isinstance(v, Path) else v for k, v in named.items()}
    _refuse_strangers(named)
    method = method.name if isinstance(method, Recipe) else method
    models = {role: x for role, x in named.items() if isinstance(x, PreTrainedModel)}
    texts = {k: v if isinstance(v, str | None) else _name(v) for k, v in named.items()}
    values = {**texts, "steps": steps, **settings}
    value = None
    if isinstance(method, Method):
        unknown = sorted(set(values) - set(RunConfig.model_fields))
        if unknown:
            raise LimbeckError(f"unknown setting {unknown[0]!r}: a method value takes its arguments when it is built.")
        value, config = method, checked({"method": method.name or "custom", **values})
    else:
        config = configure(method, values)
    folder = (
        folder_of(out) if out not in (None, "") else Path("runs") / f"{config.method}-{datetime.now():%Y%m%d-%H%M%S}"
    )
    command = f"lb.distill({config.method!r}, student={texts['student']!r}, teacher={texts['teacher']!r}, ...)"
    return train(
        config,
        folder,
        command=command,
        overwrite=overwrite,
        console=screen(quiet=True) if quiet else None,
        method=value,
        models=models,
        task=named["task"] if not isinstance(named["task"], str) else None,
    )


_TASK = ("name", "serves", "train", "test", "verify", "responses")


def _refuse_strangers(named: Mapping[str, Any]) -> None:
    """Refuse objects that are neither a name nor what a name would give."""
    for role, x in named.items():
        if role != "task" and not isinstance(x, str | PreTrainedModel | None):
            raise LimbeckError(
                f"{role}={shown(x)} is not a model; give a folder, a hub name, or a Hugging Face model "
                "(PreTrainedModel; of a PEFT model, merge_and_unload())."
            )
    task = named["task"]
    if inspect.isclass(task):
        raise LimbeckError(f"task={shown(task)} is a class; give an object of it: task={task.__name__}(...).")
    plays = "episodes" in getattr(task, "serves", ())
    lacks = [name for name in (*_TASK, *(["open"] if plays else [])) if not hasattr(task, name)]
    if lacks and not isinstance(task, str):
        raise LimbeckError(
            f"task={shown(task)} is not a task, because it has no {lacks[0]!r}; give a name, a file, or an object "
            "with what limbeck.tasks.Task asks for."
        )


def _name(x: Any) -> str:
    return str(getattr(x, "name_or_path", "") or getattr(x, "name", "") or type(x).__name__)
