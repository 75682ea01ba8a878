"""Records of a run: run.json, metrics.jsonl, evaluations.jsonl, samples.jsonl."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...errors import LimbeckError
from ...json_files import read_json_lines
from ...space.explain import explain
from ...space.method import Method
from .atomic import append_line, sync, whole_number_in, write_json, write_lines

_PACKAGES = ("limbeck", "torch", "transformers", "accelerate", "peft", "reasoning-gym")


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a run."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def machine() -> dict[str, Any]:
    """The machine of the run."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "cores": torch.get_num_threads(), "gpu": gpu}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The git commit of the working folder; None where it has none."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def now() -> str:
    """The time, with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunLog:
    """The files of one run's folder. Only the main process holds one."""

    def __init__(self, out: Path):
        self.out = out

    @property
    def run(self) -> Path:
        """Path of run.json, which describes the run."""
        return self.out / "run.json"

    @property
    def metrics(self) -> Path:
        """Path of metrics.jsonl, with a line for each step."""
        return self.out / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """Path of evaluations.jsonl, with a line for each evaluation."""
        return self.out / "evaluations.jsonl"

    @property
    def samples(self) -> Path:
        """Path of samples.jsonl, with rollouts for the report."""
        return self.out / "samples.jsonl"

    def describe(self, session: Any, command: str, inputs: Mapping[str, Any] | None = None) -> None:
        """Write run.json at the start; ``inputs`` are the result of ``inputs.of_run``."""
        config, method = session.config, session.method
        policies = session.policies
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
                "task": session.tasks["task"].name,
                "started": now(),
                "finished": None,
                "parameters": {
                    "student": policies["student"].parameters(),
                    "teacher": teacher.parameters() if teacher else None,
                },
                "git": git_commit(),
                "inputs": dict(inputs or {}),
                "terms": term_names(method),
            },
        )

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_json(self.run, {**read_run(self.out), **fields})

    def resumed(self, config: Mapping[str, Any], command: str, step: int, **accepted: Any) -> None:
        """Record that the run goes on from a step, with settings that may differ in the number of steps.

        Args:
            config: now in force.
            command: as typed.
            step: to go on from.
            **accepted: ``changes`` that the user accepted, as clauses, and the ``inputs`` now in force.
        """
        earlier = read_run(self.out).get("resumed")
        row = {"command": command, "step": step, "at": now()}
        if accepted.get("changes"):
            row["accepted"] = accepted["changes"]
        history = [*(earlier if isinstance(earlier, list) else []), row]
        inputs = {"inputs": accepted["inputs"]} if "inputs" in accepted else {}
        self.update(config=config, finished=None, resumed=history, **inputs)

    def sync(self) -> None:
        """Put the lines so far on the disk, before a checkpoint that covers them is written."""
        for file in (self.metrics, self.evaluations):
            if file.exists():
                sync(file)
        sync(self.out)

    def lacks(self, step: int, evaluated: Collection[int]) -> list[str]:
        """Missing and doubled lines of the first ``step`` steps, as clauses.

        Args:
            step: number of steps that must have a line of metrics.
            evaluated: numbers of steps after which there must be an evaluation.
        """
        out = []
        for file, wanted in ((self.metrics, range(step)), (self.evaluations, evaluated)):
            there = Counter(at for row in read_json_lines(file) if (at := whole_number_in(row, "step")) is not None)
            lost = [at for at in wanted if not there[at]]
            twice = [at for at in wanted if there[at] > 1]
            if lost:
                more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
                out.append(f"{file.name} lacks the line of step {lost[0]}{more}")
            if twice:
                out.append(f"{file.name} holds the line of step {twice[0]} more than once")
        return out

    def step(self, values: Mapping[str, Any]) -> None:
        """Append a line of metrics."""
        append_line(self.metrics, values)

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line of an evaluation."""
        append_line(self.evaluations, {"step": step, **values})

    def rewind(self, step: int) -> None:
        """Remove the lines after a checkpoint, so that a resumed run has the lines of one that never stopped."""
        for file, end in ((self.metrics, step), (self.evaluations, step + 1)):
            rows = {at: r for r in read_json_lines(file) if (at := whole_number_in(r, "step")) is not None and at < end}
            write_lines(file, rows.values())


def term_names(method: Method) -> dict[str, str]:
    """Each term in a few words, by the number that its metrics have in their names."""
    texts = [f"{term.surrogate} of {term.signal}" for _, term in method.parts]
    return {str(i): text if len(text) <= 70 else f"{text[:69]}…" for i, text in enumerate(texts, 1)}


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
