"""Resuming a run: its method is rebuilt from its folder, and changes since it stopped are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LimbeckError, shown
from ..space.explain import explain
from ..space.method import Method
from ..tasks import Task, names_a_task
from ..user_files import refuse_unnamed
from .build import build_method
from .config import RunConfig
from .storage import checkpoint
from .storage.memory import Memory
from .storage.run_log import RunLog


def rebuilt(out: Path, described: Mapping[str, Any], steps: int | None) -> tuple[RunConfig, Method]:
    """A run's configuration and method, from its ``run.json``."""
    settings = dict(described["config"])
    if steps is not None:
        settings["steps"] = steps
    if settings.get("method") == "custom":
        raise LimbeckError(
            f"{out} ran a method that is not registered, so it cannot be rebuilt from its folder; register it with "
            "@method and run it by name."
        )
    config = RunConfig(**settings)
    refuse_unnamed(out, config.imports)
    method = build_method(config)
    if explain(method) != described["formula"]:
        raise LimbeckError(
            f"{out} ran another objective than {config.method} is now with the arguments it recorded "
            f"({config.arguments or 'none'}): it was given as a value, or its definition has changed; start a new run."
        )
    return config, method


def refuse_fewer(out: Path, steps: int | None) -> None:
    """Refuse a total below the steps that a run has done, which would describe the run wrongly."""
    path = checkpoint.latest(out / "checkpoints")
    done = int(checkpoint.peek(path)["step"]) if path is not None and steps is not None else 0
    if steps is not None and steps < done:
        raise LimbeckError(
            f"{out} has done {done} steps, more than steps={steps}; leave steps out, or give a larger total to train "
            "longer."
        )


def refuse_task_of_python(run: object, name: str, otherwise: str) -> None:
    """Raise where the name of a run's task is not one by which it can be loaded: it was made in Python.

    Args:
        run: the run, for the message.
        name: of its task, as the run recorded it.
        otherwise: what else the user can do, as an imperative.

    Raises:
        LimbeckError: with the option that defines the task.
    """
    if names_a_task(name):
        return
    add = f"add --import FILE.py that defines it as {name}, or " if name.isidentifier() else ""
    raise LimbeckError(f"the task {shown(name)} of {run} was made in Python; {add}{otherwise}.")


def lost_lines(out: Path, config: RunConfig, task: Task, accepted: bool) -> list[str]:
    """Lines that the newest checkpoint covers and the folder lacks; refused unless the user accepts their loss."""
    path = checkpoint.latest(out / "checkpoints")
    if path is None:
        return []
    step, every = int(checkpoint.peek(path)["step"]), config.eval_every
    evaluated = range(0, step + 1, every) if every else (0,)
    lost = RunLog(out).lacks(step, evaluated if config.eval_size and len(task.test) else ())
    if lost and not accepted:
        raise LimbeckError(
            f"{out}: {'; '.join(lost)}, though {path.name} covers it, so curves, totals and a token budget would be "
            "wrong; restore the file, remove checkpoints until one is from before the loss, or go on regardless "
            "(--accept-changes)."
        )
    return lost


def recall(path: Path, state: Mapping[str, Any], process: int) -> Memory:
    """The memory of one process, from the state of a checkpoint.

    Args:
        path: of the checkpoint, for messages.
        state: as ``checkpoint.load`` gave it.
        process: number of the process.

    Raises:
        LimbeckError: where the memory is damaged.
    """
    memories = state.get("memory") or [Memory().to_json()]
    try:
        rank = process % len(memories)
        return Memory.restored(memories[rank], checkpoint.read_stored(path, state), rank)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise LimbeckError(
            f"{path} has a damaged memory ({type(e).__name__}: {e}); remove it to resume from the one before."
        ) from None


def refuse_changes(out: Path, changes: list[str], accepted: bool) -> None:
    """Refuse to go on with inputs that have changed, unless the user accepts that."""
    if changes and not accepted:
        raise LimbeckError(
            f"{out} was begun with other inputs: {'; '.join(changes)}; restore what has changed, start a new run, or "
            "go on with what is there now (--accept-changes, in Python accept_changes=True)."
        )
