"""The folder of a run: taken before anything is loaded, and looked through before anything is made of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import LimbeckError
from .log import read_run

FILES = ("run.json", "metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "report.html")
FOLDERS = ("checkpoints", "student", "adapter", "trackers")


def folder_of(out: object) -> Path:
    """A folder as Python code names it.

    Raises:
        LimbeckError: where it is neither a text nor a path.
    """
    if not isinstance(out, str | os.PathLike):
        raise LimbeckError(f"out={out!r} is not a folder; give a text or a Path.")
    return Path(out)


def refuse_impossible(out: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        LimbeckError: naming it and the reason.
    """
    with _made(out):
        there = next(p for p in (out, *out.parents, Path()) if p.exists())
        if not there.is_dir():
            raise NotADirectoryError(0, f"{there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(0, f"{there} may not be written to")


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """Whatever a file system has against a folder becomes one sentence."""
    try:
        yield
    except (OSError, ValueError) as e:
        text = str(out) if len(str(out)) <= 80 else f"{str(out)[:77]}..."
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise LimbeckError(f"--out {text}: it cannot be a folder ({reason}); name another.") from None


@contextmanager
def claimed(out: Path, overwrite: bool) -> Iterator[None]:
    """The folder is ours inside; what was made for it goes again where an error leaves it empty.

    Raises:
        LimbeckError: where it holds something else, or cannot be written to.
    """
    refuse_impossible(out)
    _refuse_foreign(out, overwrite)
    with _made(out):
        made = [p for p in (out, *out.parents) if not p.exists()]  # innermost first
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # something is in it, and in those around it
            return


def _refuse_foreign(out: Path, overwrite: bool) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "run.json").exists():
        raise LimbeckError(f"--out {out} is not empty and holds no run of Limbeck; name a new folder.")
    if not overwrite:
        raise LimbeckError(
            f"--out {out} holds another run; continue it with --resume {out}, replace it with --overwrite, or name "
            "another folder."
        )


def clear(out: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in (*FILES, *FOLDERS):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def recorded(out: Path) -> dict[str, Any]:
    """``run.json`` of a run that is to go on, with ``config`` (a table) and ``formula`` (a text).

    Raises:
        LimbeckError: where the folder holds no run, or a damaged one. Nothing is changed.
    """
    run = read_run(out)
    for key, kind, what in (("config", dict, "a table"), ("formula", str, "a text")):
        if key not in run:
            raise LimbeckError(f"{out}/run.json has no {key!r}, so it is not of a run of Limbeck; name another folder.")
        if not isinstance(run[key], kind):
            raise LimbeckError(f"{out}/run.json is damaged: {key!r} is not {what}; restore it, or start a new run.")
    for name in FILES:
        if (out / name).exists() and not (out / name).is_file():
            raise LimbeckError(f"{out / name} is not a file, as a run writes it; move it away, or start a new run.")
    for name in FOLDERS:
        if (out / name).exists() and not (out / name).is_dir():
            raise LimbeckError(f"{out / name} is not a folder, as a run writes it; move it away, or start a new run.")
    return run
