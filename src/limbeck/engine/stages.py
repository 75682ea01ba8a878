"""Running a pipeline: each stage in a folder of its own; a killed pipeline goes on in its stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import LimbeckError
from ..pipeline import Pipeline
from .config import RunConfig, configure
from .files import write_json
from .folder import folder_of, recorded
from .run import Result, resume, train


def run_pipeline(pipeline: Pipeline, out: str | Path, *, quiet: bool = False, **settings: Any) -> list[Result]:
    """Run the stages, or go on where an earlier call with the same pipeline and folder was stopped.

    Args:
        pipeline: the stages.
        out: folder; stage i runs in ``out/stage-i-METHOD``.
        quiet: no progress on standard error.
        **settings: for every stage (``student``, ``teacher``, ``task``, ``lr`` ...); a stage's own win.

    Raises:
        LimbeckError: before the first stage is run, where a stage's settings are wrong, or where the folder holds
            another pipeline.
    """
    folder = folder_of(out)
    configs = _configure(pipeline, folder, settings)
    _claim(folder, pipeline, settings)
    console = Console(quiet=True) if quiet else None
    results = []
    for path, config in configs:
        if (path / "run.json").exists() and recorded(path)["config"].get("method") == config.method:
            results.append(resume(path, console=console))
        else:
            results.append(train(config, path, command=f"stage {path.name} of {pipeline}", console=console))
    return results


def _configure(pipeline: Pipeline, folder: Path, settings: Mapping[str, Any]) -> list[tuple[Path, RunConfig]]:
    """Every stage's folder and configuration; each starts from the student the one before leaves."""
    configs = []
    student = settings.get("student", "embedded")
    for i, stage in enumerate(pipeline.unrolled):
        path = folder / f"stage-{i}-{stage.method}"
        configs.append((path, configure(stage.method, {**settings, **stage.settings, "student": student})))
        student = str(path / "student")
    return configs


def _claim(folder: Path, pipeline: Pipeline, settings: Mapping[str, Any]) -> None:
    described = {"pipeline": str(pipeline), "settings": {k: str(v) for k, v in settings.items()}}
    file = folder / "pipeline.json"
    if file.exists():
        if _read(file) != described:
            raise LimbeckError(f"{folder} holds another pipeline ({file}); name another folder for {pipeline}.")
        return
    if folder.exists() and any(folder.iterdir()):
        raise LimbeckError(f"{folder} is not empty and holds no pipeline; name a new folder.")
    write_json(file, described)


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise LimbeckError(f"{file} is damaged ({e}); restore it, or name another folder.") from None
