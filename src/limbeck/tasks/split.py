"""Split records into training and test data, and cut trajectories into one prompt for each turn."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import LimbeckError
from .base import Response, yes_or_no
from .records import Record, conversation_text


def split(
    records: Sequence[Record],
    test: Sequence[Record] | None,
    name: str,
    *,
    test_size: float,
    per_turn: bool,
    seed: int = 0,
) -> tuple[list[Record], list[Record]]:
    """Split records into training and test records.

    Args:
        records: all records, or the training records if ``test`` is given.
        test: held-out records; training records with the same text are left out, with a warning.
        name: of the data, for messages.
        test_size, seed: see :func:`split_by_text`.
        per_turn: cut every record into one for each assistant turn (:func:`each_turn`). Trajectories that begin with
            the same messages stay on the same side.

    Raises:
        LimbeckError: an argument is wrong, no training record is left, or a record has no turns to cut.
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
    """Refuse a size that is neither a share nor a count.

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
    """Split records by a hash of their text.

    Records of equal text stay together. If the size is above 0 and there are two distinct texts, both sides hold at
    least one record.

    Args:
        records: all of them.
        test_size: a float is the share of texts to hold out; appending records then moves no record to the other side.
            A whole number is the number of texts to hold out, those with the lowest hashes.
        seed: another seed holds out other texts.

    Raises:
        LimbeckError: the size is neither a share nor a count.
    """
    check_size(test_size)
    salt = f"{seed}\n" if seed else ""  # seed 0 splits files as earlier versions did
    rank = {r.text: int.from_bytes(hashlib.sha256((salt + r.text).encode()).digest()[:8]) / 2**64 for r in records}
    ordered = sorted(rank.values())
    if len(rank) == 1 or test_size == 0:
        border = 0.0
    elif isinstance(test_size, int):
        border = ordered[min(test_size, len(ordered) - 1)]
    else:  # at least one text on each side
        border = min(max(test_size, math.nextafter(ordered[0], 1)), ordered[-1])
    return [r for r in records if rank[r.text] >= border], [r for r in records if rank[r.text] < border]


def drop_overlap(train: Sequence[Record], test: Sequence[Record], name: str) -> list[Record]:
    """The training records whose text is not among the test records; warn if some were left out.

    Raises:
        LimbeckError: none is left.
    """
    held_out = {r.text for r in test}
    kept = [r for r in train if r.text not in held_out]
    if not kept:
        raise LimbeckError(
            f"all training prompts of {name} are also test prompts; give a different test file or split."
        )
    if len(kept) < len(train):
        message = f"{len(train) - len(kept)} of {len(train)} training prompts of {name} are also test prompts: left out"
        warnings.warn(message, stacklevel=5)
    return kept


def each_turn(record: Record) -> list[Record]:
    """Cut a trajectory into one record for each assistant turn: all earlier messages are the prompt.

    This is for step-level on-policy sampling (OPAD, arXiv:2605.01347): the history comes from the data, and the student
    generates the current turn. A cut record serves its turn as a demonstration and serves no reward, because the
    expected answer belongs to the last turn. The answer stays among the privileged texts, which contexts can use.

    Raises:
        LimbeckError: the record has no assistant turn, or is a pair.
    """
    if "pairs" in record.serves:
        raise LimbeckError(f"{record.where} is a pair, which has no turns to cut; leave per_turn out.")
    messages = [*record.prompt.messages, *(r.message for r in record.responses)]
    places = _assistants(messages)
    if not places:
        raise LimbeckError(f"{record.where} has no assistant turn; give the whole trajectory as 'messages'.")
    return [_cut(record, messages, place, turn) for turn, place in enumerate(places, start=1)]


def _assistants(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of assistant turns, skipping one at the very start, which has no prompt."""
    return [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]


def _cut(record: Record, messages: Sequence[Mapping[str, Any]], place: int, turn: int) -> Record:
    before, responses = tuple(messages[:place]), (Response.of(messages[place]),)
    prompt = replace(record.prompt, id=f"{record.prompt.id}, turn {turn}", messages=before)
    text = conversation_text(before, prompt.chat_template_kwargs)
    return replace(record, prompt=prompt, responses=responses, serves=frozenset({"responses"}), text=text)


def _by_opening(record: Record) -> Record:
    """The record with the messages before the first assistant's turn as its text."""
    messages, variables = record.prompt.messages, record.prompt.chat_template_kwargs
    return replace(
        record, text=conversation_text(messages[: next(iter(_assistants(messages)), len(messages))], variables)
    )
