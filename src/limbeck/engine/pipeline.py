"""Pipelines: each stage runs in a folder of its own, and a stopped pipeline goes on in its stage."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import LimbeckError, expect, nearest, quoted
from ..processes import is_main_process
from ..space.pipeline import Pipeline, Stage
from ..space.registry import get
from ..tasks import Task
from ..terminal import screen
from . import inputs
from .aliases import in_our_words
from .build import check_run, name_of, task_object
from .checks import data_names
from .config import RunConfig, configure
from .export import Result, result_of
from .resumption import refuse_changes
from .run import resume, train
from .storage.atomic import write_json
from .storage.run_folder import empty, folder_of, held, recorded, refuse_impossible


@dataclass(frozen=True)
class Planned:
    """A stage that is to be run: its folder, its configuration, and its progress.

    Attributes:
        path: folder of the stage's run.
        config: what to run.
        state: ``new``, ``begun`` or ``done``, at the time of the call.
        inputs: digests of the data and models that it reads, except the student that the stage before leaves.
        task: an object that replaces the name in the configuration.
    """

    path: Path
    config: RunConfig
    state: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    task: Task | None = None


def run_pipeline(
    pipeline: Pipeline,
    out: str | Path,
    *,
    quiet: bool = False,
    console: Console | None = None,
    command: str = "",
    accept_changes: bool = False,
    **settings: Any,
) -> list[Result]:
    """Run the stages, or go on where an earlier call with the same pipeline and folder was stopped.

    Args:
        pipeline: the stages, for instance ``lb.pipelines.sd_zero()``.
        out: folder; stage i runs in ``out/stage-i-METHOD``.
        quiet: no progress on standard error.
        console: where progress goes; default: standard error.
        command: what the user typed, for the reports.
        accept_changes: go on although data or models have changed since the pipeline began (``resume``).
        **settings: for every stage (``student``, ``teacher``, ``task``, ``lr`` ...); a stage's own win. An argument of
            a method goes to the stages whose method takes it. ``task`` may be a Task object here, which every stage
            reads that names no task of its own.

    Raises:
        LimbeckError: before the first stage is run, where a stage's settings are wrong, where a stage lacks a model or
            a task that serves it, or where the folder holds another pipeline.
    """
    expect("the pipeline", pipeline, Pipeline, "give one such as lb.pipelines.sd_zero(), or lb.Pipeline([...])")
    folder = folder_of(out)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    pipeline, settings = _in_our_words(pipeline, settings)
    task = task_object(settings.get("task", ""))
    if task is not None:
        settings = {**settings, "task": name_of(task)}
    stages = _plan(pipeline, folder, settings, task)
    described = {"pipeline": str(pipeline), "settings": {k: str(v) for k, v in settings.items()}}
    _refuse_another(folder, described)
    console = screen(quiet=True) if quiet else screen(console, stderr=True, quiet=not is_main_process())
    refuse_impossible(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, console):
        _claim(folder, described, stages, accept_changes)
        stages = [replace(s, state=_state(s.path, s.config)) for s in stages]  # another process may have gone on
        results = []
        for i, stage in enumerate(stages, 1):
            done = ", done before" if stage.state == "done" else ""
            console.print(f"stage {i} of {len(stages)}: {stage.config.method}{done}", style="bold", highlight=False)
            typed = command or f"stage {stage.path.name} of {pipeline}"
            own: dict[str, Any] = {"command": typed, "console": console, "task": stage.task}
            with _named(i, len(stages), stage.config.method):
                if stage.state == "done":
                    results.append(result_of(stage.path))
                elif stage.state == "begun":
                    results.append(resume(stage.path, accept_changes=accept_changes, **own))
                else:
                    results.append(train(stage.config, stage.path, **own))
    return results


def _in_our_words(pipeline: Pipeline, settings: Mapping[str, Any]) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline and its common settings, with names of other libraries replaced by ours."""
    stages = [Stage(s.method, in_our_words(s.settings, get(s.method).arguments, s.method)) for s in pipeline.stages]
    arguments = sorted({a for stage in stages for a in get(stage.method).arguments})
    return replace(pipeline, stages=tuple(stages)), in_our_words(settings, arguments, "the pipeline")


@contextlib.contextmanager
def _named(i: int, n: int, method: str) -> Iterator[None]:
    """Name the stage in errors that are raised inside."""
    try:
        yield
    except LimbeckError as e:
        raise LimbeckError(f"stage {i} of {n} ({method}): {e}") from e


# ---------------------------------------------------------------- the plan


