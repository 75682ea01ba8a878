"""One compact figure of one or several runs, for a README. It draws the figures in ``docs/assets``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from limbeck.errors import LimbeckError
from limbeck.report.charts import named_intervals
from limbeck.report.plotting import (
    GREY,
    INK,
    PALETTE,
    STYLE,
    WIDTH,
    draw_evaluations,
    draw_intervals,
    draw_line,
    from_zero,
)
from limbeck.report.run_data import RunData, finite_number, load_run
from limbeck.terminal import printable

Run = RunData | Path | str

FORMATS = (".svg", ".png", ".pdf")


def picture(
    runs: Run | Iterable[Run], path: Path | str, names: Sequence[str] | None = None, narrow: bool = False
) -> Path:
    """Draw accuracy before and after with intervals, the accuracy curve and the KL curve, and return ``path``.

    Args:
        runs: one run or several, each a folder or the result of :func:`load_run`.
        path: of the file to write; its suffix selects the format.
        names: of the runs; default: the titles of their methods.
        narrow: put the three panels below each other, in the width of a phone, instead of side by side.

    Raises:
        LimbeckError: the format is unknown, there are no runs, the number of names is wrong, or a folder has no run.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise LimbeckError(f"path is {str(target)!r}; give a name that ends in one of {', '.join(FORMATS)}.")
    given = [runs] if isinstance(runs, RunData | Path | str) else list(runs)
    loaded = [run if isinstance(run, RunData) else load_run(run) for run in given]
    if not loaded:
        raise LimbeckError("runs is empty; give at least one run.")
    labels = [_label(printable(name)) for name in ([run.name for run in loaded] if names is None else names)]
    if len(labels) != len(loaded):
        raise LimbeckError(f"names has {len(labels)} entries for {len(loaded)} runs; give one for each run.")
    draft = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        # Dark text on white, because an image file cannot follow the theme of the page around it.
        with matplotlib.rc_context(STYLE | {"savefig.facecolor": "white"}):
            figure = _figure(loaded, labels, narrow)
            FigureCanvasAgg(figure)
            metadata = {"Date": None} if target.suffix.lower() == ".svg" else None
            figure.savefig(draft, dpi=200, metadata=metadata)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _figure(runs: Sequence[RunData], labels: Sequence[str], narrow: bool) -> Figure:
    """Draw three panels, side by side or below each other."""
    height = max(2.7, 1.4 + 0.5 * len(runs))
    if narrow:
        figure = Figure(figsize=(WIDTH, height + 4), layout="constrained")
        left, middle, right = figure.subplots(3, 1, height_ratios=(height - 1, 2.5, 2.5))
    else:
        figure = Figure(figsize=(10, height), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _before_after(left, runs, labels)
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        colour = PALETTE[i % len(PALETTE)]
        alone = len(runs) == 1
        draw_line(middle, run.metrics, "accuracy", colour, "training, sampled" if alone else label)
        draw_evaluations(middle, run, "accuracy", PALETTE[1] if alone else colour, "held-out, greedy" if alone else "_")
        draw_line(right, run.metrics, "kl_reverse", colour, "reverse" if alone else label)
        draw_evaluations(right, run, "kl_reverse", colour, "_")
        forward = PALETTE[1] if alone else colour
        draw_line(right, run.metrics, "kl_forward", forward, "forward" if alone else "_", "-" if alone else "--")
    middle.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    kl = "KL to the teacher, nats per token"
    dashed = any(finite_number(row, "kl_forward") is not None for run in runs for row in run.metrics) and len(runs) > 1
    for axes, title in ((middle, "accuracy"), (right, "KL, nats per token; dashed: forward" if dashed else kl)):
        _finish(axes, title)
    return figure


def _before_after(axes: Axes, runs: Sequence[RunData], labels: Sequence[str]) -> None:
    """Draw the intervals of all runs; those before training are grey."""
    rows = [
        (
            name if len(runs) == 1 else f"{label}, {name}",
            interval,
            GREY if name == "before" else PALETTE[i % len(PALETTE)],
        )
        for i, (run, label) in enumerate(zip(runs, labels, strict=True))
        for name, interval in named_intervals(run)
    ]
    if rows:
        draw_intervals(axes, rows)
    axes.set_title(labels[0] if len(runs) == 1 else "before and after", loc="left", fontsize=9, fontweight="bold")
    if not rows:
        _empty(axes, "no held-out evaluation")


def _finish(axes: Axes, title: str) -> None:
    """Add title, axis and legend to a panel with curves."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel("step")
    from_zero(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if not axes.lines:
        _empty(axes, "not recorded")
    elif len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best", handlelength=1.5)


def _label(name: str) -> str:
    """A name on one line; a leading underscore gets a space before it, because matplotlib hides such labels."""
    text = "".join(c if c.isprintable() else " " for c in name)
    return f" {text}" if text.startswith("_") else text


def _empty(axes: Axes, sentence: str) -> None:
    """Write a sentence into a panel without data."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", color=INK)
