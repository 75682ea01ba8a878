"""Charts as inline SVG: matplotlib draws, and the page's own colours replace the ink so that they follow its theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from limbeck.evaluate.intervals import Interval
from limbeck.report.data import Row, RunData, accuracy_interval, as_number, number
from limbeck.report.words import percent

INK = "#010203"
"""Drawn in this colour, text and axes become ``currentColor`` in the page."""

# Okabe and Ito's palette: told apart also by readers who are colour-blind.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#7f7f7f"

POINTS = 400
"""A line holds no more points than this; longer runs are averaged in equal bins."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.13,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "limbeck",
    "axes.formatter.useoffset": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    "text.parse_math": False,  # a dollar in the name of a run is a dollar
}


@dataclass(frozen=True)
class Line:
    """One curve: a key of the metrics, and whether the evaluations carry the same key."""

    label: str
    key: str
    evaluated: bool = False


@dataclass(frozen=True)
class Chart:
    """One picture: a title, the unit of its axis, a sentence under it, its curves."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    note: str = ""


@dataclass(frozen=True)
class Figured:
    """A chart that was drawn."""

    title: str
    note: str
    svg: Markup


CHARTS = (
    Chart("Accuracy", "share correct", (Line("training rollouts", "accuracy", True),)),
    Chart("Reward", "mean reward", (Line("training rollouts", "reward", True),)),
    Chart(
        "KL between student and teacher",
        "nats per token",
        (Line("reverse", "kl_reverse", True), Line("forward", "kl_forward", True)),
        "Reverse is KL(student ‖ teacher), forward is KL(teacher ‖ student).",
    ),
    Chart("Entropy of the student", "nats per token", (Line("training rollouts", "entropy", True),)),
    Chart("Length of a response", "tokens", (Line("training rollouts", "length", True),)),
    Chart("Loss", "loss", (Line("loss", "loss"),), "The value that was minimised; methods scale it differently."),
    Chart("Gradient norm", "norm", (Line("before clipping", "grad_norm"),)),
)


def curves(data: RunData) -> list[Figured]:
    """The charts that have data, in order."""
    charts = [*CHARTS, *_by_prefix(data)]
    drawn = []
    for i, chart in enumerate(charts):
        kept = [line for line in chart.lines if _has_data(data, line)]
        if kept:
            label = f"{chart.title} by training step"
            drawn.append(Figured(chart.title, chart.note, to_svg(_draw(data, chart, kept), f"c{i}-", label)))
    return drawn


TURNS = (
    ("KL between student and teacher", "nats per token", "kl_reverse_by_turn", "Reverse KL, on the student's text."),
    ("Entropy of the student", "nats per token", "entropy_by_turn", ""),
    ("Episodes that got so far", "episodes", "episodes_by_turn", ""),
)


def by_turn(data: RunData) -> list[Figured]:
    """What changes along an episode, before and after training; empty for a task that is answered in one turn."""
    drawn = []
    for i, (title, unit, key, note) in enumerate(TURNS):
        rows = [
            (name, by) for name, row in (("before", data.before), ("after", data.after)) if (by := _numbers(row, key))
        ]
        if rows and max(len(by) for _, by in rows) > 1:
            figure = _along(rows, unit)
            drawn.append(Figured(f"{title}, by turn", note, to_svg(figure, f"t{i}-", f"{title} by turn of an episode")))
    return drawn


def _numbers(row: Row | None, key: str) -> list[float]:
    held = row.get(key) if row else None
    if not isinstance(held, list):
        return []
    return [math.nan if (x := as_number(entry)) is None else x for entry in held]


def _along(rows: Sequence[tuple[str, list[float]]], unit: str) -> Figure:
    """A line for each named list of values, the first at turn 1."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for name, values in rows:
            colour = GREY if name == "before" else PALETTE[0]
            axes.plot(range(1, len(values) + 1), values, color=colour, label=name, marker="o", markersize=4)
        axes.set_xlabel("turn")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if len(rows) > 1:
            figure.legend(loc="outside upper left", ncols=2)
        return figure


def before_after(data: RunData) -> Markup | None:
    """The small picture of the headline: accuracy before and after, with intervals. None without an evaluation."""
    rows = named_intervals(data)
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 0.55 + 0.42 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        draw_intervals(axes, [(name, interval, PALETTE[0] if i else GREY) for i, (name, interval) in enumerate(rows)])
        spoken = "; ".join(f"{name} {percent(interval.mean)}" for name, interval in rows)
        return to_svg(figure, "h-", f"Held-out accuracy with 95% intervals: {spoken}")


def named_intervals(data: RunData) -> list[tuple[str, Interval]]:
    """``before`` and ``after`` with their intervals, as far as they were evaluated."""
    pairs = (("before", accuracy_interval(data.before)), ("after", accuracy_interval(data.after)))
    return [(name, interval) for name, interval in pairs if interval]


