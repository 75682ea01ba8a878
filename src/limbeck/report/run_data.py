"""Read the folder of a run, also of one that was killed, resumed or stopped early.

The folder has ``run.json`` (the configuration) and three JSON-lines files that grow during the run: ``metrics.jsonl``,
``evaluations.jsonl`` and ``samples.jsonl``. Only ``run.json`` is required.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.evaluate.intervals import Interval, wilson
from limbeck.json_files import read_and_count_json_lines, read_json_object

Row = Mapping[str, Any]

PHASES = ("write", "read", "train")
"""The three stages of a step: responses are sampled, models score them, the student is trained."""


@dataclass(frozen=True)
class RunData:
    """The records of a run.

    Attributes:
        run: the content of ``run.json``; any key may be missing.
        metrics: one row for each step, in order; of a step that was done twice (in a resumed run) the last.
        evaluations: held-out evaluations in order of steps; the first is before training.
        samples: sample rollouts from the end of the run.
        spent: seconds and tokens summed over all rows, so that work done twice counts twice.
        broken: number of lines that could not be read.
        path: the folder, or None for data in memory.
    """

    run: Row
    metrics: tuple[Row, ...] = ()
    evaluations: tuple[Row, ...] = ()
    samples: tuple[Row, ...] = ()
    spent: Mapping[str, float] = field(default_factory=dict)
    broken: int = 0
    path: Path | None = None

    @property
    def before(self) -> Row | None:
        """The first evaluation, or None."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def after(self) -> Row | None:
        """The last evaluation, or None while there is only one."""
        return self.evaluations[-1] if len(self.evaluations) > 1 else None

    @property
    def steps(self) -> int:
        """The number of steps that were recorded."""
        return len(self.metrics)

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return bool(self.run.get("finished"))

    @property
    def wall_seconds(self) -> float | None:
        """Seconds from ``started`` to ``finished``; None if either is missing, or if the run was resumed."""
        if self.resumed:
            return None
        try:
            span = datetime.fromisoformat(self.run["finished"]) - datetime.fromisoformat(self.run["started"])
        except (KeyError, TypeError, ValueError):
            return None
        return span.total_seconds()

    @property
    def resumed(self) -> tuple[Row, ...]:
        """For each time the run was resumed, its ``step`` and ``command``."""
        history = self.run.get("resumed")
        return tuple(row for row in history if isinstance(row, dict)) if isinstance(history, list) else ()

    @property
    def planned(self) -> int | None:
        """The number of steps that the configuration asks for, or None if that is not known."""
        steps = finite_number(self.table("config"), "steps")
        return None if steps is None else int(steps)

    def table(self, key: str) -> Row:
        """A table of ``run.json``; empty if the key is missing or holds something else."""
        value = self.run.get(key)
        return value if isinstance(value, dict) else {}

    @property
    def name(self) -> str:
        """The title of the method, else its name."""
        return str(self.run.get("title") or self.run.get("method") or "run")


def load_run(run_dir: Path | str) -> RunData:
    """Read a run folder.

    Raises:
        LimbeckError: the folder has no readable ``run.json``.
    """
    folder = Path(run_dir)
    try:
        run = read_json_object(folder / "run.json")
    except OSError:
        raise LimbeckError(
            f"{str(folder)!r} is not a run folder (it has no run.json); name the folder of a run."
        ) from None
    if run is None:
        raise LimbeckError(f"run.json in {str(folder)!r} is not a JSON object; restore the file or name another run.")
    written, lost_metrics = read_and_count_json_lines(folder / "metrics.jsonl")
    evaluations, lost_evaluations = read_and_count_json_lines(folder / "evaluations.jsonl")
    samples, lost_samples = read_and_count_json_lines(folder / "samples.jsonl")
    return RunData(
        run=run,
        metrics=last_of_each_step(written),
        evaluations=last_of_each_step(evaluations),
        samples=samples,
        spent=totals(written),
        broken=lost_metrics + lost_evaluations + lost_samples,
        path=folder,
    )


def last_of_each_step(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The last row of each step, in order of steps; rows without a step are dropped."""
    by_step = {step: row for row in rows if (step := finite_number(row, "step")) is not None}
    return tuple(by_step[step] for step in sorted(by_step))


def totals(rows: Iterable[Row]) -> dict[str, float]:
    """Sums of seconds and tokens over rows, by name; names without values are absent."""
    sums: dict[str, float] = {}
    names = ("seconds", *(f"seconds_{phase}" for phase in PHASES), "tokens_written", "tokens_read")
    for row in rows:
        for name in names:
            if (value := finite_number(row, name)) is not None:
                sums[name] = sums.get(name, 0.0) + value
    return sums


def finite_number(row: Row | None, key: str) -> float | None:
    """A number of a row as a finite float, or None for anything else (absent, null, NaN, infinite, text)."""
    value = row.get(key) if row else None
    return as_number(value)


def as_number(value: object) -> float | None:
    """``value`` as a finite float, or None."""
    if not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def accuracy_interval(row: Row | None) -> Interval | None:
    """Wilson's 95% interval of an evaluation's accuracy; its ends are NaN if the number of problems is not known."""
    accuracy, n = finite_number(row, "accuracy"), finite_number(row, "n")
    if accuracy is None or not 0 <= accuracy <= 1:
        return None
    if n is None or n < 1:
        return Interval(accuracy, math.nan, math.nan, 0)
    return wilson(accuracy * int(n), int(n))


def interval_of(row: Row | None, key: str) -> Interval | None:
    """The 95% interval of a number of an evaluation: Wilson's for accuracy, else that in ``KEY_interval``."""
    if key == "accuracy":
        return accuracy_interval(row)
    value, held = finite_number(row, key), row.get(f"{key}_interval") if row else None
    if value is None or not isinstance(held, list) or len(held) != 2:
        return None
    low, high = map(as_number, held)
    if low is None or high is None or not low <= value <= high:
        return None
    return Interval(value, low, high, int(finite_number(row, "n") or 0))
