"""What commands print: JSON documents, tables, and who gets to hear the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..terminal import printable, screen


def print_json(value: Any) -> None:
    """One JSON document, in one line, on stdout. Numbers that JSON lacks (NaN, infinities) become null."""
    typer.echo(json.dumps(clean(value), allow_nan=False))


def clean(value: Any) -> Any:
    """The value from what JSON knows: records become objects, sequences lists, anything else its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(clean, value), key=str)
    if hasattr(value, "tolist"):  # a tensor or an array, of any rank
        return clean(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__str__ is object.__str__:
        return clean(dataclasses.asdict(value))
    return str(value)


@contextlib.contextmanager
def listening(*, as_json: bool, quiet: bool) -> Iterator[Console]:
    """The console for the engine. With ``--json`` it is stderr, and so is whatever a library prints meanwhile."""
    if not as_json:
        yield screen(quiet=quiet)
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield screen(stderr=True, quiet=quiet)


def table(*columns: str, **named: Any) -> Table:
    """A table in the house style; cells are Text, because a bracket in a formula is no markup."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False, **named)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def row(to: Table, *cells: str, style: str = "") -> None:
    """Add a row of plain text; the first cell in ``style``."""
    first, *rest = cells
    to.add_row(Text(printable(first), style=style), *(Text(printable(cell)) for cell in rest))


def plain(console: Console, text: str = "", style: str = "") -> None:
    """A line of text exactly as it is; a line in a style is a command or a heading, which is never broken."""
    console.print(Text(printable(text), style=style), soft_wrap=bool(style))
