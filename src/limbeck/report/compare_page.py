"""The comparison of several runs as one HTML file that needs no network and no other file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from limbeck.report.charts import CHARTS, DrawnChart, Line, drawn_chart, empty_axes
from limbeck.report.compare import Comparison, Labelled, sections, sentences
from limbeck.report.numbers import format_percent
from limbeck.report.plotting import (
    PALETTE,
    STYLE,
    WIDTH,
    Key,
    draw_evaluations,
    draw_intervals,
    draw_line,
    from_zero,
    to_svg,
)
from limbeck.report.run_data import accuracy_interval, finite_number
from limbeck.report.token_heatmap import visible

HERE = Path(__file__).parent

DASHES = ("-", "--", ":")
"""When the colours of the palette are used up, lines are dashed, then dotted."""


def write_comparison(found: Comparison, path: Path) -> None:
    """Write the comparison as an HTML file, which appears whole or not at all."""
    # A lone surrogate (from a folder's name that is not UTF-8) cannot be encoded, and is replaced.
    content = render_comparison(found).encode("utf-8", errors="replace")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def render_comparison(found: Comparison) -> str:
    """The comparison as HTML text. All values from the runs are escaped."""
    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("compare.html.j2").render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        labels=[visible(run.label) for run in found.runs],
        sections=[
            (head, [(visible(name), list(map(visible, cells))) for name, cells in rows])
            for head, rows in sections(found)
        ],
        sentences=list(map(visible, sentences(found))),
        notes=list(map(visible, found.notes)),
        picture=accuracies(found.runs),
        curves=overlaid(found.runs),
        metric=found.metric,
    )


def accuracies(runs: Sequence[Labelled]) -> Markup | None:
    """A chart of every run's held-out accuracy after training, with its interval; None if no run has one."""
    rows = [
        (_clipped(run.label), interval, PALETTE[i % len(PALETTE)])
        for i, run in enumerate(runs)
        if (interval := accuracy_interval(run.data.after))
    ]
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 0.42 * len(rows)), layout="constrained")
        draw_intervals(figure.add_subplot(), rows)
        spoken = "; ".join(f"{label} {format_percent(interval.mean)}" for label, interval, _ in rows)
        return to_svg(figure, "h-", f"Held-out accuracy with 95% intervals: {spoken}")


def _clipped(label: str) -> str:
    """A label cut to 28 characters; the end is kept, because folders of one method differ there."""
    return label if len(label) <= 28 else f"…{label[-27:]}"


def overlaid(runs: Sequence[Labelled]) -> list[DrawnChart]:
    """One chart for each quantity that changes in some run, with a line for every run that recorded it."""
    drawn = []
    for i, chart in enumerate(CHARTS):
        for j, line in enumerate(chart.lines):
            several = len(chart.lines) > 1
            title = f"{chart.title}, {line.label}" if several else chart.title
            if len(_values(runs, line)) > 1:
                figure, keys = _draw(runs, line, chart.unit)
                drawn.append(drawn_chart(title, "", figure, keys, f"c{i}{j}-", "by training step"))
    return drawn


def _values(runs: Sequence[Labelled], line: Line) -> set[float]:
    rows = (row for run in runs for row in (*run.data.metrics, *(run.data.evaluations if line.evaluated else ())))
    return {value for row in rows if (value := finite_number(row, line.key)) is not None}


def _draw(runs: Sequence[Labelled], line: Line, unit: str) -> tuple[Figure, list[Key]]:
    """Draw training as lines and held-out evaluations as diamonds, with one colour for each run."""
    keys = []
    with matplotlib.rc_context(STYLE):
        figure, axes = empty_axes("step", unit)
        for i, run in enumerate(runs):
            colour, dash = PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]
            there = draw_line(axes, run.data.metrics, line.key, colour, run.label, dash)
            marks = draw_evaluations(axes, run.data, line.key, colour, run.label) if line.evaluated else []
            if there or marks:
                sign = "mark" if not there else "line" if dash == "-" else "dash"
                keys.append(Key(run.label, sign, colour))
        from_zero(axes)
        return figure, keys
