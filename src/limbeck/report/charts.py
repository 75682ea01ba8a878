"""The charts of a report, and sentences for charts whose values never change."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from limbeck.evaluate.intervals import Interval
from limbeck.report.numbers import format_number, format_percent
from limbeck.report.plotting import (
    GREY,
    PALETTE,
    POINTS,
    STYLE,
    WIDTH,
    Key,
    draw_evaluations,
    draw_intervals,
    draw_line,
    from_zero,
    series,
    to_svg,
)
from limbeck.report.run_data import Row, RunData, accuracy_interval, as_number, finite_number

__all__ = ["POINTS", "DrawnChart", "before_after", "curves", "flat", "named_intervals", "series", "turn_charts"]


@dataclass(frozen=True)
class Line:
    """One curve: its key in the metrics, and whether the evaluations have the same key."""

    label: str
    key: str
    evaluated: bool = False


@dataclass(frozen=True)
class Chart:
    """One chart: its title, the unit of its axis, its curves, and a sentence below it."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    note: str = ""


@dataclass(frozen=True)
class DrawnChart:
    """A chart as SVG, with its legend."""

    title: str
    note: str
    svg: Markup
    keys: tuple[Key, ...] = ()


TRAINING = "training, sampled"
HELD_OUT = "held-out, greedy"
CHARTS = (
    Chart(
        "Accuracy",
        "share correct",
        (Line(TRAINING, "accuracy", True),),
        "Training responses are sampled, for the problems of their step; held-out responses are greedy, for problems "
        "that are not trained on. The two can differ even if nothing is learned.",
    ),
    Chart("Reward", "mean reward per response", (Line(TRAINING, "reward", True),)),
    Chart(
        "Groups with a signal",
        "share of groups",
        (Line(TRAINING, "groups_with_signal"),),
        "If all responses of a group have the same reward, a method that compares them gets no gradient from it.",
    ),
    Chart(
        "KL between student and teacher",
        "nats per token",
        (Line("reverse", "kl_reverse", True), Line("forward", "kl_forward", True)),
        "Reverse is KL(student ‖ teacher), forward is KL(teacher ‖ student).",
    ),
    Chart("Entropy of the student", "nats per token", (Line(TRAINING, "entropy", True),)),
    Chart("Length of a response", "tokens", (Line(TRAINING, "length", True),)),
    Chart(
        "How responses end",
        "share of responses",
        (Line("cut at the limit", "truncated"), Line("ended with an end token", "ended")),
    ),
    Chart("Loss", "loss, in the method's unit", (Line("", "loss"),), "The value that is minimised."),
    Chart("Gradient norm", "norm", (Line("", "grad_norm"),), "Before clipping."),
)


def curves(data: RunData) -> list[DrawnChart]:
    """The charts that have data and whose values change, in order."""
    drawn = []
    for i, chart in enumerate(_charts(data)):
        if not _constant(data, chart):
            figure, keys = _draw(data, chart)
            drawn.append(drawn_chart(chart.title, chart.note, figure, keys, f"c{i}-", "by training step"))
    return drawn


def flat(data: RunData) -> list[str]:
    """A sentence for each chart whose values never change, in place of a straight line."""
    sentences = []
    for chart in _charts(data):
        if values := _constant(data, chart):
            labels = [line.label for line in chart.lines if line.label not in ("", TRAINING)]
            if len(set(values)) == 1:
                text = f" was {format_number(values[0])} throughout" + (f" ({', '.join(labels)})" if labels else "")
            else:
                own = [f"{label} was {format_number(x)}" for label, x in zip(labels, values, strict=True)]
                text = f": {', '.join(own)} throughout"
            sentences.append(f"{chart.title} ({chart.unit}){text}.")
    return sentences


TURNS = (
    (
        "KL between student and teacher",
        "nats per token",
        "kl_reverse_by_turn",
        "Reverse KL, on the student's responses.",
    ),
    ("Entropy of the student", "nats per token", "entropy_by_turn", ""),
    ("Episodes that reached the turn", "episodes", "episodes_by_turn", ""),
)


