"""Draw with matplotlib, and convert figures to inline SVG that uses the colours of the page."""

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

from limbeck.evaluate.intervals import Interval
from limbeck.report.numbers import format_percent
from limbeck.report.run_data import Row, RunData, finite_number, interval_of

INK = "#010203"
"""Text and axes are drawn in this colour, which ``to_svg`` replaces by ``currentColor``."""

# Okabe and Ito's palette, which colour-blind readers can distinguish.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#7f7f7f"

POINTS = 400
"""Largest number of points of a line (ours); longer runs are averaged in equal bins."""

WIDTH = 4.86
"""Width of a chart in inches: 350 units of 1/72 inch, the width of a phone's screen, so that text keeps its size."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.labelsize": 10,
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
    "text.parse_math": False,  # a dollar in the name of a run does not start a formula
}


@dataclass(frozen=True)
class Key:
    """An entry of a chart's legend, which the page shows as text next to a sign.

    Attributes:
        label: text of the entry.
        sign: ``line``, ``dash``, ``mark`` (a diamond) or ``square``.
        colour: in matplotlib.
    """

    label: str
    sign: str
    colour: str

    @property
    def css(self) -> str:
        """The colour as a variable of the page's style sheet."""
        return f"var(--line-{PALETTE.index(self.colour)})" if self.colour in PALETTE else "var(--grey)"


def series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a key, float ``[n]`` each; averaged in bins if there are more than ``POINTS``."""
    read = ((finite_number(row, "step"), finite_number(row, key)) for row in rows)
    pairs = [(step, value) for step, value in read if step is not None and value is not None]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    width = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / width, np.add.reduceat(y, edges[:-1]) / width


def draw_line(axes: Axes, rows: Sequence[Row], key: str, colour: str, label: str, dash: str = "-") -> bool:
    """Draw a curve: the values faint, and a centred moving average over them if there are enough values."""
    x, y = series(rows, key)
    if not len(x):
        return False
    window = min(2 * (len(x) // 40) + 1, 21)
    if window == 1:
        marker = "." if len(x) < 15 else None
        axes.plot(x, y, dash, color=colour, label=label, marker=marker, clip_on=False)
        return True
    axes.plot(x, y, dash, color=colour, linewidth=0.8, alpha=0.3, clip_on=False)
    # At the ends the window is cut, and the sum is divided by the remaining number of values.
    weight = np.ones(window)
    smooth = np.convolve(y, weight, "same") / np.convolve(np.ones_like(y), weight, "same")
    axes.plot(x, smooth, dash, color=colour, label=label, clip_on=False)
    return True


def draw_evaluations(
    axes: Axes, data: RunData, key: str, colour: str, label: str, shift: float = 0.0
) -> list[Interval | None]:
    """Draw held-out values as open diamonds with intervals, moved by ``shift`` steps; return the intervals."""
    x, y = series(data.evaluations, key)
    intervals = [interval_of(row, key) for row in data.evaluations if finite_number(row, key) is not None]
    if not len(x):
        return []
    if len(intervals) == len(x):
        for step, interval in zip(x, intervals, strict=True):
            if interval and math.isfinite(interval.low):
                axes.vlines(step + shift, interval.low, interval.high, color=colour, linewidth=1.4, clip_on=False)
    face: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.4, "markersize": 6}
    axes.plot(x + shift, y, "D", color=colour, label=label, zorder=3, clip_on=False, **face)
    return intervals


def from_zero(axes: Axes) -> None:
    """Start (or end) the axis of values at zero, so that noise far from zero does not look like a trend."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if math.isfinite(low) and low >= 0:
        axes.set_ylim(bottom=0)
    elif math.isfinite(high) and high <= 0:
        axes.set_ylim(top=0)


def draw_intervals(axes: Axes, rows: Sequence[tuple[str, Interval, str]]) -> None:
    """Draw a dot and a bar for each (label, interval, colour), the first row on top."""
    for i, (_, interval, colour) in enumerate(rows):
        low, high = (x if math.isfinite(x) else interval.mean for x in (interval.low, interval.high))
        axes.plot([100 * low, 100 * high], [i, i], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot(100 * interval.mean, i, "o", color=colour, markersize=7)
        axes.annotate(
            format_percent(interval.mean), (100 * high, i), xytext=(7, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    top = max(x for _, interval, _ in rows for x in (interval.mean, interval.high) if math.isfinite(x))
    axes.set_xlim(0, min(1.0, top) * 100 * 1.22 or 1)  # room for the label after the bar
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("held-out accuracy, %")


def to_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """Convert a figure to an inline ``<svg>`` with the page's colours, without metadata, with ``prefix`` in all ids."""
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
    text = text.replace(INK, "currentColor").replace(GREY, "var(--grey)")
    for i, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--line-{i})")
    size = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg role="img" aria-label="{escape(label)}" {size.group(0) if size else ""}>'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: opening, text))
