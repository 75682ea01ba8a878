"""``limbeck compare``: runs side by side."""

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
from .out import listening, plain, print_json, row, table
from .run import Json

if TYPE_CHECKING:
    from ..report.compare import Comparison, Labelled

NAME, COLUMN = 30, 24
"""Columns of a terminal for the names of the rows and for each run: the widest cells have an interval."""

MARK = '<meta name="generator" content="limbeck compare">'
"""Stands near the beginning of every page of this command."""


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders that runs have written to.")],
    metric: Annotated[
        str, typer.Option(help="What differences are taken of: accuracy, kl_reverse, length, loss, ...")
    ] = "accuracy",
    sort: Annotated[bool, typer.Option("--sort", help="Order the runs by the metric, the best first.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with overlaid curves.")] = None,
    as_json: Json = False,
) -> None:
    """Show runs side by side: what differs, what they reached, what it cost, and whether a difference is chance.

    Each run is compared with the first one. Where both answered the same
    held-out problems, the difference is paired by problem. Where one method
    ran with several seeds, methods are paired by seed. Where runs cannot be
    paired, a line says why.

    [bold]Examples[/]

    [cyan]limbeck compare runs/kdrl runs/gkd[/]
    [cyan]limbeck compare runs/kdrl-* runs/gkd-* --sort --out compare.html[/]
    [cyan]limbeck compare runs/kdrl runs/gkd --metric kl_reverse --json[/]
    """
    _check_runs(runs)
    if out is not None:
        _check_out(out)
    with listening(as_json=as_json, quiet=False):
        from ..report.compare import Labelled, compare_runs
        from ..report.data import load_run

        loaded = [Labelled(label, load_run(run)) for label, run in zip(labels(runs), runs, strict=True)]
        found = compare_runs(loaded, metric, sort)
        if out is not None:
            from ..report.compare_page import write_comparison

            write_comparison(found, out)
    if as_json:
        print_json(document(found, out))
        return
    show(screen(), found)
    if out is not None:
        screen().print(f"page  {out}")


def labels(runs: Sequence[Path]) -> list[str]:
    """What runs are called: the last name of each folder where no two are the same, else the whole path."""
    names = [run.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def _check_runs(runs: Sequence[Path]) -> None:
    """Refuse what cannot be compared before anything slow is imported."""
    if len(runs) < 2:
        raise LimbeckError(f"compare needs at least two runs, and only {runs[0]} was named; name another.")
    seen: dict[Path, Path] = {}
    for run in runs:
        there = run.resolve()
        if there in seen:
            raise LimbeckError(f"{run} was named twice; name every run once.")
        seen[there] = run
        if not run.is_dir():
            raise LimbeckError(f"{run}: there is no such folder; name a folder that a run has written to.")


def _check_out(out: Path) -> None:
    """Refuse a page that cannot be written, or that would replace another file."""
    if out.suffix != ".html":
        raise LimbeckError(f"--out {out}: the page is HTML; give a name that ends with .html.")
    if out.exists() and not _ours(out):
        raise LimbeckError(f"--out {out}: there is something else than an earlier comparison; name a new file.")
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


def show(console: Console, found: Comparison) -> None:
    """Print the tables, as many runs beside each other as the terminal is wide for, then the differences."""
    from ..report.compare import sections, sentences

    made, names = sections(found), [run.label for run in found.runs]
    at_once = max(1, (console.width - NAME) // COLUMN)
    for first in range(0, len(names), at_once):
        grid = table("", *map(printable, names[first : first + at_once]))
        for heading, rows in made:
            row(grid, heading, style="bold")
            for name, cells in rows:
                row(grid, f"  {name}", *cells[first : first + at_once])
        console.print(grid)
        plain(console)
    for sentence in sentences(found):
        console.print(Text(printable(sentence)))
    for sentence in found.notes:
        console.print(Text(printable(f"note: {sentence}"), style="yellow"))


def document(found: Comparison, out: Path | None) -> dict[str, Any]:
    """The comparison as what JSON knows."""
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
    from ..report.compare import METRICS, change, final

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
        "change": change(data),
        "final": {key: value for key in METRICS if (value := final(data, key)) is not None},
        "spent": data.spent,
    }
