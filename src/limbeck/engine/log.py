"""What a run writes down: run.json, metrics.jsonl, evaluations.jsonl, samples.jsonl, and a line for people."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..errors import LimbeckError
from ..explain import explain
from ..terminal import printable
from .files import append_line, read_lines, whole, write_json, write_lines

_PACKAGES = ("limbeck", "torch", "transformers", "accelerate", "peft", "reasoning-gym")


def versions() -> dict[str, str]:
    """Installed versions of what decides a run."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def machine() -> dict[str, Any]:
    """What it ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "cores": torch.get_num_threads(), "gpu": gpu}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The git commit of the working folder, where there is one."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def now() -> str:
    """The time, with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Journal:
    """The files of one run's folder. Only the main process holds one."""

    def __init__(self, out: Path):
        self.out = out

    @property
    def run(self) -> Path:
        """What was run."""
        return self.out / "run.json"

    @property
    def metrics(self) -> Path:
        """A line a step."""
        return self.out / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """A line an evaluation."""
        return self.out / "evaluations.jsonl"

    @property
    def samples(self) -> Path:
        """Rollouts to look at."""
        return self.out / "samples.jsonl"

    def describe(self, workshop: Any, command: str) -> None:
        """Write run.json at the start."""
        config, method = workshop.config, workshop.method
        policies = workshop.policies
        teacher = policies.get("teacher")
        write_json(
            self.run,
            {
                "method": method.name or "custom",
                "title": method.title,
                "paper": method.paper or None,
                "formula": explain(method),
                "command": command,
                "config": config.model_dump(mode="json"),
                "seed": config.seed,
                "versions": versions(),
                "machine": machine(),
                "student": config.student,
                "teacher": config.teacher,
                "task": workshop.desk.tasks["task"].name,
                "started": now(),
                "finished": None,
                "parameters": {
                    "student": policies["student"].parameters(),
                    "teacher": teacher.parameters() if teacher else None,
                },
                "git": commit(),
            },
        )

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_json(self.run, {**read_run(self.out), **fields})

    def resumed(self, config: Mapping[str, Any], command: str, step: int) -> None:
        """The run goes on from a step, with settings that may differ in the number of steps."""
        earlier = read_run(self.out).get("resumed")
        history = [*(earlier if isinstance(earlier, list) else []), {"command": command, "step": step, "at": now()}]
        self.update(config=config, finished=None, resumed=history)

    def step(self, values: Mapping[str, Any]) -> None:
        """One more line of metrics."""
        append_line(self.metrics, values)

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """One more evaluation."""
        append_line(self.evaluations, {"step": step, **values})

    def rewind(self, step: int) -> None:
        """Forget what came after a checkpoint, so that a resumed run reads as one that never stopped."""
        done = [m for m in read_lines(self.metrics) if (at := whole(m, "step")) is not None and at < step]
        write_lines(self.metrics, done)
        seen = [e for e in read_lines(self.evaluations) if (at := whole(e, "step")) is not None and at <= step]
        write_lines(self.evaluations, seen)


def read_run(out: Path) -> dict[str, Any]:
    """run.json of a folder.

    Raises:
        LimbeckError: where the folder holds no run.
    """
    try:
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LimbeckError(f"{out} holds no run (there is no run.json in it); name the --out folder of one.") from None
    except (OSError, ValueError, RecursionError) as e:
        raise LimbeckError(f"{out}/run.json is damaged ({e}); restore it, or start a new run.") from None
    if not isinstance(run, dict):
        raise LimbeckError(f"{out}/run.json is damaged (it holds no table); restore it, or start a new run.")
    return run


class _Words(TextColumn):
    """A text as it is."""

    def render(self, task: Task) -> Text:
        """The text, with control characters spelled out."""
        return Text(printable(super().render(task).plain))


def progress_bar(console: Console) -> Progress:
    """The bar of a run."""
    return Progress(
        _Words("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Words("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    )


def note(values: Mapping[str, Any]) -> str:
    """The newest numbers, short."""
    shown = (("reward", "reward"), ("accuracy", "right"), ("kl_reverse", "KL"), ("entropy", "H"), ("loss", "loss"))
    parts = [f"{label} {values[key]:.3f}" for key, label in shown if isinstance(values.get(key), float)]
    return " · ".join(parts[:4])
