"""Numbers as a reader wants them, and the sentences of the headline."""

from __future__ import annotations

import math

from limbeck.evaluate.intervals import Interval, wilson_difference
from limbeck.report.run_data import Row, RunData, accuracy_interval, interval_of, number

MEASURES = (
    ("KL reverse", "kl_reverse", "nats per token"),
    ("KL forward", "kl_forward", "nats per token"),
    ("reward", "reward", "per response"),
    ("entropy", "entropy", "nats per token"),
    ("length", "length", "tokens"),
    ("perplexity", "perplexity", "per token"),
)
"""What an evaluation may report beside accuracy: name, key and unit."""

DASH = "–"


def percent(value: float) -> str:
    """``12.5%``."""
    return f"{100 * value:.1f}%"


def plain(value: float | None) -> str:
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


def whole(value: float | None) -> str:
    """A count with its thousands separated; a dash for None."""
    return DASH if value is None else f"{round(value):,}"


def duration(seconds: float | None) -> str:
    """``7.4 s``, ``3 min 12 s`` or ``5 h 02 min``; a dash for None."""
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def steps(data: RunData) -> str:
    """``120 steps``, or ``80 of 120 steps`` where fewer were done than asked."""
    done, planned = whole(data.steps), data.planned
    return f"{done} steps" if planned in (None, data.steps) else f"{done} of {whole(planned)} steps"


def bounds(interval: Interval | None) -> str:
    """``12.5% [9.1, 16.9]``, without ends that are not known."""
    if interval is None:
        return DASH
    if math.isnan(interval.low):
        return percent(interval.mean)
    return f"{percent(interval.mean)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def headline(data: RunData) -> list[str]:
    """What the run did to held-out accuracy, in at most three sentences."""
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
    step = "" if data.finished else f" by the last evaluation, at step {whole(number(data.after, 'step'))}"
    return [f"{moved}{problems}{step}.", *_difference(before, after)]


def ceiling(data: RunData) -> list[str]:
    """What the teacher reaches on the same problems, as far as it was measured."""
    teacher = accuracy_interval(data.table("teacher_accuracy"))
    if teacher is None:
        return []
    problems = f" on {teacher.n:,} problems" if teacher.n else ""
    return [f"The teacher answers {_spoken(teacher)} right{problems}."]


def _difference(before: Interval, after: Interval) -> list[str]:
    """The change in points, and whether chance alone could have made it."""
    if math.isnan(before.low) or math.isnan(after.low):
        return []
    change = wilson_difference(before, after)
    points = f"The change is {100 * change.mean:+.1f} points"
    sentence = f"{points} (95% interval {100 * change.low:+.1f} to {100 * change.high:+.1f})."
    if change.low <= 0 <= change.high:
        return [sentence, "That interval holds zero: these problems alone do not show that anything changed."]
    return [sentence]


def _spoken(interval: Interval) -> str:
    """``12.5% (95% interval 9.1 to 16.9)``."""
    if math.isnan(interval.low):
        return percent(interval.mean)
    return f"{percent(interval.mean)} (95% interval {100 * interval.low:.1f} to {100 * interval.high:.1f})"


def change(before: float | None, after: float | None) -> str:
    """The signed difference of two numbers, or a dash."""
    if before is None or after is None:
        return DASH
    text = plain(abs(after - before))
    sign = "" if after == before else "+" if after > before else "−"
    return sign + text


def comparison(data: RunData, spread: bool = False) -> list[tuple[str, str, str, str, str]]:
    """Rows of the before/after table: measure, unit, before, after, change. Measures nobody reported are left out.

    Args:
        data: the run.
        spread: show the interval of every measure that has one, not of accuracy alone.
    """
    first, last = accuracy_interval(data.before), accuracy_interval(data.after)
    rows = []
    if first or last:
        moved = f"{100 * (last.mean - first.mean):+.1f} points" if first and last else DASH
        n = (last or first or Interval(0, 0, 0, 0)).n
        rows.append(("accuracy", f"95%, n = {n:,}" if n else "95%", bounds(first), bounds(last), moved))
    for name, key, unit in MEASURES:
        old, new = number(data.before, key), number(data.after, key)
        if old is not None or new is not None:
            was, became = (
                _spread(row, key) if spread else plain(number(row, key)) for row in (data.before, data.after)
            )
            rows.append((name, unit, was, became, change(old, new)))
    return rows


def _spread(row: Row | None, key: str) -> str:
    """``0.690 [0.634, 0.746]``, without ends that are not known."""
    interval = interval_of(row, key)
    value = plain(number(row, key))
    return f"{value} [{plain(interval.low)}, {plain(interval.high)}]" if interval else value
