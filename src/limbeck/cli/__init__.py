"""The command ``limbeck``: every command's arguments and help. What they do is in the modules beside this one.

Help, ``methods``, ``explain``, ``diff`` and a mistyped command answer in a fraction of a second, because the modules of
this folder import neither PyTorch nor Transformers. Whatever does (the engine, tasks, reports) is imported inside the
function that needs it, after everything that can be refused without it has been refused. Describing a method needs no
PyTorch either: see ``limbeck/lazy_torch.py``.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .app import Commands, version
from .compare import compare
from .listing import methods
from .look import diff, explain
from .measure import evaluate
from .pipe import pipeline
from .report import report
from .run import demo, train
from .sample import sample

__all__ = ["app", "main"]

app = typer.Typer(
    name="limbeck",
    cls=Commands,
    rich_markup_mode="rich",
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def limbeck(
    ctx: typer.Context,
    show_version: bool = typer.Option(
        False, "--version", callback=version, is_eager=True, help="Show the version and stop."
    ),
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="FILE.py",
            help="Run a file of your own first, which registers methods; with any command, may be repeated.",
        ),
    ] = None,
) -> None:
    """Distil language models: every way of training a student from a teacher, from rewards, or from both.

    [bold]Try it[/]

    [cyan]limbeck demo[/]              a small student learns from a small teacher

    [bold]Choose a method[/]

    [cyan]limbeck methods[/]           what there is, and what each asks of its teacher
    [cyan]limbeck explain kdrl[/]      its formula, its arguments, its paper
    [cyan]limbeck diff gkd kdrl[/]     in what two methods differ

    [bold]Use it[/]

    [cyan]limbeck train kdrl --student small --teacher big --task problems.jsonl[/]
    [cyan]limbeck eval --student runs/mine/student --task problems.jsonl[/]
    [cyan]limbeck pipeline[/]          recipes of several methods in a row
    [cyan]limbeck report runs/mine[/]  a run's report, also while it is going

    [bold]Look at what came of it[/]

    [cyan]limbeck sample runs/mine --before[/]    what the student writes, beside what it wrote
    [cyan]limbeck compare runs/a runs/b[/]        runs side by side, with paired differences

    Every command explains itself: [cyan]limbeck train --help[/].
    """
    del show_version, files  # a callback has answered the one, and `Commands` the other
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


app.command("demo", rich_help_panel="Try it")(demo)
app.command("methods", rich_help_panel="Choose a method")(methods)
app.command("explain", rich_help_panel="Choose a method")(explain)
app.command("diff", rich_help_panel="Choose a method")(diff)
app.command("train", rich_help_panel="Use it")(train)
app.command("pipeline", rich_help_panel="Use it")(pipeline)
app.command("eval", rich_help_panel="Use it")(evaluate)
app.command("report", rich_help_panel="Use it")(report)
app.command("sample", rich_help_panel="Look at what came of it")(sample)
app.command("compare", rich_help_panel="Look at what came of it")(compare)


def main() -> None:
    """Entry point of the command ``limbeck``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without π must not stop a run
            stream.reconfigure(errors="replace")
    app(prog_name="limbeck")
