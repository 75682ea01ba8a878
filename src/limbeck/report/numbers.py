"""Numbers as text for people."""

from __future__ import annotations

import math

from limbeck.evaluate.intervals import Interval
from limbeck.report.run_data import RunData

DASH = "–"


def format_percent(value: float) -> str:
    """A percentage with one decimal, such as ``12.5%``."""
    return f"{100 * value:.1f}%"


def format_number(value: float | None) -> str:
    """Three significant digits, thousands separated; a dash for None."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{digits}f}"


def format_count(value: float | None) -> str:
    """A count with separated thousands; a dash for None."""
    return DASH if value is None else f"{round(value):,}"


def format_seconds(seconds: float | None) -> str:
    """``7.4 s``, ``3 min 12 s`` or ``5 h 02 min``; a dash for None."""
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_steps(data: RunData) -> str:
    """``120 steps``, or ``80 of 120 steps`` if the run has not done all of them."""
    done, planned = format_count(data.steps), data.planned
    return f"{done} steps" if planned in (None, data.steps) else f"{done} of {format_count(planned)} steps"


def format_interval(interval: Interval | None) -> str:
    """A percentage with its interval, such as ``12.5% [9.1, 16.9]``, or alone if the interval is not known."""
    if interval is None:
        return DASH
    if math.isnan(interval.low):
        return format_percent(interval.mean)
    return f"{format_percent(interval.mean)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def format_change(before: float | None, after: float | None) -> str:
    """The signed difference of two numbers, or a dash."""
    if before is None or after is None:
        return DASH
    text = format_number(abs(after - before))
    sign = "" if after == before else "+" if after > before else "−"
    return sign + text
