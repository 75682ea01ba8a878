"""Options that several commands share, with their help, and the command line as it was typed."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

MODELS_AND_TASK, THE_RUN, SETTINGS = "Models and task", "The run", "Settings"
"""Headings of groups of options in the help."""

MODEL = "Model folder, Hugging Face hub name, or 'embedded' (a tiny model that comes with Limbeck)."
TASK = "A JSONL, CSV or Parquet file, a data set folder or hub name, or the name of a reasoning-gym data set."

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One of the settings named above; may be repeated."),
]


def typed_command(ctx: typer.Context) -> str:
    """The command as it was typed, to be recorded in the run's folder."""
    return shlex.join(["limbeck", *ctx.find_root().obj])
