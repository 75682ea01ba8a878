"""Print responses: one below the other, or those of two models side by side if the terminal is wide enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..terminal import printable
from ..types import Prompt
from .output import print_line

WIDE = 100
"""Width of a terminal, in characters, from which two responses are printed side by side (ours): 48 for each."""

NAMES = "AB"

Rows = Sequence[Mapping[str, Any]]


def print_responses(
    console: Console, labels: Sequence[str], prompts: Sequence[Prompt], written: Sequence[Rows]
) -> None:
    """Print each prompt with every model's responses, then a summary line for each model.

    Args:
        console: to print to.
        labels: names of the models.
        prompts: in order.
        written: the responses of each model.
    """
    several = len(labels) > 1
    for name, label in zip(NAMES, labels, strict=False):
        print_line(console, f"{name}  {label}" if several else label, "bold")
    for i, prompt in enumerate(prompts, 1):
        print_line(console)
        print_line(console, f"[{i} of {len(prompts)}]", "bold")
        for message in prompt.messages:
            _message(console, message)
        if (answer := prompt.privileged.get("answer")) is not None:
            console.print(Text(printable(f"answer: {answer}"), style="dim"))
        own = [[row for row in rows if row["prompt"] == prompt.id] for rows in written]
        _responses(console, own, several)
    print_line(console)
    for name, rows in zip(NAMES, written, strict=False):
        print_line(console, f"{name}  {summary(rows)}" if several else summary(rows))


def _message(console: Console, message: Mapping[str, Any]) -> None:
    content = message.get("content")
    text = content if isinstance(content, str) else "" if content is None else str(content)
    console.print(Text(printable(f"{message.get('role')}: {text}"), style="dim"))


def _responses(console: Console, own: Sequence[Rows], several: bool) -> None:
    """Print the responses of each model to one prompt."""
    most = max((len(rows) for rows in own), default=0)
    for k in range(most):
        number = f"#{k + 1}" if most > 1 else ""
        names = [f"{name if several else ''}{number}" for name in NAMES]
        cells = [
            _cell(name, rows[k]) if k < len(rows) else Text(f"{name}  no response", style="dim")
            for name, rows in zip(names, own, strict=False)
        ]
        if several and console.width >= WIDE:
            grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
            for _ in cells:
                grid.add_column(ratio=1, overflow="fold")
            grid.add_row(*cells)
            console.print(grid)
        else:
            for cell in cells:
                console.print(cell, overflow="fold")


def _cell(name: str, row: Mapping[str, Any]) -> Text:
    """A heading line and the response below it."""
    head = Text(printable("  ".join(filter(None, (name, heading(row))))), style=_style(row))
    if turns := row.get("turns"):
        body = "\n".join(f"{'>' if t['role'] == 'assistant' else '<'} {t['content']}" for t in turns)
    else:
        body = row["response"]
    return Text.assemble(head, "\n", printable(body))


def heading(row: Mapping[str, Any]) -> str:
    """A line about a response, for instance ``correct, reward 1, 23 tokens, ended by itself``."""
    parts = []
    if row["correct"] is not None:
        parts.append("correct" if row["correct"] else "wrong")
    if row["reward"] is not None:
        parts.append(f"reward {row['reward']:g}")
    elif str(row.get("feedback") or "").startswith("not judged"):
        parts.append(str(row["feedback"]))
    parts.append(f"{row['length']} token{'' if row['length'] == 1 else 's'}")
    parts.append("ended by itself" if row["ended"] else "cut at the limit")
    return ", ".join(parts)


def _style(row: Mapping[str, Any]) -> str:
    if row["correct"] is None:
        return "bold"
    return "bold green" if row["correct"] else "bold red"


def summary(rows: Rows) -> str:
    """A line about a model's responses, such as ``3 of 5 correct, 21.4 tokens on average, 1 cut at the limit``."""
    if not rows:
        return "no response"
    judged = [row["correct"] for row in rows if row["correct"] is not None]
    parts = (
        [f"{sum(judged)} of {len(judged)} correct"]
        if judged
        else [f"{len(rows)} response{'' if len(rows) == 1 else 's'}"]
    )
    parts.append(f"{sum(row['length'] for row in rows) / len(rows):.1f} tokens on average")
    parts.append(f"{sum(not row['ended'] for row in rows)} cut at the limit")
    return ", ".join(parts)
