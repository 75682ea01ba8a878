"""Reads every prompt and demonstration before the first step, for texts that are too long or cannot be rendered."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..errors import LimbeckError
from ..tasks import Response, Task
from ..types import Prompt
from .models.written import forged, special_text
from .session import Session

PATIENCE = 10.0
"""Seconds spent on prompts that a task generates when they are read (ours); stored data is read whole."""

AT_ONCE = 256
"""Prompts tokenised at once."""


def check_prompts(
    session: Session,
    read: Collection[str],
    tell: Callable[[str], None],
    learns: bool = True,
    most: int | None = None,
) -> list[str]:
    """Refuse prompts and written responses that a model cannot read, and count those that a limit leaves out or cuts.

    Args:
        session: models, tasks and limits.
        read: names of the data whose written responses are trained on.
        tell: called with progress messages.
        learns: whether training prompts are read; those held out for the evaluation always are.
        most: prompts of each split that are read; None reads all.

    Returns:
        Notes for people.

    Raises:
        LimbeckError: naming the file and the line, where there is one.
    """
    notes: list[str] = []
    for name, task in session.tasks.items():
        if learns:
            first = task.train if most is None or len(task.train) <= most else [task.train[i] for i in range(most)]
            notes += _read(session, task, first, "training", name in read, tell)
        if name == "task":
            held_out = [
                task.test[i] for i in range(min(session.config.eval_size, len(task.test), most or len(task.test)))
            ]
            # Without a teacher, the evaluation's perplexity is that of the data's own responses.
            notes += _read(session, task, held_out, "held-out", "responses" in task.serves and _alone(session), tell)
    for role in ("student", *sorted(session.renderer.formats)):
        notes += session.policy(role).chat.notes()
    return notes


def _alone(session: Session) -> bool:
    """Whether no teacher is there to which the student is compared."""
    return "teacher" not in session.policies


@dataclass
class _Count:
    """Counts of one split."""

    prompts: int = 0
    long: int = 0
    first: str = ""
    responses: int = 0
    cut: int = 0
    longest: int = 0
    alike: int = 0
    special: re.Pattern[str] | None = None
    forged: int = 0
    forgery: str = ""
    given: dict[str, None] = field(default_factory=dict)


def _read(
    session: Session, task: Task, prompts: Sequence[Prompt], kind: str, demonstrated: bool, tell: Callable[[str], None]
) -> list[str]:
    made, start, n, count = not isinstance(prompts, tuple | list), time.monotonic(), len(prompts), _Count()
    chat = session.policy("student").chat
    count.special = None if chat.plain else special_text(chat.tokenizer)  # plain text may be a whole rendered chat
    for first in range(0, n, AT_ONCE):
        if made and first and time.monotonic() - start > PATIENCE:
            break
        tell(f"reading {kind} prompts of {task.name}: {first + 1} of {n}")
        _look(session, task, [prompts[i] for i in range(first, min(first + AT_ONCE, n))], demonstrated, count)
    if n and count.long == count.prompts and kind == "training":
        raise LimbeckError(
            f"every training prompt of {task.name!r} is too long for a model's window (the first: {count.first}), and "
            "skip_overlong=true leaves them all out; shorten them, or lower max_tokens."
        )
    return _said(session, task, kind, n, count)


def _look(session: Session, task: Task, prompts: Sequence[Prompt], demonstrated: bool, count: _Count) -> None:
    """Count one batch of prompts and their responses; refuse those that no model can read."""
    count.prompts += len(prompts)
    written: list[tuple[Prompt, Response]] = []
    for prompt, long in zip(prompts, session.renderer.too_long(prompts), strict=True):
        token = forged(prompt, count.special)
        count.forged += token is not None
        count.forgery = count.forgery or (f"{token!r} in {prompt.at}prompt {prompt.id!r}" if token else "")
        count.given |= dict.fromkeys([*prompt.chat_template_kwargs, *(k for m in prompt.messages for k in m)])
        if long is None:
            written += [(prompt, r) for r in task.responses(prompt)] if demonstrated else []
        elif session.config.skip_overlong:
            count.long, count.first = count.long + 1, count.first or f"{prompt.at}prompt {prompt.id!r}"
        else:
            raise long
    count.given |= dict.fromkeys(k for _, r in written for k in r.further)
    responses = session.renderer.all_response_ids(written)
    count.responses += len(responses)
    count.cut += sum(len(ids) > session.config.max_tokens for ids in responses)
    count.longest = max([count.longest, *map(len, responses)])
    for (prompt, _), ids, (other, _), others in zip(written, responses, written[1:], responses[1:], strict=False):
        count.alike += prompt is other and ids[: session.config.max_tokens] == others[: session.config.max_tokens]


def _said(session: Session, task: Task, kind: str, n: int, count: _Count) -> list[str]:
    notes = []
    unwritten = {"role", "content", *session.policy("student").chat.checks.left_out}
    given = [key for key in count.given if key not in unwritten]
    if given and kind == "training":
        notes.append(f"note: {task.name!r} also gives the chat template {', '.join(given)}, which it writes.")
    if count.prompts < n:
        notes.append(
            f"note: {count.prompts:,} of {n:,} {kind} prompts of {task.name!r} were measured before the first step, "
            "because the task generates each when it is read; the others are measured during the run."
        )
    if count.forged:
        notes.append(
            f"note: {count.forged:,} of {count.prompts:,} {kind} prompts of {task.name!r} hold a special token in a "
            f"message that the assistant did not write (the first: {count.forgery}); the model reads it as the chat "
            "template's own, and not as text, so take it out unless that is meant."
        )
    if count.long:
        notes.append(
            f"note: {count.long:,} of {count.prompts:,} {kind} prompts of {task.name!r} leave no room in a model's "
            f"window for a response of {session.renderer.room} tokens and are left out (the first: {count.first})."
        )
    if count.cut:
        alike = f"; {count.alike:,} pairs are the same up to there" if count.alike else ""
        notes.append(
            f"note: {count.cut:,} of {count.responses:,} {kind} responses of {task.name!r} "
            f"({count.cut / count.responses:.0%}) are longer than max_tokens={session.config.max_tokens} and are cut "
            f"there, without an end{alike}; --set max_tokens={count.longest} takes all of them whole."
        )
    return notes