def _plan(pipeline: Pipeline, folder: Path, settings: Mapping[str, Any], task: Task | None = None) -> list[Planned]:
    """Every stage, each with the student of the stage before; their settings, models and tasks are checked."""
    _refuse_unknown(pipeline, settings)
    stages: list[Planned] = []
    student = settings.get("student", "embedded")
    understood = []
    for i, stage in enumerate(pipeline.stages, 1):
        with _named(i, len(pipeline.unrolled), stage.method):
            understood.append(_understood(stage, settings))
    for i, stage in enumerate(pipeline.unrolled):
        path = folder / f"stage-{i}-{stage.method}"
        own = _fitting(stage, settings, understood[i % len(understood)], frozenset().union(*understood))
        with _named(i + 1, len(pipeline.unrolled), stage.method):
            config = configure(stage.method, {**own, **stage.settings, "student": student})
        own_task = None if "task" in stage.settings else task
        stages.append(Planned(path, config, _state(path, config), task=own_task))
        student = str(path / "student")
    for i, planned in enumerate(stages[: len(pipeline.stages)]):  # the others repeat these
        with _named(i + 1, len(stages), planned.config.method):
            later = ("student",) if i else ()  # the student that the stage before will leave
            _, tasks = check_run(planned.config, task=planned.task, later=later)
            known = inputs.before_loading(planned.config, tasks, later)
        stages[i] = replace(planned, inputs=known)
    return stages


def _refuse_unknown(pipeline: Pipeline, settings: Mapping[str, Any]) -> None:
    """Refuse settings that are neither a run's nor an argument of some stage's method."""
    arguments = {a for stage in pipeline.stages for a in get(stage.method).arguments}
    for stage in pipeline.stages:
        if "student" in stage.settings:
            raise LimbeckError(f"{stage}: a stage's student is what the stage before it left; leave student out.")
    for key in settings:
        if key == "method":
            raise LimbeckError(f"method={settings[key]!r}: the stages of a pipeline name their methods; leave it out.")
        if key not in RunConfig.model_fields and key not in arguments:
            near = nearest(key, [*pipeline.methods, *RunConfig.model_fields, *arguments])
            raise LimbeckError(
                f"unknown setting {quoted(key)}{near}; the stages take "
                f"{', '.join(sorted(arguments)) or 'no arguments'}, and a run "
                f"{', '.join(sorted(RunConfig.model_fields))}."
            )


Entry = tuple[str, str]
"""A table among the settings, and a name in it."""


def _fitting(
    stage: Stage, settings: Mapping[str, Any], own: frozenset[Entry], known: frozenset[Entry]
) -> dict[str, Any]:
    """The settings of one stage, without those that only the methods of other stages understand.

    Args:
        stage: to which they are fitted.
        settings: common to all stages.
        own: entries of tables that this stage's method reads.
        known: entries of tables that the method of some stage reads.
    """
    names = {*RunConfig.model_fields, *get(stage.method).arguments}
    fitting = {k: v for k, v in settings.items() if k in names}
    for table in ("contexts", "others", "datasets"):
        if isinstance(fitting.get(table), Mapping):
            strange = {name for kind, name in known - own if kind == table}
            fitting[table] = {k: v for k, v in fitting[table].items() if k not in strange}
    return fitting


def _understood(stage: Stage, settings: Mapping[str, Any]) -> frozenset[Entry]:
    """The contexts that a stage's method shows, and the further models and data sets that it reads."""
    value = stage.value(settings)
    shown = {("contexts", context.name) for context in value.all_contexts if context.block}
    read = {("datasets", name) for name in data_names(value)}
    return frozenset(shown | read | {("others", role) for role in value.others})


def _state(path: Path, config: RunConfig) -> str:
    """The progress of a stage: ``new``, ``begun`` or ``done``. A run of another method in its folder counts as new."""
    if not (path / "run.json").exists():
        return "new"
    run = recorded(path)
    if run["config"].get("method") != config.method:
        return "new"
    return "done" if run.get("finished") and (path / "student").is_dir() else "begun"


# ---------------------------------------------------------------- the folder


def _claim(folder: Path, described: Mapping[str, Any], stages: Sequence[Planned], accept_changes: bool) -> None:
    """Record the pipeline in its folder, or refuse to go on where its inputs have changed."""
    if not is_main_process():
        return
    _refuse_another(folder, described)
    file = folder / "pipeline.json"
    was = _read(file) if file.exists() else {}
    before = was.get("inputs") if isinstance(was, dict) else None
    before = before if isinstance(before, dict) else {}
    for stage in stages:
        then = before.get(stage.path.name)
        if isinstance(then, dict):
            refuse_changes(folder, inputs.changes(stage.config, then, stage.inputs), accept_changes)
    write_json(file, {**described, "inputs": {s.path.name: s.inputs for s in stages if s.inputs}})


def _refuse_another(folder: Path, now: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another pipeline, or other things."""
    if not is_main_process():
        return
    refuse_impossible(folder)
    file = folder / "pipeline.json"
    if not file.exists():
        if not empty(folder):
            raise LimbeckError(f"{folder} is not empty and holds no pipeline; name a new folder.")
        return
    was = _read(file)
    before = was if isinstance(was, dict) else {}
    if before.get("pipeline") != now["pipeline"]:
        raise LimbeckError(f"{folder} holds another pipeline ({before.get('pipeline')}); name another folder.")
    old, new = before.get("settings"), now["settings"]
    old = old if isinstance(old, dict) else {}
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise LimbeckError(
                f"{folder} holds this pipeline with {key}={old.get(key, 'its default')}, not "
                f"{new.get(key, 'its default')}; give the same settings to go on, or name another folder."
            )


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise LimbeckError(f"{file} is damaged ({e}); restore it, or name another folder.") from None
