"""The sentences and the table at the top of a report: held-out measures before and after training."""

from __future__ import annotations

import math

from limbeck.evaluate.intervals import Interval, wilson_difference
from limbeck.report.numbers import DASH, format_change, format_count, format_interval, format_number, format_percent
from limbeck.report.run_data import Row, RunData, accuracy_interval, finite_number, interval_of

MEASURES = (
    ("KL reverse", "kl_reverse", "nats per token"),
    ("KL forward", "kl_forward", "nats per token"),
    ("reward", "reward", "per response"),
    ("entropy", "entropy", "nats per token"),
    ("length", "length", "tokens"),
    ("perplexity", "perplexity", "per token"),
)
"""Measures of an evaluation in addition to accuracy: name, key and unit."""


def headline_sentences(data: RunData) -> list[str]:
    """At most three sentences on the change of held-out accuracy."""
    before, after = accuracy_interval(data.before), accuracy_interval(data.after)
    if before is None or after is None:
        if (only := before or after) is None:
            return ["No held-out evaluation was recorded, so there is no accuracy to report."]
        when = "before training" if before else "after training"
        return [f"Held-out accuracy {when} was {_spoken(only)}; there is no second evaluation to compare it with."]
    verb = "rose" if after.mean > before.mean else "fell"
    moved = f"Held-out accuracy {verb} from {_spoken(before)} to {_spoken(after)}"
    if after.mean == before.mean:
        moved = f"Held-out accuracy stayed at {_spoken(after)}"
    problems = f" on {after.n:,} problems" if after.n else ""
    step = (
        "" if data.finished else f" by the last evaluation, at step {format_count(finite_number(data.after, 'step'))}"
    )
    return [f"{moved}{problems}{step}.", *_difference(before, after)]


def teacher_sentences(data: RunData) -> list[str]:
    """A sentence on the teacher's accuracy on the same problems; empty if it was not measured."""
    teacher = accuracy_interval(data.table("teacher_accuracy"))
    if teacher is None:
        return []
    problems = f" on {teacher.n:,} problems" if teacher.n else ""
    return [f"The teacher solves {_spoken(teacher)}{problems}."]


def _difference(before: Interval, after: Interval) -> list[str]:
    """The change in percentage points, and whether its interval contains zero."""
    if math.isnan(before.low) or math.isnan(after.low):
        return []
    change = wilson_difference(before, after)
    points = f"The change is {100 * change.mean:+.1f} points"
    sentence = f"{points} (95% interval {100 * change.low:+.1f} to {100 * change.high:+.1f})."
    if change.low <= 0 <= change.high:
        return [sentence, "That interval contains zero, so these problems do not show a change."]
    return [sentence]


def _spoken(interval: Interval) -> str:
    """A percentage with its interval, such as ``12.5% (95% interval 9.1 to 16.9)``."""
    if math.isnan(interval.low):
        return format_percent(interval.mean)
    return f"{format_percent(interval.mean)} (95% interval {100 * interval.low:.1f} to {100 * interval.high:.1f})"


def comparison(data: RunData, spread: bool = False) -> list[tuple[str, str, str, str, str]]:
    """Rows of the before/after table: measure, unit, before, after, change. Measures without a value are left out.

    Args:
        data: the run.
        spread: show the interval of every measure that has one, and not only of accuracy.
    """
    first, last = accuracy_interval(data.before), accuracy_interval(data.after)
    rows = []
    if first or last:
        moved = f"{100 * (last.mean - first.mean):+.1f} points" if first and last else DASH
        n = (last or first or Interval(0, 0, 0, 0)).n
        rows.append(
            ("accuracy", f"95%, n = {n:,}" if n else "95%", format_interval(first), format_interval(last), moved)
        )
    for name, key, unit in MEASURES:
        old, new = finite_number(data.before, key), finite_number(data.after, key)
        if old is not None or new is not None:
            was, became = (
                _spread(row, key) if spread else format_number(finite_number(row, key))
                for row in (data.before, data.after)
            )
            rows.append((name, unit, was, became, format_change(old, new)))
    return rows


def _spread(row: Row | None, key: str) -> str:
    """A value with its interval, such as ``0.690 [0.634, 0.746]``, or alone if the interval is not known."""
    interval = interval_of(row, key)
    value = format_number(finite_number(row, key))
    return f"{value} [{format_number(interval.low)}, {format_number(interval.high)}]" if interval else value
