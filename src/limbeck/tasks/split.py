"""Which records are for training and which for the test, and trajectories cut into one prompt a turn."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import LimbeckError
from .base import Response, yes_or_no
from .records import Record, as_text


def split(
    records: Sequence[Record],
    test: Sequence[Record] | None,
    name: str,
    *,
    test_size: float,
    per_turn: bool,
    seed: int = 0,
) -> tuple[list[Record], list[Record]]:
    """Training and test records.

    Args:
        records: all of them, or those for training where ``test`` is given.
        test: held-out records of their own; training records of the same text are left out, with a warning.
        name: of the data, for messages.
        test_size, seed: see :func:`split_by_text`.
        per_turn: every record becomes one for each of its assistant's turns (:func:`each_turn`). Trajectories with the
            same opening stay on one side.

    Raises:
        LimbeckError: an argument that cannot be meant, no training record left, or a record without turns to cut.
    """
    yes_or_no(name, "per_turn", per_turn)
    if per_turn:
        records = [_by_opening(r) for r in records]
        test = None if test is None else [_by_opening(r) for r in test]
    if test is not None:
        train, held_out = drop_overlap(records, test, name), list(test)
    else:
        train, held_out = split_by_text(records, test_size, seed)
    if not per_turn:
        return train, held_out
    return [turn for r in train for turn in each_turn(r)], [turn for r in held_out for turn in each_turn(r)]


def check_size(size: object, name: str = "test_size") -> None:
    """Refuse what is neither a share nor a count.

    Raises:
        LimbeckError: naming the option.
    """
    count = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    if not count and not (isinstance(size, float) and 0 <= size < 1):
        raise LimbeckError(
            f"{name} is {size!r}; give a share from 0 up to but not including 1 (such as 0.2), or a whole number of "
            "problems."
        )


def split_by_text(records: Sequence[Record], test_size: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Train and test records, split by a hash of the text.

    Records of equal text stay together. If the size is above 0 and there are two distinct texts, both sides hold at
    least one record.

    Args:
        records: all of them.
        test_size: a float is the share of texts that are held out: appending records never moves one to the other
            side. A whole number is how many texts are held out, those of the lowest hashes.
        seed: another one holds out other texts.

    Raises:
        LimbeckError: the size is neither a share nor a count.
    """
    check_size(test_size)
    salt = f"{seed}\n" if seed else ""  # the default splits files as it always has
    rank = {r.text: int.from_bytes(hashlib.sha256((salt + r.text).encode()).digest()[:8]) / 2**64 for r in records}
    ordered = sorted(rank.values())
    if len(rank) == 1 or test_size == 0:
        border = 0.0
    elif isinstance(test_size, int):
        border = ordered[min(test_size, len(ordered) - 1)]
    else:  # at least the lowest on the test side, at most all but the highest
        border = min(max(test_size, math.nextafter(ordered[0], 1)), ordered[-1])
    return [r for r in records if rank[r.text] >= border], [r for r in records if rank[r.text] < border]


def drop_overlap(train: Sequence[Record], test: Sequence[Record], name: str) -> list[Record]:
    """The train records whose text is not in the test records; warns how many were left out.

    Raises:
        LimbeckError: none is left.
    """
    held_out = {r.text for r in test}
    kept = [r for r in train if r.text not in held_out]
    if not kept:
        raise LimbeckError(
            f"All training prompts of {name} are also test prompts: give a different test file or split."
        )
    if len(kept) < len(train):
        message = f"{len(train) - len(kept)} of {len(train)} training prompts of {name} are also test prompts: left out"
        warnings.warn(message, stacklevel=4)
    return kept


def each_turn(record: Record) -> list[Record]:
    """A trajectory as one record for each assistant's turn: the prompt is all before it, the response is the turn.

    Step-level on-policy sampling (OPAD, arXiv:2605.01347): the history is the data's, the student writes the current
    turn. A cut record serves its turn as a demonstration and no reward: the expected answer is that of the end. It
    stays among the privileged texts, where contexts read it.

    Raises:
        LimbeckError: no assistant's turn, or a pair instead of one.
    """
    if "pairs" in record.serves:
        raise LimbeckError(f"{record.where} is a pair, which has no turns to cut: leave per_turn out.")
    messages = [*record.prompt.messages, *(r.message for r in record.responses)]
    places = _assistants(messages)
    if not places:
        raise LimbeckError(f"{record.where} has no assistant's turn: give the whole trajectory as 'messages'.")
    return [_cut(record, messages, place, turn) for turn, place in enumerate(places, start=1)]


def _assistants(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where the assistant's turns are; one before which nothing was said answers no prompt."""
    return [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]


def _cut(record: Record, messages: Sequence[Mapping[str, Any]], place: int, turn: int) -> Record:
    before, responses = tuple(messages[:place]), (Response.of(messages[place]),)
    prompt = replace(record.prompt, id=f"{record.prompt.id}, turn {turn}", messages=before)
    text = as_text(before, prompt.chat_template_kwargs)
    return replace(record, prompt=prompt, responses=responses, serves=frozenset({"responses"}), text=text)


def _by_opening(record: Record) -> Record:
    """The record with the messages before the first assistant's turn as its text."""
    messages, variables = record.prompt.messages, record.prompt.chat_template_kwargs
    return replace(record, text=as_text(messages[: next(iter(_assistants(messages)), len(messages))], variables))
