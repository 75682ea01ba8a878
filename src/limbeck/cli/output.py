"""Printing: one JSON document, tables, lines of text, and the console that the engine reports its progress to."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..json_files import as_json_value
from ..terminal import printable, screen


def print_json(value: Any) -> None:
    """Print one JSON document, on one line, to stdout. NaN and infinities become null."""
    typer.echo(json.dumps(as_json_value(value), allow_nan=False))


@contextlib.contextmanager
def engine_console(*, as_json: bool, quiet: bool) -> Iterator[Console]:
    """Yield the console for the engine. With ``--json`` it is stderr, and so is everything that a library prints."""
    if not as_json:
        yield screen(quiet=quiet)
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield screen(stderr=True, quiet=quiet)


def make_table(*columns: str, **named: Any) -> Table:
    """A table in the style of all commands."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False, **named)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def add_row(to: Table, *cells: str, style: str = "") -> None:
    """Add a row of text, which is not read as markup; the first cell is printed in ``style``."""
    first, *rest = cells
    to.add_row(Text(printable(first), style=style), *(Text(printable(cell)) for cell in rest))


def print_line(console: Console, text: str = "", style: str = "") -> None:
    """Print a line of text that is not read as markup; a line with a style (a command, a heading) is never wrapped."""
    console.print(Text(printable(text), style=style), soft_wrap=bool(style))