def draw_intervals(axes: Axes, rows: Sequence[tuple[str, Interval, str]]) -> None:
    """A dot and a bar for each (label, interval, colour), the first row on top."""
    for i, (_, interval, colour) in enumerate(rows):
        low, high = (x if math.isfinite(x) else interval.mean for x in (interval.low, interval.high))
        axes.plot([100 * low, 100 * high], [i, i], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot(100 * interval.mean, i, "o", color=colour, markersize=7)
        axes.annotate(percent(interval.mean), (100 * high, i), xytext=(7, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    top = max(x for _, interval, _ in rows for x in (interval.mean, interval.high) if math.isfinite(x))
    axes.set_xlim(0, min(1.0, top) * 100 * 1.22 or 1)  # room for the label behind the bar
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("held-out accuracy, %")


def series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a key, float ``[n]`` each, where it is finite; averaged in bins beyond ``POINTS``."""
    read = ((number(row, "step"), number(row, key)) for row in rows)
    pairs = [(step, value) for step, value in read if step is not None and value is not None]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    width = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / width, np.add.reduceat(y, edges[:-1]) / width


def draw_line(axes: Axes, rows: Sequence[Row], key: str, colour: str, label: str, dash: str = "-") -> None:
    """A curve: the raw values faint, and over them a centred moving average once there are enough of them."""
    x, y = series(rows, key)
    if not len(x):
        return
    window = min(2 * (len(x) // 40) + 1, 21)
    if window == 1:
        axes.plot(x, y, dash, color=colour, label=label, marker="." if len(x) < 15 else None)
        return
    axes.plot(x, y, dash, color=colour, linewidth=0.8, alpha=0.3)
    # At the ends the window is cut, and the sum divided by what is left of it.
    weight = np.ones(window)
    smooth = np.convolve(y, weight, "same") / np.convolve(np.ones_like(y), weight, "same")
    axes.plot(x, smooth, dash, color=colour, label=label)


def draw_evaluations(axes: Axes, data: RunData, key: str, colour: str, label: str) -> None:
    """Held-out values as open diamonds; accuracies carry their interval."""
    x, y = series(data.evaluations, key)
    if not len(x):
        return
    if key == "accuracy":
        for row in data.evaluations:
            interval = accuracy_interval(row)
            step = number(row, "step")
            if step is not None and interval and math.isfinite(interval.low):
                axes.vlines(step, interval.low, interval.high, color=colour, linewidth=1.2)
    axes.plot(x, y, "D", color=colour, markersize=5, label=label, zorder=3)


def to_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """A figure as an inline ``<svg>``: themed, without metadata, its ids made unique by ``prefix``."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none"}):
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = text.replace(INK, "currentColor")
    for i, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--line-{i})")
    size = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg role="img" aria-label="{escape(label)}" {size.group(0) if size else ""}>'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: opening, text))


def _draw(data: RunData, chart: Chart, lines: Sequence[Line]) -> Figure:
    """One chart: training curves as lines, evaluations as diamonds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for i, line in enumerate(lines):
            # A lone training curve gets its own colour apart from the evaluations; a pair keeps a colour a quantity.
            marks = PALETTE[1] if len(lines) == 1 else PALETTE[i]
            draw_line(axes, data.metrics, line.key, PALETTE[i % len(PALETTE)], line.label)
            if line.evaluated:
                draw_evaluations(
                    axes, data, line.key, marks, "held-out" if len(lines) == 1 else f"{line.label}, held-out"
                )
        axes.set_xlabel("step")
        axes.set_ylabel(chart.unit)
        axes.locator_params(axis="y", nbins=6)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(axes.get_legend_handles_labels()[0]) > 1:
            figure.legend(loc="outside upper left", ncols=2)
        return figure


def _has_data(data: RunData, line: Line) -> bool:
    """Whether anything can be drawn for a line."""
    rows = (*data.metrics, *(data.evaluations if line.evaluated else ()))
    return any(number(row, line.key) is not None for row in rows)


def _by_prefix(data: RunData) -> list[Chart]:
    """Charts of what only some methods have: the loss of each term, and coefficients that move."""
    keys = sorted({key for row in data.metrics for key in row if isinstance(key, str)})
    terms = [key for key in keys if re.fullmatch(r"term/.+/loss", key)]
    moving = [key for key in keys if key.startswith("coef/") and len(set(series(data.metrics, key)[1])) > 1]
    charts = []
    if len(terms) > 1:
        lines = tuple(Line(f"term {key[5:-5]}", key) for key in terms)
        charts.append(Chart("Loss by term", "loss", lines))
    if moving:
        charts.append(
            Chart(
                "Coefficients",
                "value" if len(moving) > 1 else moving[0][5:],
                tuple(Line(key[5:], key) for key in moving),
            )
        )
    return charts
