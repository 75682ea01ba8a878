"""Run Python files of the user with methods, parts, tasks and rewards: ``--import FILE.py``.

Methods register themselves with a decorator; tasks and rewards are found by their names in the file
(``imported_value``). Code runs only if the user names its file: a run's folder records its files, and resuming the run
asks the user to name them again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from .errors import LimbeckError, shown

_RUN: dict[str, str] = {}
"""Files that ran in this process: the path as typed, by absolute path."""

_NOT_THE_USERS = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(__file__).parent,
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    )
)
"""Folders with code of this library, of Python and of installed packages."""

_MODULES: dict[str, ModuleType] = {}
"""The modules of the same files, by absolute path."""


def run_file(file: object) -> str:
    """Run a Python file once, as a module of its own, and return its absolute path.

    Raises:
        LimbeckError: there is no such file, or its code raises an exception.
    """
    if not isinstance(file, str | Path):
        raise LimbeckError(f"imports={shown(file)} is not a path; give paths of Python files.")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise LimbeckError(f"--import {shown(str(file))}: there is no such Python file; give the path of a FILE.py.")
    path = path.resolve()
    if str(path) in _RUN:
        return str(path)
    name = f"limbeck_import_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up the module
    sys.path.insert(0, str(path.parent))  # files next to it can be imported, as when Python runs a file
    try:
        spec.loader.exec_module(module)
    except LimbeckError as e:
        del sys.modules[name]
        raise LimbeckError(f"--import {file}: {e}") from None
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        frames = [f for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(e, "lineno", None)
        said = next(iter(str(e).strip().splitlines()), "no message").rstrip(".")
        raise LimbeckError(
            f"--import {file}{f', line {line}' if line else ''}: it raises {type(e).__name__} ({said}); correct it."
        ) from None
    finally:
        sys.path.remove(str(path.parent))
    _RUN[str(path)] = str(file)
    _MODULES[str(path)] = module
    return str(path)


def place_of(error: BaseException) -> str:
    """``line 3 of mine.py``, the innermost place in the user's own code where an error was; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*_NOT_THE_USERS, "<")):
            return f"line {frame.lineno} of {Path(frame.filename).name}"
    return ""


def run_files(files: object) -> tuple[str, ...]:
    """Run some files in order; see ``run_file``."""
    several = [files] if isinstance(files, str | Path) else files
    if not isinstance(several, Iterable):
        raise LimbeckError(f"imports={shown(files)} is not a list of files; give imports=['FILE.py'].")
    return tuple(run_file(file) for file in several)


def imported_value(name: str) -> object:
    """The value of a top-level name in the files that ran; None if no file has the name.

    Such a name selects a task or a reward function of the user: ``--task mine``, ``--set task_options.reward=mine``.

    Raises:
        LimbeckError: two files define the name with different values.
    """
    have = {path: getattr(module, name) for path, module in _MODULES.items() if hasattr(module, name)}
    if len({id(value) for value in have.values()}) > 1:
        files = " and ".join(_RUN[path] for path in have)
        raise LimbeckError(f"{name!r} means different things in {files}; rename one.")
    return next(iter(have.values()), None)


def imported_names() -> tuple[str, ...]:
    """The public top-level names of the files that ran."""
    return tuple(name for module in _MODULES.values() for name in vars(module) if not name.startswith("_"))


def refuse_unnamed(out: Path, files: Iterable[str]) -> None:
    """Raise if a run was started with files that the user has not named again.

    Raises:
        LimbeckError: naming the options to add.
    """
    lacking = [file for file in files if file not in _RUN]
    if lacking:
        again = " ".join(f"--import {file}" for file in lacking)
        raise LimbeckError(
            f"{out} was run with code of your own ({', '.join(Path(f).name for f in lacking)}), which runs only if you "
            f"name it again; add {again}."
        )


def ran() -> tuple[str, ...]:
    """The absolute paths of the files that ran in this process."""
    return tuple(_RUN)


def typed() -> str:
    """The ``--import`` options of this process, for commands that messages suggest."""
    return "".join(f" --import {file}" for file in _RUN.values())
