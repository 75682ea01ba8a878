"""The typer application: its help, and the commands in their groups."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .compare import compare
from .demo import demo
from .evaluate import evaluate
from .exits import Commands, print_version
from .explain import diff, explain
from .methods import methods
from .pipeline import pipeline
from .report import report
from .sample import sample_responses
from .train import train

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
        False, "--version", callback=print_version, is_eager=True, help="Show the version and stop."
    ),
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="FILE.py",
            help="Run a Python file of yours first, with your own methods, tasks or rewards. Works with every command "
            "and may be repeated.",
        ),
    ] = None,
) -> None:
    """Distil language models: train a student from a teacher, from rewards, or from both, with published methods.

    [bold]Try it[/]

    [cyan]limbeck demo[/]              train a small student on a small teacher

    [bold]Choose a method[/]

    [cyan]limbeck methods[/]           list the methods and what each needs
    [cyan]limbeck explain kdrl[/]      its formula, its arguments, its paper
    [cyan]limbeck diff gkd kdrl[/]     how two methods differ

    [bold]Use it[/]

    [cyan]limbeck train kdrl --student small --teacher big --task problems.jsonl[/]
    [cyan]limbeck eval --student runs/mine/student --task problems.jsonl[/]
    [cyan]limbeck pipeline[/]          run several methods in a row
    [cyan]limbeck report runs/mine[/]  a run's report, also while it is running

    [bold]Look at the results[/]

    [cyan]limbeck sample runs/mine --before[/]    responses before and after training
    [cyan]limbeck compare runs/a runs/b[/]        runs side by side

    Every command has its own help: [cyan]limbeck train --help[/].
    """
    del show_version, files  # `print_version` and `Commands` have handled them already
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
app.command("sample", rich_help_panel="Look at the results")(sample_responses)
app.command("compare", rich_help_panel="Look at the results")(compare)


def main() -> None:
    """Entry point of the command ``limbeck``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show π must not stop a run
            stream.reconfigure(errors="replace")
    app(prog_name="limbeck")
