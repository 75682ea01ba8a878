"""Compare several runs: settings that differ, results, cost, and paired differences to the first run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import LimbeckError, nearest
from limbeck.evaluate.intervals import Interval, mean_interval, paired_interval, wilson_difference
from limbeck.evaluate.paired import paired_difference
from limbeck.report.headline import MEASURES
from limbeck.report.numbers import (
    DASH,
    format_change,
    format_count,
    format_interval,
    format_number,
    format_percent,
    format_seconds,
    format_steps,
)
from limbeck.report.run_data import Row, RunData, accuracy_interval, as_number, finite_number, interval_of

HELD_OUT = ("accuracy", *(key for _, key, _ in MEASURES))
"""Measures of the last held-out evaluation."""

OTHERS = ("loss", "tokens_written", "seconds")
"""The loss of the last step, and sums over all steps."""

METRICS = (*HELD_OUT, *OTHERS)

HIGHER_FIRST = frozenset({"accuracy", "reward"})
"""Measures for which a larger value is listed first; for the others a smaller value is."""


@dataclass(frozen=True)
class Labelled:
    """A run with its label in the tables."""

    label: str
    data: RunData


@dataclass(frozen=True)
class Difference:
    """The difference of two runs, or of the runs of two configurations.

    Attributes:
        first, second: labels; the difference is second minus first.
        paired_by: ``problem`` or ``seed``.
        interval: of the mean difference, in the unit of the metric.
    """

    first: str
    second: str
    paired_by: str
    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """The result of comparing several runs.

    Attributes:
        metric: the measure of the differences.
        runs: in the order of the tables.
        differences: paired differences.
        spreads: for each configuration that ran with several seeds, its label and the mean over seeds.
        notes: sentences, for instance why runs cannot be paired.
    """

    metric: str
    runs: tuple[Labelled, ...]
    differences: tuple[Difference, ...]
    spreads: tuple[tuple[str, Interval], ...]
    notes: tuple[str, ...]


def compare_runs(runs: Sequence[Labelled], metric: str = "accuracy", ordered: bool = False) -> Comparison:
    """Compare runs with the first of them.

    Args:
        runs: at least two.
        metric: one of ``METRICS``.
        ordered: sort the runs by the metric, the best first (the smallest if no direction is better).

    Raises:
        LimbeckError: fewer than two runs, or an unknown metric.
    """
    if len(runs) < 2:
        raise LimbeckError(f"compare needs at least two runs, and {len(runs)} was named; name another.")
    if metric not in METRICS:
        raise LimbeckError(
            f"--metric {metric}: there is no such metric{nearest(metric, METRICS)}; give one of {', '.join(METRICS)}."
        )
    by_problem, why_problems = _by_problem(runs, metric)
    by_seed, spreads, why_seeds = _by_seed(runs, metric)
    notes = (*_tasks(runs), *_unfinished(runs), *why_problems, *why_seeds)
    shown = sorted(runs, key=lambda run: _rank(run.data, metric)) if ordered else runs
    return Comparison(metric, tuple(shown), (*by_problem, *by_seed), tuple(spreads), notes)


def final(data: RunData, metric: str) -> float | None:
    """The last recorded value of a metric; None if there is none."""
    if metric in HELD_OUT:
        return finite_number(data.after, metric)
    if metric == "loss":
        return next((x for row in reversed(data.metrics) if (x := finite_number(row, "loss")) is not None), None)
    return data.spent.get(metric)


def accuracy_change(data: RunData) -> Interval | None:
    """Accuracy after training minus before, paired by problem if the run stored its verdicts; None if unknown."""
    before, after = (verdicts(row) for row in (data.before, data.after))
    if before and after and len(before) == len(after):
        return paired_difference(before, after)
    first, last = accuracy_interval(data.before), accuracy_interval(data.after)
    if first is None or last is None:
        return None
    if math.isnan(first.low) or math.isnan(last.low):
        return Interval(last.mean - first.mean, math.nan, math.nan, 0)
    return wilson_difference(first, last)


def verdicts(row: Row | None) -> list[int]:
    """1 or 0 for each problem of an evaluation; empty if they were not stored."""
    held = row.get("correct") if row else None
    return [int(x) for x in held] if isinstance(held, list) and all(x in (0, 1) for x in held) else []


# ---------------------------------------------------------------- settings


def settings(data: RunData) -> dict[str, Any]:
    """The settings of a run, with dots for tables (``task_options.size``), without the seed and the method."""
    out: dict[str, Any] = {}
    _flatten("", data.table("config"), out)
    return {k.removeprefix("arguments."): v for k, v in out.items() if k not in ("seed", "method")}


def _flatten(prefix: str, table: Mapping[str, Any], out: dict[str, Any]) -> None:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            _flatten(f"{prefix}{key}.", value, out)
        elif value != {}:
            out[f"{prefix}{key}"] = value


def differing(runs: Sequence[Labelled]) -> list[tuple[str, list[Any]]]:
    """Each setting that differs between runs, with its value in each run; None if a run does not have it."""
    each = [settings(run.data) for run in runs]
    keys = dict.fromkeys(key for own in each for key in own)
    rows = [(key, [own.get(key) for own in each]) for key in keys]
    return [(key, values) for key, values in rows if any(_as_key(v) != _as_key(values[0]) for v in values)]


def _as_key(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# ---------------------------------------------------------------- pairs


def _by_problem(runs: Sequence[Labelled], metric: str) -> tuple[list[Difference], list[str]]:
    """The difference of each run to the first, paired by problem, and notes on runs that cannot be paired."""
    if metric != "accuracy":
        return [], [f"{metric} is not paired by problem, because a run stores only the verdict for each problem."]
    first, *others = runs
    found, notes = [], []
    for other in others:
        pairs, why = same_problems(first.data, other.data)
        if why:
            notes.append(f"{other.label} and {first.label} are not paired by problem: {why}.")
            continue
        found.append(Difference(first.label, other.label, "problem", paired_difference(*pairs)))
        if pairs and (n := len(verdicts(other.data.after))) != len(verdicts(first.data.after)):
            notes.append(
                f"{other.label} and {first.label} were evaluated on {n:,} and "
                f"{len(verdicts(first.data.after)):,} problems; they are paired on the first {len(pairs[0]):,}."
            )
    return found, notes


def same_problems(first: RunData, second: RunData) -> tuple[tuple[list[int], list[int]], str]:
    """The verdicts of two runs on the same problems, or a clause that says why they cannot be paired."""
    nothing: tuple[list[int], list[int]] = ([], [])
    data = [_data(run) for run in (first, second)]
    if first.run.get("task") != second.run.get("task"):
        return nothing, f"their tasks are {first.run.get('task')} and {second.run.get('task')}"
    if not all(isinstance(d.get("digest"), str) for d in data):
        return nothing, "one of them does not record which data it used"
    if data[0]["digest"] != data[1]["digest"]:
        return nothing, "their data differs (a generated task has other problems with another seed)"
    if first.after is None or second.after is None:
        return nothing, "one of them has no evaluation after training"
    a, b = verdicts(first.after), verdicts(second.after)
    if not a or not b:
        return nothing, "one of them stored no verdict for each problem"
    if _left_out(first, data[0], len(a)) or _left_out(second, data[1], len(b)):
        return nothing, "one of them left out problems that were too long, without recording which"
    k = min(len(a), len(b))  # an evaluation uses the first problems of the held-out split
    return (a[:k], b[:k]), ""


def _data(run: RunData) -> Mapping[str, Any]:
    """The record of the task's data in ``run.json``; empty if there is none."""
    inputs = run.table("inputs")
    data = inputs.get("data")
    task = data.get("task") if isinstance(data, dict) else None
    return task if isinstance(task, dict) else {}


