"""The folder of a run: reserved and checked before models are loaded."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from ...errors import LimbeckError
from ...processes import is_main_process
from .atomic import remove
from .run_log import read_run

LOCK = ".lock"
"""Lock file of the one process that writes into a folder; the file stays, the lock ends with the process."""

# run.json goes last: a folder whose clearing is cut short is still the folder of a run.
FILES = ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "report.html", "run.json")
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
    """Turn any error of the file system about a folder into one sentence."""
    try:
        yield
    except LimbeckError:
        raise
    except (OSError, ValueError) as e:
        text = str(out) if len(str(out)) <= 80 else f"{str(out)[:77]}..."
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise LimbeckError(f"--out {text}: it cannot be a folder ({reason}); name another.") from None


@contextmanager
def held(out: Path, console: Console | None = None) -> Iterator[None]:
    """Lock the folder against other processes; the lock of the system ends with this process, however it ends.

    Only the main process of a run holds it. On a file system without locks a notice is printed instead.

    Raises:
        LimbeckError: where another process holds it.
    """
    if not is_main_process():
        yield
        return
    lock = FileLock(out / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LimbeckError(
            f"another process is writing into {out}, and two would destroy each other's work; wait for it or stop it, "
            "or name another folder."
        ) from None
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise LimbeckError(
                f"{out} cannot be locked against other processes ({LOCK}: {e.strerror}); make it writable, or "
                "name another folder."
            ) from None
        (console or Console(stderr=True)).print(
            f"note: the file system of {out} has no locks, so make sure yourself that no second run writes into it.",
            style="yellow",
            highlight=False,
            markup=False,
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(out: Path, overwrite: bool, console: Console | None = None) -> Iterator[None]:
    """Create and lock the folder of a new run; folders that an error leaves empty are removed again.

    Raises:
        LimbeckError: where it holds something else, cannot be written to, or another process writes into it.
    """
    refuse_taken(out, overwrite)
    with _made(out):
        made = [p for p in (out, *out.parents) if not p.exists()]  # innermost first
        out.mkdir(parents=True, exist_ok=True)
    ours = False
    try:
        with held(out, console):
            ours = True
            refuse_taken(out, overwrite)  # another process may have begun a run since, and ended it
            yield
    except BaseException:
        if ours and is_main_process():
            _remove_empty(out, made)
        raise


def _remove_empty(out: Path, folders: list[Path]) -> None:
    try:
        if [p.name for p in out.iterdir()] == [LOCK]:
            (out / LOCK).unlink()
        for folder in folders:
            folder.rmdir()
    except OSError:  # a folder that is not empty stays, with those around it
        return


def empty(out: Path) -> bool:
    """Whether a folder is absent, or holds nothing but a lock file."""
    return not out.exists() or all(p.name == LOCK for p in out.iterdir())


def refuse_taken(out: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be used, holds other things than a run, or holds a run that is to be kept.

    Raises:
        LimbeckError: naming it and the remedy.
    """
    refuse_impossible(out)
    with _made(out):
        if empty(out):
            return
    if not (out / "run.json").is_file():
        raise LimbeckError(f"--out {out}: the folder is not empty and holds no run; name a new one.")
    if not overwrite:
        raise LimbeckError(
            f"--out {out}: the folder already holds a run; continue it (limbeck train --resume {out}), replace it "
            "(--overwrite), or name another folder."
        )


def clear(out: Path) -> None:
    """Remove the files and folders of a run, and nothing else."""
    for name in (*FOLDERS, *FILES):
        remove(out / name)


def recorded(out: Path) -> dict[str, Any]:
    """``run.json`` of a run that is to be resumed, with ``config`` (a table) and ``formula`` (a text).

    Raises:
        LimbeckError: where the folder holds no run, or a damaged one. Nothing is changed.
    """
    run = read_run(out)
    if "config" in run and "formula" in run and "inputs" not in run:
        raise LimbeckError(
            f"{out}/run.json does not say which data and models the run had, so an earlier version of Limbeck wrote "
            "it, whose checkpoints this one does not read; start a new run."
        )
    for key, kind, what in (("config", dict, "a table"), ("formula", str, "a text"), ("inputs", dict, "a table")):
        if key not in run:
            raise LimbeckError(f"{out}/run.json has no {key!r}, so it is not of a run of Limbeck; name another folder.")
        if not isinstance(run[key], kind):
            raise LimbeckError(f"{out}/run.json is damaged: {key!r} is not {what}; restore it, or start a new run.")
    if not isinstance(run.get("versions", {}), dict):
        raise LimbeckError(f"{out}/run.json is damaged: 'versions' is not a table; restore it, or start a new run.")
    for name in (*FILES, *FOLDERS):
        _refuse_odd(out / name, folder=name in FOLDERS)
    return run


def _refuse_odd(path: Path, folder: bool) -> None:
    """Refuse a path of a run that cannot be read and replaced; it may be absent."""
    kind = "folder" if folder else "file"
    if not os.path.lexists(path):
        return
    if not (path.is_dir() if folder else path.is_file()):
        link = "is a link that leads nowhere" if path.is_symlink() and not path.exists() else f"is not a {kind}"
        raise LimbeckError(f"{path} {link}, and a run writes a {kind} there; move it away, or start a new run.")
    if not os.access(path, os.R_OK | os.W_OK | (os.X_OK if folder else 0)):
        raise LimbeckError(f"{path} may not be read and written; change its permissions, or start a new run.")
