"""Notices before the first step: remarks about settings, data and models that are allowed."""

from __future__ import annotations

from ..tasks import DatasetTask, Task
from .checks import lacking, same_for_all
from .forecast import few_prompts, too_short, unfamiliar
from .models.checks import losses_left_out
from .models.policy import Policy, own_end
from .session import Session
from .storage import provenance

FEW_PROBLEMS = 20
"""Held-out problems below which a notice says that an accuracy means little (ours)."""


def notices(session: Session) -> list[str]:
    """Sentences for people, each of which opens with ``note:``."""
    task = session.tasks["task"]
    return [
        *session.notices,
        *few_problems(task, session.config.eval_size),
        *provenance.consistency(session.method, session.policies),
        *few_prompts(session),
        *too_short(session),
        *unfamiliar(session),
        *same_for_all(session.method, session.templates),
        *lacking(session.method, task),
        *_of_models(session),
        *_ends(session.student, session.policies.get("teacher")),
    ]


def few_problems(task: Task, size: int) -> list[str]:
    """A notice where a task holds out so few problems that its accuracy means little.

    Args:
        task: whose held-out problems are counted.
        size: how many an evaluation asks for; 0 asks for none.
    """
    n = len(task.test)
    if n >= min(FEW_PROBLEMS, size):
        return []
    few = "no problem" if not n else "1 problem" if n == 1 else f"{n} problems"
    why = "so nothing will be evaluated" if not n else "and an accuracy of so few is mostly chance"
    remedy = (
        "give held-out problems of their own (test=..., or --set task_options.test=FILE or SPLIT), or hold out a "
        "larger share (test_size=0.3, or --set task_options.test_size=0.3)"
        if isinstance(task, DatasetTask)
        else "give it more problems to hold out (test_size, where it has that option)"
    )
    return [f"note: {task.name!r} holds out {few}, {why}; {remedy}."]


def _ends(student: Policy, teacher: Policy | None) -> list[str]:
    """Notices about the token that ends a turn: the student did not stop at it, or its teacher uses another one."""

    def named(policy: Policy, *ids: int) -> str:
        return " ".join(map(repr, policy.tokenizer.convert_ids_to_tokens(list(ids))))

    notes = []
    if student.end not in student.stops:
        notes.append(
            f"note: the student's chat template ends a turn with {named(student, student.end)}, which is not among the "
            f"tokens at which it stops ({named(student, *student.stops)}); generation stops there too, and the "
            "student's generation_config.json will say so."
        )
    if teacher is None:
        return notes
    # A teacher with a chat format of its own ends as that format does; any other as its own tokenizer's format does.
    foreign = teacher.chat is not student.chat
    own = teacher.chat.end if foreign else None if student.chat.plain else own_end(teacher)
    if student.end in (teacher.stops if own is None else (own,)):
        return notes
    theirs = named(teacher, *(teacher.stops if own is None else (own,)))
    return [
        *notes,
        f"note: the student ends a response with {named(student, student.end)} and the teacher with {theirs}, so the "
        "teacher finds every end unlikely and responses may grow; use a teacher tuned on the same chat format.",
    ]


def _of_models(session: Session) -> list[str]:
    """Notices about models that are trained or read in another form than the given one."""
    student, notes = session.student, []
    if student.was is not None:
        notes.append(
            f"note: the student's weights were given in {str(student.was).removeprefix('torch.')}, in which most of "
            "them would not move; the object now holds them in float32."
        )
    for role, policy in session.policies.items():
        if policy.adapter:
            kept = " and trained on" if role == "student" else ""
            notes.append(f"note: {role}={policy.name!r} is an adapter; it is merged into its base model{kept}.")
    if student.writes != "padded":
        how = "prompts of one length" if student.writes == "alike" else "one prompt"
        notes.append(
            f"note: the student reads padding, or other rows of a batch, as text, so it writes for {how} at a time, "
            "which is slower."
        )
    if left_out := losses_left_out(student.model):
        notes.append(
            f"note: the student's config.json asks for a loss of its own ({', '.join(left_out)}), which is not added; "
            "watch that its experts stay in use, or train adapters (lora_rank)."
        )
    return notes
