"""The end of a run: its result, and the student in Hugging Face format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..json_files import read_json_lines
from . import model_card as card
from .models.policy import keep_format
from .session import Session
from .storage import provenance
from .storage.atomic import whole_folder


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        out: its folder.
        before, after: evaluations (see ``evaluations.jsonl``), or None.
        steps: optimiser batches done.
        report: the HTML report.
        student: the trained student, a Hugging Face folder.
    """

    out: Path
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    steps: int
    report: Path | None
    student: Path

    @property
    def accuracy(self) -> float | None:
        """The accuracy on held-out problems after training; None without such an evaluation."""
        return None if self.after is None else self.after.get("accuracy")

    def __repr__(self) -> str:
        """One line for a notebook: the folder, the steps, and the accuracy before and after."""
        shares = [evaluation.get("accuracy") for evaluation in (self.before, self.after) if evaluation is not None]
        known = [f"{share:.1%}" for share in shares if share is not None]
        accuracy = f", accuracy {' -> '.join(known)}" if known else ""
        return f"Result({str(self.out)!r}, {self.steps} {'step' if self.steps == 1 else 'steps'}{accuracy})"


def result_of(out: Path) -> Result:
    """The result of a run that has finished, from its folder."""
    evaluations = read_json_lines(out / "evaluations.jsonl")
    before = evaluations[0] if evaluations else None
    after = evaluations[-1] if len(evaluations) > 1 else None
    report = out / "report.html"
    steps = len(read_json_lines(out / "metrics.jsonl"))
    return Result(out, before, after, steps, report if report.is_file() else None, out / "student")


def export(session: Session, out: Path) -> None:
    """Write the student in Hugging Face format with adapters merged, and the adapters in a folder of their own too."""
    student = session.student
    model = student.model
    if session.config.lora_rank:
        with whole_folder(out / "adapter") as folder:
            model.save_pretrained(folder)
            card.finish(folder, session, out, adapter=True)
        model = model.merge_and_unload()
    keep_format(student, model)
    with whole_folder(out / "student") as folder:
        model.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
        provenance.write_provenance(folder, session.method, session.policies)
        card.finish(folder, session, out)


class Swapped:
    """A context manager that gives a policy another module."""

    def __init__(self, policy: Any, module: Any):
        self.policy, self.module = policy, module

    def __enter__(self) -> None:
        self.before, self.policy.scorer = self.policy.scorer, self.module

    def __exit__(self, *_: object) -> None:
        self.policy.scorer = self.before