def turn_charts(data: RunData) -> list[DrawnChart]:
    """Charts by turn of an episode, before and after training; empty for a task with a single turn."""
    drawn = []
    for i, (title, unit, key, note) in enumerate(TURNS):
        rows = [
            (name, by) for name, row in (("before", data.before), ("after", data.after)) if (by := _numbers(row, key))
        ]
        if rows and max(len(by) for _, by in rows) > 1:
            figure, keys = _along(rows, unit)
            drawn.append(drawn_chart(f"{title}, by turn", note, figure, keys, f"t{i}-", "of an episode"))
    return drawn


def before_after(data: RunData) -> Markup | None:
    """The small chart next to the headline: accuracy before and after, with intervals. None without an evaluation."""
    rows = [(name, interval, PALETTE[0] if i else GREY) for i, (name, interval) in enumerate(named_intervals(data))]
    if not rows:
        return None
    if teacher := accuracy_interval(data.table("teacher_accuracy")):
        rows.append(("teacher", teacher, PALETTE[2]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 0.42 * len(rows)), layout="constrained")
        draw_intervals(figure.add_subplot(), rows)
        spoken = "; ".join(f"{name} {format_percent(interval.mean)}" for name, interval, _ in rows)
        return to_svg(figure, "h-", f"Held-out accuracy with 95% intervals: {spoken}")


def named_intervals(data: RunData) -> list[tuple[str, Interval]]:
    """``before`` and ``after`` with their intervals; evaluations that are missing are left out."""
    pairs = (("before", accuracy_interval(data.before)), ("after", accuracy_interval(data.after)))
    return [(name, interval) for name, interval in pairs if interval]


def _charts(data: RunData) -> list[Chart]:
    """Every chart with the lines that have data; charts without data are left out."""
    kept = []
    for chart in (*CHARTS, *_by_prefix(data)):
        lines = tuple(line for line in chart.lines if _values(data, line))
        if lines:
            kept.append(Chart(chart.title, chart.unit, lines, chart.note))
    return kept


def _values(data: RunData, line: Line) -> list[float]:
    """All values of a line and of its held-out marks."""
    rows = (*data.metrics, *(data.evaluations if line.evaluated else ()))
    return [value for row in rows if (value := finite_number(row, line.key)) is not None]


def _constant(data: RunData, chart: Chart) -> list[float]:
    """The value of each line, if every line has several equal values; else empty."""
    values = [_values(data, line) for line in chart.lines]
    if any(len(set(own)) > 1 or len(own) < 2 for own in values):
        return []
    return [own[0] for own in values]


def _numbers(row: Row | None, key: str) -> list[float]:
    held = row.get(key) if row else None
    if not isinstance(held, list):
        return []
    return [math.nan if (x := as_number(entry)) is None else x for entry in held]


def drawn_chart(title: str, note: str, figure: Figure, keys: Sequence[Key], prefix: str, over: str) -> DrawnChart:
    named = tuple(key for key in keys if key.label)
    spoken = f"{title} {over}: {', '.join(key.label for key in named)}".removesuffix(": ")
    return DrawnChart(title, note, to_svg(figure, prefix, spoken), named)


def _along(rows: Sequence[tuple[str, list[float]]], unit: str) -> tuple[Figure, list[Key]]:
    """Draw a line over turns for each named list of values; the values before training are dashed."""
    keys = []
    with matplotlib.rc_context(STYLE):
        figure, axes = empty_axes("turn", unit)
        for name, values in rows:
            old = name == "before"
            colour, aside = (GREY, -0.06) if old else (PALETTE[0], 0.06)
            x = [turn + (aside if len(rows) > 1 else 0) for turn in range(1, len(values) + 1)]
            dash, marker, size, face = ("--", "s", 7.0, "none") if old else ("-", "o", 4.5, colour)
            axes.plot(
                x, values, dash, color=colour, marker=marker, markersize=size, markerfacecolor=face, clip_on=False
            )
            keys.append(Key(name, "square" if old else "line", colour))
        from_zero(axes)
        return figure, keys


