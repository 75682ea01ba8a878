"""``limbeck train``: start a run, continue one, or show what a run would do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LimbeckError
from ..processes import is_main_process
from ..space.method import Method
from .dry_run import dry_run_document, print_sections
from .exits import stoppable
from .options import MODEL, MODELS_AND_TASK, SETTINGS, TASK, THE_RUN, Json, Quiet, typed_command
from .output import engine_console, print_json
from .settings import check, notes_on_defaults, output_folder, run_config, run_record
from .threads import limit_threads

if TYPE_CHECKING:
    from ..engine.config import RunConfig


def train(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The method; `limbeck methods` lists them.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help=f"{MODEL} Default: 'embedded'.", rich_help_panel=MODELS_AND_TASK)
    ] = None,
    teacher: Annotated[str | None, typer.Option(help=MODEL, rich_help_panel=MODELS_AND_TASK)] = None,
    ref: Annotated[
        str | None,
        typer.Option(help="Reference model. Default: the student before training.", rich_help_panel=MODELS_AND_TASK),
    ] = None,
    task: Annotated[str | None, typer.Option(help=TASK, rich_help_panel=MODELS_AND_TASK)] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Number of training steps (batches of prompts). Default: 100.", rich_help_panel=THE_RUN),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed; the same seed gives the same run.", rich_help_panel=THE_RUN)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: runs/NAME-DATE-TIME.", rich_help_panel=THE_RUN)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue the run in this folder.", rich_help_panel=THE_RUN)
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With --resume: continue although data, models or templates have changed.",
            rich_help_panel=THE_RUN,
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in --out.", rich_help_panel=THE_RUN)
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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show models, data, prompts, memory and time; train nothing."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a student with a method; write checkpoints, a report and the trained student to a folder.

    [bold]Examples[/]

    [cyan]limbeck train kdrl --student small --teacher big --task problems.jsonl[/]
    [cyan]limbeck train gkd --config run.toml --set lam=1 --set lora_rank=16[/]
    [cyan]limbeck train kdrl --student small --teacher big --dry-run[/]
    [cyan]limbeck train --resume runs/kdrl-20260102-101500 --steps 400[/]

    [bold]Settings[/]

    The most important ones, with their defaults:

    lr=1e-5          peak learning rate of AdamW
    prompts=32       prompts in each step
    max_tokens=128   maximum length of a response, in tokens
    lora_rank=0      train LoRA adapters of this rank; 0 trains all weights
    precision=no     bf16 or fp16 for mixed precision

    --set overrides the options, which override --config, which overrides the
    defaults. Names from Transformers and TRL (learning_rate, save_steps) work.
    A TOML file has the same names, and the method: [cyan]method = "kdrl"[/].
    The method's own arguments are settings too: [cyan]limbeck explain NAME[/]
    lists them. A dot sets an entry of a table: [cyan]--set task_options.size=500[/].
    A method of your own: [cyan]limbeck train my_method --import FILE.py[/].
    """
    flags = {"student": student, "teacher": teacher, "ref": ref, "task": task, "seed": seed}
    silent = quiet or not is_main_process()
    if resume is not None:
        others = {**flags, "out": out, "config": config, "set": settings or None, "overwrite": overwrite or None}
        others |= {"dry-run": dry_run or None}
        _check_resume(resume, name, others)
        with engine_console(as_json=as_json, quiet=silent) as console, stoppable(resume):
            from .. import engine

            limit_threads()
            result = engine.resume(
                resume, steps=steps, command=typed_command(ctx), console=console, accept_changes=accept_changes
            )
    elif accept_changes:
        raise LimbeckError("--accept-changes only works with --resume DIR; add that, or leave it out.")
    else:
        made = run_config(name, {**flags, "steps": steps}, config, settings or [])
        method = check(made)
        folder = output_folder(out, made.method, overwrite=overwrite)
        if dry_run:
            _dry_run(made, method, as_json, silent)
            return
        with engine_console(as_json=as_json, quiet=silent) as console, stoppable(folder):
            from .. import engine

            limit_threads()
            for sentence in notes_on_defaults(made):
                console.print(sentence, style="dim")
            result = engine.train(
                made, folder, command=typed_command(ctx), overwrite=overwrite, console=console, method=method
            )
    if as_json and is_main_process():
        print_json(dataclasses.asdict(result))


def _dry_run(config: RunConfig, method: Method, as_json: bool, quiet: bool) -> None:
    with engine_console(as_json=as_json, quiet=quiet) as console:
        from ..engine.dry_run import dry_run

        limit_threads()
        for sentence in notes_on_defaults(config):
            console.print(sentence, style="dim")
        found = dry_run(config, method)
        if not as_json:
            print_sections(console, found)
    if as_json and is_main_process():
        print_json(dry_run_document(found))


def _check_resume(folder: Path, name: str | None, others: Mapping[str, Any]) -> None:
    """Refuse a folder without a run, another method than the run's, and options that may not change."""
    from ..tasks.base import found

    if found(folder, "folder") is None:
        raise LimbeckError(f"--resume {folder}: there is no such folder; name the folder of a run.")
    record = run_record(folder)
    if not record:
        raise LimbeckError(f"--resume {folder}: the folder has no readable run.json; name the folder of a run.")
    if name and name != record.get("method", name):
        raise LimbeckError(f"--resume {folder}: that run's method is {record['method']}, not {name}; leave {name} out.")
    for option, value in others.items():
        if value is not None:
            raise LimbeckError(
                f"--{option} cannot be combined with --resume, which uses the run's own settings; only --steps may "
                "change."
            )
