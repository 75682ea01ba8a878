"""Find the model that a word on the command line names: a run's folder, a model's folder, a hub name or ``embedded``.

Only small files are read here, so that mistakes are reported before a model is loaded.
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
"""Every model's folder has one of them."""


@dataclass(frozen=True)
class NamedModel:
    """A model that was named on the command line.

    Attributes:
        label: its name in the output.
        spec: folder or hub name to load.
        checkpoint: of a run; its weights replace those of ``spec``. None keeps the weights of ``spec``.
        run: ``run.json`` of the run that the model comes from; empty if it comes from none.
    """

    label: str
    spec: str
    checkpoint: Path | None
    run: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run; empty if the model comes from none."""
        return _table(self.run, "config")


def find_model(word: str) -> NamedModel:
    """The model that a word names; for a run, its final student or, if there is none yet, its newest checkpoint.

    Raises:
        LimbeckError: there is no such folder, the folder holds neither a run nor a model, or the run has no student.
    """
    from ..tasks.base import found

    folder = found(word, "folder")
    if folder is None:
        _refuse_path(word)
        return NamedModel(word, _spec(word, "student"), None, {})
    if (folder / "run.json").exists():
        return _of_run(word, folder)
    if word != "embedded" and not any((folder / name).is_file() for name in MODEL_FILES):
        runs = sorted(p.parent.name for p in folder.glob("*/run.json"))
        inside = f"; it holds runs, for instance {folder / runs[0]}" if runs else "; name a run or a model"
        raise LimbeckError(f"{word}: the folder holds neither a run (run.json) nor a model (config.json){inside}.")
    return NamedModel(word, _spec(word, "student"), None, {})


def student_before_training(run: NamedModel, word: str) -> NamedModel:
    """The student of a run before training.

    Raises:
        LimbeckError: ``word`` is not a run, or its student was an object in memory.
    """
    config = _config_of(run, word, "--before")
    recorded = _table(_table(_table(run.run, "inputs"), "models"), "student")
    if recorded.get("by") == "tensors":
        raise LimbeckError(
            f"--before: the student of {word} was an object in memory, so its first weights were not saved; name a "
            "model folder as the second model."
        )
    spec = str(config.get("student") or "")
    return NamedModel(f"{word} before training ({spec})", _spec(spec, "student"), None, run.run)


def teacher_of(run: NamedModel, word: str) -> NamedModel:
    """The teacher of a run.

    Raises:
        LimbeckError: ``word`` is not a run, or the run has no teacher.
    """
    config = _config_of(run, word, "--teacher")
    spec = config.get("teacher")
    if not isinstance(spec, str) or not spec:
        raise LimbeckError(f"--teacher: the run {word} has no teacher; leave the option out, or name a second model.")
    return NamedModel(f"teacher of {word} ({spec})", _spec(spec, "teacher"), None, run.run)


def chat_template_of(model: NamedModel, *, teacher: bool) -> str | None:
    """The chat template that the run recorded for a model, as text; None if it recorded none."""
    inputs = _table(model.run, "inputs")
    own = inputs.get("teacher_template") if teacher else None
    text = own or inputs.get("chat_template")
    return text if isinstance(text, str) and text else None


def _of_run(word: str, folder: Path) -> NamedModel:
    run = run_record(folder)
    if not isinstance(run.get("config"), dict):
        raise LimbeckError(f"{word}: its run.json is damaged; restore it, or name {folder / 'student'} as a model.")
    student = folder / "student"
    complete = any((student / name).is_file() for name in MODEL_FILES)
    steps = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.name[5:].isdecimal() and p.is_dir())
    newest = max(steps, key=lambda p: int(p.name[5:]), default=None)
    if complete and (run.get("finished") or newest is None):
        return NamedModel(f"{word}, final student", str(student), None, run)
    if newest is None:
        raise LimbeckError(
            f"{word}: the run has no student yet, because it has written no checkpoint; wait for one (save_every), or "
            f"continue with `limbeck train --resume {word}`."
        )
    label = f"{word}, checkpoint of step {int(newest.name[5:])}"
    return NamedModel(label, _spec(str(run["config"].get("student") or ""), "student"), newest, run)


def _config_of(run: NamedModel, word: str, option: str) -> Mapping[str, Any]:
    if not run.run:
        raise LimbeckError(f"{option}: {word} is a model, not the folder of a run; name a run, or a second model.")
    return run.config


def _spec(name: str, role: str) -> str:
    """The folder or hub name to load; ``embedded`` names two folders, one for each role."""
    return str(embedded.path(role)) if name == "embedded" else name


def _refuse_path(word: str) -> None:
    """Refuse a word that can only be a folder, because hub names are ``name`` or ``owner/name``."""
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
