"""The engine: one loop for every method. ``distill`` is the way in from Python."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from ..errors import LimbeckError
from ..method import Method
from ..tasks import Task
from .config import RunConfig, checked, configure
from .run import Result, evaluate, resume, train
from .stages import run_pipeline

__all__ = ["Result", "RunConfig", "configure", "distill", "evaluate", "resume", "run_pipeline", "train"]


def distill(
    method: str | Method,
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
        method: a registered name (then ``settings`` may hold its arguments), or a ``Method`` of your own.
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
    folder = Path(out) if out else Path("runs") / f"{config.method}-{datetime.now():%Y%m%d-%H%M%S}"
    command = f"lb.distill({config.method!r}, student={texts['student']!r}, teacher={texts['teacher']!r}, ...)"
    return train(
        config,
        folder,
        command=command,
        overwrite=overwrite,
        console=Console(quiet=True) if quiet else None,
        method=value,
        models=models,
        task=named["task"] if not isinstance(named["task"], str) else None,
    )


def _name(x: Any) -> str:
    return str(getattr(x, "name_or_path", "") or getattr(x, "name", "") or type(x).__name__)