def _draw(data: RunData, chart: Chart) -> tuple[Figure, list[Key]]:
    """Draw training curves as lines, evaluations as diamonds, and the teacher's accuracy as a dashed line."""
    keys: list[Key] = []
    alone = len(chart.lines) == 1
    last = max((finite_number(row, "step") or 0 for row in (*data.metrics, *data.evaluations)), default=0)
    with matplotlib.rc_context(STYLE):
        figure, axes = empty_axes("step", chart.unit)
        for i, line in enumerate(chart.lines):
            colour = PALETTE[i % len(PALETTE)]
            if draw_line(axes, data.metrics, line.key, colour, line.label):
                label = f"{line.label}, training" if line.evaluated and not alone else line.label
                keys.append(Key(label, "line", colour))
            if not line.evaluated:
                continue
            # With one line, evaluations get their own colour. With two, each line and its marks share a colour, and the
            # marks are shifted, because two marks at one step would hide each other.
            marks = PALETTE[1] if alone else colour
            shift = 0.0 if alone else (i - (len(chart.lines) - 1) / 2) * 0.02 * last
            intervals = draw_evaluations(axes, data, line.key, marks, line.label, shift)
            if intervals:
                label = HELD_OUT if alone else f"{line.label}, {HELD_OUT}"
                known = any(x and math.isfinite(x.low) for x in intervals)
                keys.append(Key(f"{label}, 95% interval" if known else label, "mark", marks))
        if any(line.key == "accuracy" for line in chart.lines):
            keys += _ceiling(axes, data)
        from_zero(axes)
        return figure, keys


def _ceiling(axes: Axes, data: RunData) -> list[Key]:
    """Draw the teacher's accuracy on the held-out problems, which a student that only imitates does not exceed."""
    teacher = accuracy_interval(data.table("teacher_accuracy"))
    if teacher is None:
        return []
    axes.axhline(teacher.mean, color=PALETTE[2], linestyle="--", linewidth=1.3)
    if math.isfinite(teacher.low):
        axes.axhspan(teacher.low, teacher.high, color=PALETTE[2], alpha=0.1, linewidth=0)
    return [Key(f"teacher, {format_percent(teacher.mean)}", "dash", PALETTE[2])]


def empty_axes(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure of the width of a phone, with axes named ``x`` and ``y``."""
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.locator_params(axis="y", nbins=6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure, axes


def _by_prefix(data: RunData) -> list[Chart]:
    """Charts of values that only some methods have: loss and gradient of each term, and changing coefficients."""
    keys = sorted({key for row in data.metrics for key in row if isinstance(key, str)})
    names = data.table("terms")

    def called(name: str) -> str:
        return f"{name}: {names[name]}" if names.get(name) else f"term {name}"

    def lines(ending: str) -> tuple[Line, ...]:
        found = (re.fullmatch(rf"term/(.+)/{ending}", key, re.DOTALL) for key in keys)
        return tuple(Line(called(m[1]), m[0]) for m in found if m)

    moving = tuple(
        Line(called(key[5:]), key)
        for key in keys
        if key.startswith("coef/") and len(set(series(data.metrics, key)[1])) > 1
    )
    return [
        Chart(
            "Gradient by term",
            "share of the gradient",
            lines("gradient_share"),
            "The norm of each term's gradient, as a share of their sum.",
        ),
        Chart(
            "Loss by term",
            "loss, in the method's unit",
            own if len(own := lines("loss")) > 1 else (),
            "The loss of a policy term on new rollouts is 0 (its advantages sum to 0), but its gradient is not 0.",
        ),
        Chart("Coefficients", "value", moving, "The factor of each term at each step."),
    ]
