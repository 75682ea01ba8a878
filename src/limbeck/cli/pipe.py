"""``limbeck pipeline``: several methods in a row, by name; the same command goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from ..errors import LimbeckError, shown
from ..space.pipeline import PIPELINES, Pipeline, PipelineRecipe, get_pipeline
from ..space.registry import REGISTRY, get
from ..terminal import screen
from .app import is_main_process, stoppable
from .docstrings import Doc, read
from .listing import default_of
from .out import listening, print_json
from .run import Json
from .settings import check_model, check_task, lay, own_imports
from .threads import settle


def pipeline(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The pipeline; without it, all are listed.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Folder, hub name, or 'embedded' (default).", rich_help_panel="Models and task")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder, hub name, or 'embedded'.", rich_help_panel="Models and task")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="JSONL file, data set folder, or a reasoning-gym name.", rich_help_panel="Models and task"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="How many batches of prompts a stage.", rich_help_panel="The run")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run.", rich_help_panel="The run")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pipeline; each stage gets one in it.", rich_help_panel="The run")
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Go on though data, models or templates are not what they were.",
            rich_help_panel="The run",
        ),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Settings in a TOML file.", rich_help_panel="Settings")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting; may be repeated, wins over all.",
            rich_help_panel="Settings",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train in several stages, each starting from the student that the one before left.

    Stopped, the same command goes on in the stage where it was: what is done
    is not done again.

    [bold]Examples[/]

    [cyan]limbeck pipeline[/]
    [cyan]limbeck pipeline sd_zero --student small --task problems.jsonl --out runs/sd-zero[/]
    [cyan]limbeck pipeline opd_then_rl --teacher big --out runs/both --set divergence=fkl --set grpo.steps=200[/]

    [bold]Settings[/]

    Those of a run, for every stage: [cyan]--set lr=1e-5[/]. An argument of a
    method goes to the stages that take it. A method's name before the dot
    sets its stage alone: [cyan]--set grpo.lr=1e-6[/]; in a TOML file that is
    the table [cyan]\\[grpo][/]. The pipeline's own arguments are settings too.
    """
    if name is None:
        _list(as_json)
        return
    plan = get_pipeline(name)
    flags = {"student": student, "teacher": teacher, "task": task, "steps": steps, "seed": seed}
    value, common = asked(plan, flags, config, settings or [])
    for role in ("student", "teacher", "ref"):
        check_model(role, common.get(role))
    check_task(str(common.get("task", "")))
    if out is None:
        raise LimbeckError(f"a pipeline needs a folder: --out runs/{name}; the same command goes on in it.")
    typed = shlex.join(["limbeck", *ctx.find_root().obj])
    silent = quiet or not is_main_process()
    with listening(as_json=as_json, quiet=silent) as console, stoppable(out, "pipeline.json", typed):
        from .. import engine

        settle()
        own = {"accept_changes": True} if accept_changes else {}
        results = engine.run_pipeline(value, out, console=console, command=typed, **own, **common)
    if as_json and is_main_process():
        print_json({"pipeline": name, "out": out, "stages": [dataclasses.asdict(r) for r in results]})


def asked(
    plan: PipelineRecipe, flags: Mapping[str, Any], file: Path | None, pairs: list[str]
) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline that the command line asks for, and the settings of all its stages.

    Args:
        plan: by its name.
        flags: options by field; None means that the option was not given.
        file: of ``--config``.
        pairs: the words of ``--set``.
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
        lay(merged, {**in_our_words(layer, taken, plan.name), **words})
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
    """Every pipeline, with its stages and arguments."""
    if as_json:
        print_json([_facts(plan) for plan in PIPELINES.values()])
        return
    console = screen()
    for plan in PIPELINES.values():
        doc = read(plan.doc)
        console.print(Text.assemble((plan.name, "bold cyan"), f"  {plan.title}", (f"  {plan.paper}", "dim")))
        words = [doc.summary, "", str(plan())]
        words += [f"{n}={default_of(d)}: {doc.arguments.get(n, '')}" for n, d in plan.arguments.items()]
        command = f"limbeck pipeline {plan.name} --student STUDENT{_teacher(plan())} --task TASK --out DIR"
        console.print(Padding(Text("\n".join(words)), (0, 0, 0, 4)))
        console.print(Padding(Text(command, style="cyan"), (0, 0, 1, 4)))


def _teacher(pipeline: Pipeline) -> str:
    """The option for a teacher, where a stage reads one."""
    return " --teacher TEACHER" if any("teacher" in stage.value().roles for stage in pipeline.stages) else ""


def _facts(plan: PipelineRecipe) -> dict[str, Any]:
    doc: Doc = read(plan.doc)
    value = plan()
    return {
        "name": plan.name,
        "title": plan.title,
        "paper": plan.paper,
        "summary": doc.summary,
        "stages": [{"method": s.method, "settings": s.settings} for s in value.stages],
        "arguments": {n: {"default": default_of(d), "help": doc.arguments.get(n)} for n, d in plan.arguments.items()},
    }
