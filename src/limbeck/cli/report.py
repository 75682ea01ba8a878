"""``limbeck report``: write a run's report again and print its summary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..terminal import screen
from .options import Json
from .output import engine_console, print_json


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Write a run's report again and print its summary; also works for stopped and running runs.

    [bold]Examples[/]

    [cyan]limbeck report runs/mine[/]
    [cyan]limbeck report runs/mine --json | jq .after.accuracy[/]

    The report is one HTML file in the run's folder. No other file is changed.
    """
    with engine_console(as_json=as_json, quiet=False):
        from ..report import load_run, summary_table, write_report

        data = load_run(folder)
        path = write_report(folder)
    if as_json:
        print_json(
            {
                "report": str(path),
                "method": data.name,
                "steps": data.steps,
                "finished": data.finished,
                "before": data.before,
                "after": data.after,
                "spent": data.spent,
            }
        )
        return
    console = screen()
    console.print(summary_table(data))
    console.print(f"report  {path}")
