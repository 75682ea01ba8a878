"""Output of a run while it works: status lines, the progress bar, and one line a step where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..terminal import printable


def print_exact_line(console: Console, text: str, style: str = "") -> None:
    """Print a line exactly as it is: no markup, and not broken."""
    console.print(Text(text, style=style), soft_wrap=True)


class StatusLine:
    """The current action, such as loading models: a live line on a terminal, one line for each action in a log."""

    def __init__(self, console: Console, text: str):
        self.console, self.text, self.newest = console, text, ""
        self.status = console.status(text) if console.is_terminal else None

    def __call__(self, text: str) -> None:
        if self.status is not None:
            self.status.update(text)
            return
        action = text.partition(":")[0]  # the rest is the progress of the action
        if action != self.newest:
            self.newest = action
            print_exact_line(self.console, action)

    def __enter__(self) -> StatusLine:
        if self.status is not None:
            self.status.start()
        self(self.text)
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            self.status.stop()


class _PlainColumn(TextColumn):
    """A column of text with its control characters spelled out."""

    def render(self, task: Task) -> Text:
        return Text(printable(super().render(task).plain))


def progress_bar(console: Console) -> Progress:
    """The progress bar of a run."""
    return Progress(
        _PlainColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _PlainColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    )


def newest_numbers(metrics: Mapping[str, Any]) -> str:
    """The loss, the reward, the accuracy, the KL or the entropy of a step, four at most, in one short text."""
    labels = {key: key for key in ("loss", "reward", "accuracy")} | {"kl_reverse": "KL", "entropy": "entropy"}
    parts = [f"{label} {metrics[key]:.3f}" for key, label in labels.items() if isinstance(metrics.get(key), float)]
    seconds, tokens = metrics.get("seconds"), metrics.get("tokens_written")
    if seconds and tokens:
        parts = [*parts[:3], f"{tokens / seconds:,.0f} tokens/s"]
    return " · ".join(parts[:4])


class StepLines:
    """Lines about steps where there is no terminal: every step of a slow run, one every few seconds of a fast one.

    The first step and the last always have a line. The pause between two lines grows with the run, from 5 seconds to a
    minute (ours).
    """

    def __init__(self, console: Console, name: str, first: int, steps: int):
        self.console, self.name, self.first, self.steps = console, name, first, steps
        self.start = self.newest = time.monotonic()

    def step(self, done: int, metrics: Mapping[str, Any], last: bool) -> None:
        """Print a line after ``done`` steps, where one is due."""
        at = time.monotonic()
        pause = min(60.0, max(5.0, (at - self.start) / 20))
        if self.console.is_terminal or not (last or done == self.first + 1 or at - self.newest >= pause):
            return
        self.newest = at
        left = (self.steps - done) * (at - self.start) / (done - self.first)
        text = f"{self.name} {done}/{self.steps} {newest_numbers(metrics)}"
        print_exact_line(self.console, text if last else f"{text} · {time_left(left)} left")


def time_left(seconds: float) -> str:
    """``0:42``, ``1:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
