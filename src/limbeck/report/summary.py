"""The table that a run prints at its end: measures before and after, time and tokens."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from limbeck.report.headline import comparison
from limbeck.report.numbers import format_count, format_seconds, format_steps
from limbeck.report.run_data import RunData
from limbeck.terminal import printable


def summary_table(data: RunData) -> Table:
    """Each measure before and after with its change, then time and tokens; the table fits 80 columns."""
    table = Table(title=Text(printable(f"{data.name}, {format_steps(data)}")), title_justify="left")
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, unit, before, after, change in comparison(data):
        unit = unit.removesuffix(" per token")  # too wide for 80 columns; the report has it
        # Text, because brackets would be read as markup.
        table.add_row(Text(f"{name}, {unit}" if unit else name), *map(Text, (before, after, change)))
    table.add_section()
    seconds = data.wall_seconds if data.wall_seconds is not None else data.spent.get("seconds")
    table.add_row("time", "", format_seconds(seconds), "")
    for name, key in (("tokens written", "tokens_written"), ("tokens read", "tokens_read")):
        if key in data.spent:
            table.add_row(name, "", format_count(data.spent[key]), "")
    if data.resumed:
        table.caption = Text(printable(f"resumed: {data.resumed[-1].get('command') or 'command unknown'}"))
        table.caption_justify = "left"
    return table
