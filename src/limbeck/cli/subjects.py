"""From what was typed to models that can be loaded: a run's folder, a model's folder, a hub name or ``embedded``.

Everything here is read from small files, so that a mistake is answered before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import embedded
from ..errors import LimbeckError
from .settings import run_record

MODEL_FILES = ("config.json", "adapter_config.json")
"""One of them is in every model's folder."""


@dataclass(frozen=True)
class Named:
    """A model that was named on the command line.

    Attributes:
        label: what it is called in the output.
        spec: folder or hub name to load.
        checkpoint: of a run, whose weights replace those of ``spec``; None takes ``spec`` as it is.
        run: ``run.json`` of the run that it comes from; empty for a model.
    """

    label: str
    spec: str
    checkpoint: Path | None
    run: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run; empty for a model."""
        return _table(self.run, "config")


def named(word: str) -> Named:
    """The model that a word names: of a run its final student or, while there is none, its newest checkpoint.

    Raises:
        LimbeckError: no such folder, neither a run nor a model in it, or a run without a student.
    """
    from ..tasks.base import found

    folder = found(word, "folder")
    if folder is None:
        _refuse_path(word)
        return Named(word, _spec(word, "student"), None, {})
    if (folder / "run.json").exists():
        return _of_run(word, folder)
    if word != "embedded" and not any((folder / name).is_file() for name in MODEL_FILES):
        runs = sorted(p.parent.name for p in folder.glob("*/run.json"))
        inside = f"; it holds runs, for instance {folder / runs[0]}" if runs else "; name a run or a model"
        raise LimbeckError(f"{word}: the folder is neither a run (run.json) nor a model (config.json){inside}.")
    return Named(word, _spec(word, "student"), None, {})


def beginning(run: Named, word: str) -> Named:
    """The student of a run before training.

    Raises:
        LimbeckError: ``word`` is no run, or its student was an object in memory.
    """
    config = _config_of(run, word, "--before")
    told = _table(_table(_table(run.run, "inputs"), "models"), "student")
    if told.get("by") == "tensors":
        raise LimbeckError(
            f"--before: the student of {word} was an object in memory, so its first weights are on no disk; name a "
            "model folder as the second model."
        )
    spec = str(config.get("student") or "")
    return Named(f"{word} before training ({spec})", _spec(spec, "student"), None, run.run)


def teacher(run: Named, word: str) -> Named:
    """The teacher of a run.

    Raises:
        LimbeckError: ``word`` is no run, or the run has no teacher.
    """
    config = _config_of(run, word, "--teacher")
    spec = config.get("teacher")
    if not isinstance(spec, str) or not spec:
        raise LimbeckError(f"--teacher: the run {word} has no teacher; leave the option out, or name a second model.")
    return Named(f"teacher of {word} ({spec})", _spec(spec, "teacher"), None, run.run)


def chat_of(model: Named, *, teacher: bool) -> str | None:
    """The text of the chat template that the run recorded for a model; None where it recorded none."""
    inputs = _table(model.run, "inputs")
    own = inputs.get("teacher_template") if teacher else None
    text = own or inputs.get("chat_template")
    return text if isinstance(text, str) and text else None


def _of_run(word: str, folder: Path) -> Named:
    run = run_record(folder)
    if not isinstance(run.get("config"), dict):
        raise LimbeckError(f"{word}: its run.json is damaged; restore it, or name {folder / 'student'} as a model.")
    student = folder / "student"
    whole = any((student / name).is_file() for name in MODEL_FILES)
    steps = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.name[5:].isdecimal() and p.is_dir())
    newest = max(steps, key=lambda p: int(p.name[5:]), default=None)
    if whole and (run.get("finished") or newest is None):
        return Named(f"{word}, final student", str(student), None, run)
    if newest is None:
        raise LimbeckError(
            f"{word}: the run has no student yet, because it has written no checkpoint; wait for one (save_every), or "
            f"go on with `limbeck train --resume {word}`."
        )
    label = f"{word}, checkpoint of step {int(newest.name[5:])}"
    return Named(label, _spec(str(run["config"].get("student") or ""), "student"), newest, run)


def _config_of(run: Named, word: str, option: str) -> Mapping[str, Any]:
    if not run.run:
        raise LimbeckError(f"{option}: {word} is a model, not the folder of a run; name a run, or a second model.")
    return run.config


def _spec(name: str, role: str) -> str:
    """What is loaded for a name; the embedded models have one name and two folders."""
    return str(embedded.path(role)) if name == "embedded" else name


def _refuse_path(word: str) -> None:
    """Refuse a word that can only be meant as a folder: hub names are ``name`` or ``owner/name``."""
    from ..tasks.base import found

    if not word.strip():
        raise LimbeckError("a model has an empty name; give a run's folder, a model's folder, or a hub name.")
    owner = word.rpartition("/")[0]
    looks_local = word.startswith(("/", ".", "~")) or word.count("/") > 1 or word.endswith("/")
    if looks_local or (owner and found(owner, "folder") is not None):
        raise LimbeckError(f"{word}: there is no such folder; give a run's folder, a model's folder, or a hub name.")


def _table(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}