def _left_out(run: RunData, recorded: Mapping[str, Any], asked: int) -> bool:
    """Whether the evaluation used fewer problems than were wanted and available."""
    wanted, there = finite_number(run.table("config"), "eval_size"), as_number(recorded.get("test"))
    return wanted is not None and there is not None and asked < min(wanted, there)


def _by_seed(runs: Sequence[Labelled], metric: str) -> tuple[list[Difference], list[tuple[str, Interval]], list[str]]:
    """Means over seeds of each configuration, and differences to the configuration of the first run."""
    groups: dict[str, list[Labelled]] = {}
    for run in runs:
        key = _as_key([run.data.run.get("method"), run.data.run.get("task"), settings(run.data)])
        groups.setdefault(key, []).append(run)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return [], [], []
    values = [_of_seeds(group, metric) for group in groups.values()]
    spreads = [
        (_group_label(group), mean_interval(list(own.values())))
        for group, own in zip(groups.values(), values, strict=True)
        if len(own) > 1
    ]
    found, notes = [], []
    (first, *others), (own, *theirs) = list(groups.values()), values
    for group, its in zip(others, theirs, strict=True):
        names = f"{_group_label(group)} and {_group_label(first)}"
        common = [seed for seed in own if seed in its]
        if first[0].data.run.get("task") != group[0].data.run.get("task"):
            notes.append(f"{names} are not paired by seed: their tasks differ.")
        elif len(common) < 2:
            notes.append(f"{names} are not paired by seed: they have {len(common)} seed in common, and two are needed.")
        else:
            interval = paired_interval([own[s] for s in common], [its[s] for s in common])
            found.append(Difference(_group_label(first), _group_label(group), "seed", interval))
    return found, spreads, notes


def _of_seeds(group: Sequence[Labelled], metric: str) -> dict[object, float]:
    """The metric by seed; of two runs with the same seed, that of the first."""
    out: dict[object, float] = {}
    for run in group:
        if (value := final(run.data, metric)) is not None:
            out.setdefault(str(run.data.run.get("seed")), value)
    return out


