"""The report of a run: one HTML file that needs no network and no other file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from limbeck.report import charts
from limbeck.report.headline import comparison, headline_sentences, teacher_sentences
from limbeck.report.numbers import DASH, format_count, format_seconds, format_steps
from limbeck.report.run_data import PHASES, RunData, finite_number, load_run
from limbeck.report.token_heatmap import heat, visible

HERE = Path(__file__).parent


def write_report(run_dir: Path | str, *, finished: str | None = None) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    The file is written under another name and then renamed, so it is always complete.

    Args:
        run_dir: folder of the run.
        finished: time at which the run ended, if ``run.json`` does not have it yet.

    Raises:
        LimbeckError: if ``run_dir`` is not a run folder.
    """
    data = load_run(run_dir)
    data = replace(data, run={**data.run, "finished": finished}) if finished else data
    target = Path(run_dir) / "report.html"
    # A lone surrogate (half of an emoji, cut at the token limit) cannot be encoded, and is replaced.
    content = render_report(data).encode("utf-8", errors="replace")
    draft = target.with_name(f".report.html.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def render_report(data: RunData) -> str:
    """The report of a run as HTML text. All values from the run are escaped."""
    return _template().render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        data=data,
        run=data.run,
        title=data.name,
        subtitle=[visible(data.run[key]) for key in ("method", "task", "student") if data.run.get(key)],
        headline=headline_sentences(data),
        ceiling=teacher_sentences(data),
        spent=spent_sentence(data),
        picture=charts.before_after(data),
        comparison=comparison(data, spread=True),
        facts=run_facts(data, data.table("parameters")),
        formula=visible(data.run.get("formula")).strip("\n").split("\n"),
        command="\n".join(commands(data)),
        config=pretty(data.run.get("config")),
        curves=charts.curves(data),
        turns=charts.turn_charts(data),
        flat=charts.flat(data),
        heat=heat(data.samples),
        costs=costs(data),
        state=[*state(data), *sentences_of(data, "warnings")],
        notices=sentences_of(data, "notices"),
        points=charts.POINTS,
    )


def state(data: RunData) -> list[str]:
    """Sentences about what is missing; empty for a complete run."""
    notes = []
    if not data.finished:
        notes.append(
            f"This run has not finished; it was stopped or is still running. {data.steps:,} steps were recorded."
        )
    if data.broken:
        lines = "1 line" if data.broken == 1 else f"{data.broken} lines"
        notes.append(
            f"{lines} of its records could not be read and were left out; a run that is killed leaves incomplete lines."
        )
    return notes


def sentences_of(data: RunData, key: str) -> list[str]:
    """The sentences of a list in ``run.json``; entries are sentences or tables with a key ``sentence``."""
    entries = data.run.get(key)
    sentences = []
    for entry in entries if isinstance(entries, list) else []:
        row = entry if isinstance(entry, dict) else {"sentence": entry}
        text = visible(row.get("sentence")).strip().removeprefix("note: ")
        first, steps = finite_number(row, "first_step"), finite_number(row, "steps")
        when = [f"first at step {format_count(first)}"] if first is not None else []
        when += [f"seen in {format_count(steps)} step{'' if steps == 1 else 's'}"] if steps is not None else []
        if text:
            text = text[0].upper() + text[1:]
            sentences.append(f"{text.rstrip('.')} ({', '.join(when)})." if when else text)
    return sentences


def commands(data: RunData) -> list[str]:
    """The commands that were typed: the first one, then one for each time the run was resumed."""
    typed = [data.run.get("command"), *(row.get("command") for row in data.resumed)]
    return [text for command in typed if command and (text := visible(command).strip())]


def spent_sentence(data: RunData) -> str:
    """Steps, time and tokens in one sentence; unknown ones are left out."""
    parts = [format_steps(data)] if data.steps else []
    seconds = data.wall_seconds if data.wall_seconds is not None else data.spent.get("seconds")
    if seconds is not None:
        parts.append(format_seconds(seconds))
    for name, verb in (("tokens_written", "written"), ("tokens_read", "read")):
        if name in data.spent:
            parts.append(f"{data.spent[name]:,.0f} tokens {verb}")
    return ", ".join(parts)


def run_facts(data: RunData, parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the facts about a run; unknown ones are left out."""
    run = data.run
    machine, versions = data.table("machine"), data.table("versions")
    cores = f"{machine['cores']} cores" if machine.get("cores") else ""
    pairs = (
        ("Method", data.name + (f" ({run['paper']})" if run.get("paper") else "")),
        ("Task", run.get("task")),
        ("Student", _model(run.get("student"), parameters.get("student"))),
        ("Teacher", _model(run.get("teacher"), parameters.get("teacher")) or "none"),
        ("Seed", run.get("seed")),
        ("Machine", ", ".join(str(x) for x in (machine.get("cpu"), cores, machine.get("gpu")) if x)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Git", run.get("git")),
        ("Started", _moment(run.get("started"))),
        ("Finished", _moment(run.get("finished"))),
    )
    return [(name, visible(value)) for name, value in pairs if value is not None and value != ""]


def costs(data: RunData) -> list[tuple[str, str, str, str, str]]:
    """Rows of the cost table: stage, time, share, tokens, tokens per second. Empty if no time was recorded."""
    spent = data.spent
    phases = {phase: spent[f"seconds_{phase}"] for phase in PHASES if f"seconds_{phase}" in spent}
    steps = spent.get("seconds", sum(phases.values()))
    if not steps:
        return []
    wall = data.wall_seconds
    whole = wall if wall is not None and wall >= steps else steps
    tokens = {"write": spent.get("tokens_written"), "read": spent.get("tokens_read")}
    rows = [_cost(phase, seconds, whole, tokens.get(phase)) for phase, seconds in phases.items()]
    if phases and steps - sum(phases.values()) > 0.005 * whole:
        rows.append(_cost("rest of the steps", steps - sum(phases.values()), whole, None))
    if whole - steps > 0.005 * whole:
        rows.append(_cost("outside the steps (loading, evaluation, saving)", whole - steps, whole, None))
    return [*rows, _cost("all", whole, whole, None)]


def pretty(config: object) -> str:
    """The configuration as indented JSON."""
    return visible(json.dumps(config, indent=2, ensure_ascii=False, default=str)) if config else ""


def _cost(stage: str, seconds: float, whole: float, tokens: float | None) -> tuple[str, str, str, str, str]:
    """One row of the cost table."""
    rate = format_count(tokens / seconds) if tokens is not None and seconds > 0 else DASH
    return stage, format_seconds(seconds), f"{100 * seconds / whole:.0f}%", format_count(tokens), rate


def _model(name: object, parameters: object) -> str:
    """A model with its size, such as ``name (1,234,567 parameters)``; empty without a name."""
    if not name:
        return ""
    return f"{name} ({parameters:,} parameters)" if isinstance(parameters, int) else str(name)


def _moment(stamp: object) -> str:
    """An ISO time without the T and fractions of a second, such as ``2026-01-02 10:00:00+00:00``."""
    return re.sub(r"\.\d+", "", str(stamp or "")).replace("T", " ")


@cache
def _template() -> Template:
    """The template of the page; undefined names are errors, and all values are escaped."""
    loader = FileSystemLoader(HERE)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")
