"""``limbeck pipeline``: run several methods in a row, or list the pipelines that have a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from ..errors import LimbeckError, shown
from ..processes import is_main_process
from ..space.pipeline import PIPELINES, Pipeline, PipelineRecipe, get_pipeline
from ..space.registry import REGISTRY, get
from ..terminal import screen
from .docstrings import Doc, parse_docstring
from .exits import stoppable
from .methods import default_of
from .options import MODEL, MODELS_AND_TASK, SETTINGS, TASK, THE_RUN, Json, Quiet, typed_command
from .output import engine_console, print_json
from .settings import check_model, check_task, merge_into, own_imports
from .threads import limit_threads


def pipeline(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The pipeline; without a name, all are listed.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help=f"{MODEL} Default: 'embedded'.", rich_help_panel=MODELS_AND_TASK)
    ] = None,
    teacher: Annotated[str | None, typer.Option(help=MODEL, rich_help_panel=MODELS_AND_TASK)] = None,
    task: Annotated[str | None, typer.Option(help=TASK, rich_help_panel=MODELS_AND_TASK)] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each stage.", rich_help_panel=THE_RUN)] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed; the same seed gives the same run.", rich_help_panel=THE_RUN)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the pipeline, with a folder in it for each stage.", rich_help_panel=THE_RUN),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Continue although data, models or templates have changed.",
            rich_help_panel=THE_RUN,
        ),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Settings in a TOML file.", rich_help_panel=SETTINGS)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting; may be repeated, overrides options and --config.",
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train in several stages; each stage starts from the student of the previous one.

    If it stops, the same command continues where it stopped; finished stages
    are not repeated. Without a name, all pipelines are listed.

    [bold]Examples[/]

    [cyan]limbeck pipeline[/]
    [cyan]limbeck pipeline sd_zero --student small --task problems.jsonl --out runs/sd-zero[/]
    [cyan]limbeck pipeline opd_then_rl --teacher big --out runs/both --set divergence=fkl --set grpo.steps=200[/]

    [bold]Settings[/]

    The settings of a run apply to every stage: [cyan]--set lr=1e-5[/]. An argument
    of a method applies to the stages whose method has it. A method's name and
    a dot set one stage: [cyan]--set grpo.lr=1e-6[/]; in a TOML file that is the
    table [cyan]\\[grpo][/]. The pipeline's own arguments are settings too.
    """
    if name is None:
        _list(as_json)
        return
    plan = get_pipeline(name)
    flags = {"student": student, "teacher": teacher, "task": task, "steps": steps, "seed": seed}
    value, common = pipeline_settings(plan, flags, config, settings or [])
    for role in ("student", "teacher", "ref"):
        check_model(role, common.get(role))
    check_task(str(common.get("task", "")))
    if out is None:
        raise LimbeckError(
            f"a pipeline needs a folder; add --out runs/{name} (the same command continues there after a stop)."
        )
    typed = typed_command(ctx)
    silent = quiet or not is_main_process()
    with engine_console(as_json=as_json, quiet=silent) as console, stoppable(out, "pipeline.json", typed):
        from .. import engine

        limit_threads()
        own = {"accept_changes": True} if accept_changes else {}
        results = engine.run_pipeline(value, out, console=console, command=typed, **own, **common)
    if as_json and is_main_process():
        print_json({"pipeline": name, "out": out, "stages": [dataclasses.asdict(r) for r in results]})


def pipeline_settings(
    plan: PipelineRecipe, flags: Mapping[str, Any], file: Path | None, pairs: list[str]
) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline that the command line describes, and the settings of all its stages.

    Args:
        plan: the pipeline.
        flags: options by field; None means that the option was not given.
        file: of ``--config``.
        pairs: ``KEY=VALUE`` of each ``--set``.
    """
    from ..engine.aliases import in_our_words
    from ..engine.config import load_toml, parse_settings

    taken = sorted({*plan.arguments, *(a for stage in plan().methods for a in get(stage).arguments)})
    merged: dict[str, Any] = {}
    for layer in (
        load_toml(file) if file else {},
        {k: v for k, v in flags.items() if v is not None},
        parse_settings(pairs),
    ):
        tables = {k: v for k, v in layer.items() if k in REGISTRY and isinstance(v, Mapping)}
        words = {k: in_our_words(v, get(k).arguments, k) for k, v in tables.items()}
        merge_into(merged, {**in_our_words(layer, taken, plan.name), **words})
    table = merged.pop("arguments", {})
    if not isinstance(table, Mapping):
        raise LimbeckError(
            f"arguments={shown(table)}: it is a table of the pipeline's arguments; write arguments.name=value."
        )
    merged = {**merged, **table, **own_imports(merged)}
    value = plan(**{k: merged.pop(k) for k in list(merged) if k in plan.arguments})
    stages = {k: merged.pop(k) for k in list(merged) if k in value.methods}
    return value.adjusted(**stages), merged


# ---------------------------------------------------------------- the list


def _list(as_json: bool) -> None:
    """Print every pipeline with its stages and arguments."""
    if as_json:
        print_json([_facts(plan) for plan in PIPELINES.values()])
        return
    console = screen()
    for plan in PIPELINES.values():
        doc = parse_docstring(plan.doc)
        console.print(Text.assemble((plan.name, "bold cyan"), f"  {plan.title}", (f"  {plan.paper}", "dim")))
        words = [doc.summary, "", str(plan())]
        words += [f"{n}={default_of(d)}: {doc.arguments.get(n, '')}" for n, d in plan.arguments.items()]
        command = f"limbeck pipeline {plan.name} --student STUDENT{_teacher(plan())} --task TASK --out DIR"
        console.print(Padding(Text("\n".join(words)), (0, 0, 0, 4)))
        console.print(Padding(Text(command, style="cyan"), (0, 0, 1, 4)))


def _teacher(pipeline: Pipeline) -> str:
    """`` --teacher TEACHER`` if a stage reads a teacher, else an empty string."""
    return " --teacher TEACHER" if any("teacher" in stage.value().roles for stage in pipeline.stages) else ""


def _facts(plan: PipelineRecipe) -> dict[str, Any]:
    doc: Doc = parse_docstring(plan.doc)
    value = plan()
    return {
        "name": plan.name,
        "title": plan.title,
        "paper": plan.paper,
        "summary": doc.summary,
        "stages": [{"method": s.method, "settings": s.settings} for s in value.stages],
        "arguments": {n: {"default": default_of(d), "help": doc.arguments.get(n)} for n, d in plan.arguments.items()},
    }