def _group_label(group: Sequence[Labelled]) -> str:
    """``kdrl (a, b, c)``."""
    return f"{group[0].data.run.get('method') or 'run'} ({', '.join(run.label for run in group)})"


# ---------------------------------------------------------------- notes and order


def _tasks(runs: Sequence[Labelled]) -> list[str]:
    tasks = dict.fromkeys(str(run.data.run.get("task") or "unknown") for run in runs)
    if len(tasks) < 2:
        return []
    return [f"The runs have different tasks ({', '.join(tasks)}), so their numbers are for different problems."]


def _unfinished(runs: Sequence[Labelled]) -> list[str]:
    return [
        f"{run.label} has not finished; its held-out numbers are those of step "
        f"{format_count(finite_number(run.data.after, 'step'))}."
        if run.data.after
        else f"{run.label} has no evaluation after training, so its held-out numbers are missing."
        for run in runs
        if run.data.after is None or not run.data.finished
    ]


def _rank(data: RunData, metric: str) -> tuple[bool, float]:
    value = final(data, metric)
    if value is None:
        return True, 0.0
    return False, -value if metric in HIGHER_FIRST else value


# ---------------------------------------------------------------- text

Section = tuple[str, list[tuple[str, list[str]]]]
"""A heading, and rows of a name with one cell for each run."""


def sections(found: Comparison) -> list[Section]:
    """The comparison as tables of text; rows without a value in any run are left out."""
    datas = [run.data for run in found.runs]
    what = [
        ("method", [data.name for data in datas]),
        ("task", [str(data.run.get("task") or DASH) for data in datas]),
        ("seed", [str(data.run.get("seed", DASH)) for data in datas]),
        ("steps", [format_steps(data).removesuffix(" steps") for data in datas]),
    ]
    unlike = [(key, [DASH if v is None else _short(v) for v in values]) for key, values in differing(found.runs)]
    reached = [
        ("accuracy before", [format_interval(accuracy_interval(data.before)) for data in datas]),
        ("accuracy after", [format_interval(accuracy_interval(data.after)) for data in datas]),
        ("change, points", [points(accuracy_change(data)) for data in datas]),
        *((f"{name}, {unit}", [_measure(data.after, key) for data in datas]) for name, key, unit in MEASURES),
        ("loss, last step", [format_number(final(data, "loss")) for data in datas]),
    ]
    cost = [
        ("time", [format_seconds(_seconds(data)) for data in datas]),
        ("tokens written", [format_count(data.spent.get("tokens_written")) for data in datas]),
        ("tokens read", [format_count(data.spent.get("tokens_read")) for data in datas]),
    ]
    made = (("run", what), ("settings that differ", unlike), ("held-out, after training", reached), ("cost", cost))
    kept = [(head, [row for row in rows if set(row[1]) != {DASH}]) for head, rows in made]
    return [(head, rows) for head, rows in kept if rows]


def sentences(found: Comparison) -> list[str]:
    """The paired differences and the means over seeds, one sentence each."""
    out = []
    for d in found.differences:
        n = f"{d.interval.n:,} {d.paired_by}{'' if d.interval.n == 1 else 's'}"
        zero = math.isfinite(d.interval.low) and d.interval.low <= 0 <= d.interval.high
        chance = "; the interval contains zero, so this may be chance" if zero else ""
        value = signed(d.interval, found.metric)
        out.append(f"{d.second} minus {d.first}: {value} {found.metric}, paired by {n}{chance}.")
    for label, interval in found.spreads:
        mean = _value(interval.mean, found.metric)
        low, high = (_value(x, found.metric) for x in (interval.low, interval.high))
        out.append(f"{label}: mean {found.metric} over {interval.n} seeds {mean} [{low}, {high}].")
    return out


def points(interval: Interval | None) -> str:
    """A difference of accuracies in percentage points, such as ``+12.5 [+8.0, +17.1]``."""
    return DASH if interval is None else signed(interval, "accuracy").removesuffix(" points")


def signed(interval: Interval, metric: str) -> str:
    """A signed difference, such as ``+12.5 [+8.0, +17.1] points``; the interval is left out if it is not known."""
    ends = (interval.low, interval.high)
    if metric == "accuracy":
        bounds = "" if math.isnan(ends[0]) else f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
        return f"{100 * interval.mean:+.1f}{bounds} points"
    bounds = "" if math.isnan(ends[0]) else f" [{', '.join(format_change(0.0, x) for x in ends)}]"
    return f"{format_change(0.0, interval.mean)}{bounds}"


def _value(x: float, metric: str) -> str:
    return format_percent(x) if metric == "accuracy" else format_number(x)


def _measure(row: Row | None, key: str) -> str:
    value, interval = finite_number(row, key), interval_of(row, key)
    spread = f" [{format_number(interval.low)}, {format_number(interval.high)}]" if interval else ""
    return f"{format_number(value)}{spread}"


def _seconds(data: RunData) -> float | None:
    return data.wall_seconds if data.wall_seconds is not None else data.spent.get("seconds")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
