"""``limbeck compare``: show runs side by side, with paired differences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..errors import LimbeckError
from ..terminal import printable, screen
from .options import Json
from .output import add_row, engine_console, make_table, print_json, print_line

if TYPE_CHECKING:
    from ..report.compare import Comparison, Labelled

NAME, COLUMN = 30, 24
"""Widths in characters: of the row names, and of the column of each run (a value with its interval)."""

MARK = '<meta name="generator" content="limbeck compare">'
"""A line near the beginning of every page that this command writes, by which it recognises them."""


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs.")],
    metric: Annotated[
        str, typer.Option(help="The measure to compare: accuracy, kl_reverse, length, loss, ...")
    ] = "accuracy",
    sort: Annotated[bool, typer.Option("--sort", help="Order the runs by the metric, the best first.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write an HTML page with overlaid curves.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show runs side by side: settings that differ, results, cost, and whether differences may be chance.

    Each run is compared with the first one. If both answered the same held-out
    problems, the difference is paired by problem. If a method ran with several
    seeds, methods are paired by seed. If runs cannot be paired, a note says
    why.

    [bold]Examples[/]

    [cyan]limbeck compare runs/kdrl runs/gkd[/]
    [cyan]limbeck compare runs/kdrl-* runs/gkd-* --sort --out compare.html[/]
    [cyan]limbeck compare runs/kdrl runs/gkd --metric kl_reverse --json[/]
    """
    _check_runs(runs)
    if out is not None:
        _check_out(out)
    with engine_console(as_json=as_json, quiet=False):
        from ..report.compare import Labelled, compare_runs
        from ..report.run_data import load_run

        loaded = [Labelled(label, load_run(run)) for label, run in zip(labels(runs), runs, strict=True)]
        found = compare_runs(loaded, metric, sort)
        if out is not None:
            from ..report.compare_page import write_comparison

            write_comparison(found, out)
    if as_json:
        print_json(comparison_document(found, out))
        return
    print_comparison(screen(), found)
    if out is not None:
        screen().print(f"page  {out}")


def labels(runs: Sequence[Path]) -> list[str]:
    """A label for each run: the name of its folder, or the whole path if two folders have the same name."""
    names = [run.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def _check_runs(runs: Sequence[Path]) -> None:
    """Refuse folders that cannot be compared, before any slow import."""
    if len(runs) < 2:
        raise LimbeckError(f"compare needs at least two runs, and only {runs[0]} was named; name another.")
    seen: dict[Path, Path] = {}
    for run in runs:
        there = run.resolve()
        if there in seen:
            raise LimbeckError(f"{run} was named twice; name every run once.")
        seen[there] = run
        if not run.is_dir():
            raise LimbeckError(f"{run}: there is no such folder; name the folder of a run.")


def _check_out(out: Path) -> None:
    """Refuse a page that cannot be written, or that would replace another file."""
    if out.suffix != ".html":
        raise LimbeckError(f"--out {out}: the page is HTML; give a name that ends with .html.")
    if out.exists() and not _ours(out):
        raise LimbeckError(f"--out {out}: the file exists and is not an earlier comparison; name a new file.")
    if not os.access(out.absolute().parent, os.W_OK | os.X_OK):
        raise LimbeckError(
            f"--out {out}: {out.absolute().parent} is not a folder that can be written to; name another."
        )


def _ours(out: Path) -> bool:
    """Whether a file is a page of this command, which a new one may replace."""
    if not out.is_file():
        return False
    with out.open(encoding="utf-8", errors="replace") as f:
        return MARK in f.read(4096)


def print_comparison(console: Console, found: Comparison) -> None:
    """Print the tables, with as many runs side by side as fit the terminal, then the differences."""
    from ..report.compare import sections, sentences

    made, names = sections(found), [run.label for run in found.runs]
    at_once = max(1, (console.width - NAME) // COLUMN)
    for first in range(0, len(names), at_once):
        grid = make_table("", *map(printable, names[first : first + at_once]))
        for heading, rows in made:
            add_row(grid, heading, style="bold")
            for name, cells in rows:
                add_row(grid, f"  {name}", *cells[first : first + at_once])
        console.print(grid)
        print_line(console)
    for sentence in sentences(found):
        console.print(Text(printable(sentence)))
    for sentence in found.notes:
        console.print(Text(printable(f"note: {sentence}"), style="yellow"))


def comparison_document(found: Comparison, out: Path | None) -> dict[str, Any]:
    """The comparison as one JSON document."""
    from ..report.compare import differing

    return {
        "metric": found.metric,
        "runs": [_run(run) for run in found.runs],
        "settings": dict(differing(found.runs)),
        "differences": found.differences,
        "means": [{"runs": label, "interval": interval} for label, interval in found.spreads],
        "notes": found.notes,
        "page": out,
    }


def _run(run: Labelled) -> dict[str, Any]:
    from ..report.compare import METRICS, accuracy_change, final

    data = run.data
    return {
        "label": run.label,
        "folder": data.path,
        "method": data.run.get("method"),
        "task": data.run.get("task"),
        "seed": data.run.get("seed"),
        "steps": data.steps,
        "finished": data.finished,
        "before": data.before,
        "after": data.after,
        "change": accuracy_change(data),
        "final": {key: value for key in METRICS if (value := final(data, key)) is not None},
        "spent": data.spent,
    }
