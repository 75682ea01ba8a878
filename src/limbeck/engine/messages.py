"""Sentences about a run for the person who started it: notices, faults of steps, and the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ..report import load_run, summary_table
from .console import print_exact_line
from .rollout.writer import Failures
from .watch import Watch


class RunMessages:
    """Prints the sentences of a run; failures of environments and verifiers are explained once a run.

    Attributes:
        console: of the main process; that of any other process is quiet.
        watch: finds faults in the metrics of steps.
    """

    def __init__(self, console: Console, watch: Watch):
        self.console, self.watch = console, watch
        self._explained: set[str] = set()

    def warn(self, sentences: Iterable[str]) -> None:
        """Print sentences in yellow, a line each."""
        for sentence in sentences:
            print_exact_line(self.console, sentence, "yellow")

    def after_step(self, step: int, metrics: Mapping[str, Any], failures: Failures) -> bool:
        """Warn about faults of a step. Returns whether the warnings of the run have changed."""
        faults = self.watch.after(metrics)
        self.warn(faults)
        died, unjudged = metrics.get("episodes_died"), metrics.get("verifier_failed")
        if died:
            self._once(
                "episodes_died",
                f"note: {died} episodes of step {step} were broken off by their environment "
                f"({failures.first_death}) and dropped; episodes_died in metrics.jsonl goes on counting.",
            )
        if unjudged:
            self._once(
                "verifier_failed",
                f"note: the verifier judged {unjudged} responses of step {step} not at all "
                f"({failures.first_unjudged}); verifier_failed in metrics.jsonl goes on counting.",
            )
        return bool(faults)

    def _once(self, what: str, sentence: str) -> None:
        if what not in self._explained:
            self._explained.add(what)
            self.warn([sentence])

    def going_on(self, out: Path, step: int, steps: int) -> None:
        """Say from which step a resumed run goes on."""
        self.console.print(f"continuing {out} from step {step}.", highlight=False)
        if step >= steps:
            self.console.print(f"{out} has already done its {steps} steps; --steps N trains longer.")

    def accepted(self, changes: Iterable[str]) -> None:
        """Say which changes the user has accepted."""
        self.warn(f"note: going on although {change}." for change in changes)

    def finished(self, out: Path, report: Path | None) -> None:
        """Print the summary of a run that has finished, and what went wrong in it."""
        if report is not None:
            self.console.print(summary_table(load_run(out)))
            self.console.print(f"student  {out / 'student'}\nreport   {report}", highlight=False)
        if self.watch.last:
            self.warn([self.watch.last])
