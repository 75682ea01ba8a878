"""Notices from the data before a run: few prompts, answers that do not fit, text new to the embedded models."""

from __future__ import annotations

from collections.abc import Iterator

from ..tasks import Task
from ..types import Prompt
from .session import Session

LOOKED_AT = 200
"""Number of training prompts that are read here; a task may generate each when it is read."""

SUMS = "State the final answer to the following arithmetic problem: "
"""Beginning of every problem in the training data of the embedded models; one token of their vocabulary."""


def few_prompts(session: Session) -> list[str]:
    """A notice where a step takes more prompts than the task has."""
    task, takes = session.tasks["task"], session.config.prompts
    has = len(task.train)
    if has >= takes:
        return []
    return [
        f"note: {task.name!r} has {has:,} training prompt{'' if has == 1 else 's'} and a step takes {takes:,}, so each "
        f"step takes some of them more than once; give more problems, or --set prompts={has}."
    ]


def too_short(session: Session) -> list[str]:
    """A notice where the answers alone are longer than a response may be."""
    task, tokenizer = session.tasks["task"], session.student.tokenizer
    if "reward" not in task.serves:
        return []
    answers = [a for p in _first(task) if (a := p.privileged.get("answer"))]
    lengths = [len(tokenizer(str(a), add_special_tokens=False)["input_ids"]) for a in answers]
    room = session.renderer.room
    long = sum(n > room for n in lengths)
    if not long:
        return []
    return [
        f"note: the answers of {long:,} of {len(lengths):,} training problems of {task.name!r} alone have more than "
        f"max_tokens={room} tokens, so they cannot be given; --set max_tokens={max(lengths) + 1} is the least "
        "that has room for them."
    ]


def unfamiliar(session: Session) -> list[str]:
    """A notice where the embedded models are given prompts that begin in another way than those they learnt from."""
    own = [
        role
        for role in ("student", "teacher")
        if getattr(session.config, role) == "embedded" and role in session.policies
    ]
    if not own:
        return []
    tokenizer, task = session.student.tokenizer, session.tasks["task"]
    prompts = [session.renderer.prompt_ids(p) for p in _first(task) if session.renderer.fits(p)]
    known = tokenizer.convert_tokens_to_ids(SUMS)
    foreign = [ids for ids in prompts if known not in ids]
    if not foreign:
        return []
    unread = sum(tokenizer.unk_token_id in ids for ids in foreign)
    signs = f" ({unread:,} with signs that their tokenizer does not know)" if unread else ""
    return [
        f"note: the embedded {' and '.join(own)} learnt only from prompts that begin with {SUMS.strip()!r}, and "
        f"{len(foreign):,} of {len(prompts):,} prompts of {task.name!r} do not{signs}; name models of your own with "
        f"{' and '.join(f'--{role}' for role in own)}, or take --task two_digit_sums."
    ]


def _first(task: Task) -> Iterator[Prompt]:
    return (task.train[i] for i in range(min(LOOKED_AT, len(task.train))))
