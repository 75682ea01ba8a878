"""Parse records of data (rows or lines) into prompts and responses, and make a task of them."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import LimbeckError, nearest
from ..types import Prompt, text_of
from .answers import describe, extract_answer, same_answer
from .base import Response, Verdict, half_character, yes_or_no

PRIVILEGED = ("answer", "solution", "hint", "step_feedback")
CHAT = ("tools", "documents", "chat_template_kwargs")
"""Keys of a record that are passed to the chat template in addition to the messages."""
KEYS = ("id", "prompt", "messages", *PRIVILEGED, "response", "chosen", "rejected", *CHAT)


@dataclass(frozen=True)
class Record:
    """A parsed record.

    Attributes:
        prompt: the problem.
        responses: a demonstration, a pair (chosen, rejected), or nothing.
        serves: what this record provides, a subset of ``{"reward", "responses", "pairs"}``.
        text: the messages as one text, used to split and compare records.
        where: the file and line, for messages.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    serves: frozenset[str]
    text: str
    where: str


def parse_record(raw: Any, where: str, columns: Mapping[str, str] | None = None) -> Record:
    """Parse a mapping with the keys of ``KEYS``; other numbers and strings become columns.

    Args:
        raw: the content of a line or row. A key whose value is None counts as absent.
        where: the name of the record in messages.
        columns: names of keys in the data that differ from ours, for instance ``{"prompt": "question"}``. ``prompt``
            may be a text or a list of chat messages.

    Raises:
        LimbeckError: the record has a wrong value; the message names ``where``, the key and the value.
    """
    if not isinstance(raw, Mapping):
        raise LimbeckError(f"{where} holds {_short(raw)}; give an object with the key 'prompt' or 'messages'.")
    fields = _joined(_renamed(raw, columns or {}, where))
    _refuse_half_characters(fields, where)
    messages, demonstration = _messages(fields, where)
    responses = _responses(fields, demonstration, where)
    variables = _variables(fields, where)
    text = conversation_text(messages, variables)
    identity = fields.get("id", hashlib.sha256(text.encode()).hexdigest()[:16])
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise LimbeckError(f"{where}: 'id' is {_short(identity)}; give a string or a whole number.")
    privileged = {key: _text(fields, key, where) for key in PRIVILEGED if key in fields}
    prompt = Prompt(str(identity), tuple(messages), privileged, _columns(fields), variables, where)
    serves = {"reward"} if "answer" in privileged else set()
    serves |= {0: set(), 1: {"responses"}, 2: {"pairs"}}[len(responses)]
    return Record(prompt, responses, frozenset(serves), text, where)


class RecordTask:
    """A task made of records. It serves what all of its records provide.

    Args:
        name: of the task.
        train, test: the records of each split.
        reveal: whether feedback contains the expected answer.

    Attributes:
        name, serves, train, test: see :class:`~limbeck.tasks.base.Task`.
        lacking: for each service that only some records provide, a clause that says which records lack it.
    """

    def __init__(self, name: str, train: Sequence[Record], test: Sequence[Record], reveal: bool = False) -> None:
        self._reveal = yes_or_no(name, "reveal", reveal)
        _check_ids(train)
        _check_ids(test)
        train, test = _told_apart(train), _told_apart(test)
        self.name = name
        records = (*train, *test)
        serves = frozenset.intersection(*(r.serves for r in records))
        self.lacking = {service: _lacking(service, records) for r in records for service in r.serves - serves}
        self.serves = serves | {"feedback"} if "reward" in serves else serves
        self.train: Sequence[Prompt] = tuple(r.prompt for r in train)
        self.test: Sequence[Prompt] = tuple(r.prompt for r in test)
        # The training and the test data may use the same id for different problems.
        self._responses = {(r.prompt.id, r.text): r.responses for r in (*train, *test)}

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Reward 1 for the expected answer, else 0; expressions are compared as mathematics, words as text.

        Raises:
            LimbeckError: the prompt has no answer.
        """
        if "answer" not in prompt.privileged:
            raise LimbeckError(f"prompt {prompt.id!r} of task {self.name!r} has no 'answer' to verify against; add it.")
        expected, given = prompt.privileged["answer"], extract_answer(text, boxed=True)
        # The expected answer may itself be boxed, or be a full solution that ends in "#### 12".
        correct = same_answer(extract_answer(expected, boxed=True), given)
        return Verdict(float(correct), correct, describe(text, correct, True, expected if self._reveal else None))

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:
        """The demonstration or the pair of a prompt of this task, or nothing."""
        return self._responses.get((prompt.id, conversation_text(prompt.messages, prompt.chat_template_kwargs)), ())


def conversation_text(messages: Iterable[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
    """Messages and further variables of the chat template as one text, used to split and compare records."""
    return json.dumps([*(dict(m) for m in messages), *([dict(variables)] if variables else [])], ensure_ascii=False)


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Refuse ``columns`` with a key that records do not have.

    Raises:
        LimbeckError: naming the nearest known key.
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise LimbeckError(f"columns is {_short(columns)}; give a table such as columns.prompt=question.")
    for key, theirs in (columns or {}).items():
        if key not in KEYS:
            raise LimbeckError(f"columns names {key!r}{nearest(key, KEYS)}; the keys are {', '.join(KEYS)}.")
        if not isinstance(theirs, str):
            raise LimbeckError(f"columns.{key} is {_short(theirs)}; give the name of a key of your data.")


PROBLEM = ("prompt", "messages")
"""The keys that may hold the problem; a record has one of them."""


def _renamed(raw: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """The fields of a record with our names for keys, without null values; a null problem is refused."""
    for key in (columns.get(key, key) for key in PROBLEM):
        if key in raw and raw[key] is None and not any(raw.get(columns.get(k, k)) is not None for k in PROBLEM):
            raise LimbeckError(f"{where}: {key!r}, the problem, is null; give it text, or leave the record out.")
    moved = {ours: raw[theirs] for ours, theirs in columns.items() if theirs in raw}
    replaced = {*columns.values(), *moved, *(PROBLEM if set(moved) & set(PROBLEM) else ())}
    kept = {key: value for key, value in raw.items() if key not in replaced}
    return {key: value for key, value in {**kept, **moved}.items() if value is not None}


def _joined(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert TRL's conversational form, with lists of messages as prompt and response, to ``messages``."""
    if not isinstance(fields.get("prompt"), list) or "messages" in fields:
        return fields
    written = fields["response"] if isinstance(fields.get("response"), list) else []
    rest = {key: value for key, value in fields.items() if key != "prompt" and not (key == "response" and written)}
    return {**rest, "messages": [*fields["prompt"], *written]}


def _refuse_half_characters(value: Any, where: str, depth: int = 100) -> None:
    """Refuse a lone surrogate (half a character), which UTF-8 cannot encode."""
    if not depth:
        return
    match value:
        case str():
            half = half_character(value)
            if half is not None:
                code = f"\\u{ord(half):04x}"
                raise LimbeckError(f"{where}: the text contains half a character ({code}); correct or remove it.")
        case Mapping():
            for key, inner in value.items():
                _refuse_half_characters(key, where, depth - 1)
                _refuse_half_characters(inner, where, depth - 1)
        case list():
            for inner in value:
                _refuse_half_characters(inner, where, depth - 1)


def _messages(fields: Mapping[str, Any], where: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The messages of a record and, if they end in the assistant's turn, that message."""
    if "prompt" in fields and "messages" in fields:
        raise LimbeckError(f"{where} has both 'prompt' and 'messages'; remove one.")
    if "prompt" in fields:
        return [{"role": "user", "content": _text(fields, "prompt", where, empty=False)}], None
    if "messages" not in fields:
        near = next((n for key in fields if key not in KEYS and (n := nearest(key, ("prompt", "messages")))), "")
        raise LimbeckError(f"{where} has neither 'prompt' nor 'messages', only {_names(fields)}{near}; add one.")
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise LimbeckError(f"{where}: 'messages' is {_short(messages)}; give a list of role and content.")
    whole = [_message(message, where) for message in messages]
    if whole[-1]["role"] != "assistant":
        return whole, None
    if len(whole) == 1:
        raise LimbeckError(f"{where}: 'messages' holds only an assistant's message; put a user's message before it.")
    return whole[:-1], whole[-1]


def _message(message: Any, where: str) -> dict[str, Any]:
    """A checked message without null keys. Its content is text, text parts, or null if other keys have content."""
    given = dict(message) if isinstance(message, Mapping) else {}
    role, content = given.get("role"), given.get("content")
    further = {k: v for k, v in given.items() if k not in ("role", "content") and v is not None}
    if isinstance(content, list):
        content = [_part(part, where) for part in content]
    silent = content is None and role == "assistant" and any(further.values())
    if not isinstance(role, str) or not (isinstance(content, str | list) or silent):
        raise LimbeckError(
            f"{where}: 'messages' holds {_short(message)}; give strings 'role' and 'content', or text parts as content."
        )
    made = {"role": role, "content": content, **further}
    if role in ("user", "assistant") and not text_of(made).strip() and not any(further.values()):
        raise LimbeckError(f"{where}: 'messages' holds {_short(message)}, whose content is empty; give it text.")
    _refuse_strange({"messages": further}, where)
    return made


def _part(part: Any, where: str) -> dict[str, Any]:
    """A text part of a message's content, without the null keys that Arrow adds."""
    held = {k: v for k, v in part.items() if v is not None} if isinstance(part, Mapping) else {}
    if held.get("type") != "text" or not isinstance(held.get("text"), str):
        raise LimbeckError(
            f"{where}: a message's content holds the part {_short(part)}, and only text is supported; give parts "
            'such as {"type": "text", "text": "..."}, or leave the record out.'
        )
    return {"type": "text", "text": held["text"]}


def _variables(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Variables for the chat template in addition to the messages."""
    own = {key: fields[key] for key in CHAT if key in fields}
    _refuse_strange(own, where)
    for key in ("tools", "documents"):
        if not isinstance(own.get(key, []), list):
            raise LimbeckError(f"{where}: {key!r} is {_short(own[key])}; give a list.")
    further = own.pop("chat_template_kwargs", {})
    if not isinstance(further, Mapping) or not all(isinstance(key, str) for key in further):
        raise LimbeckError(f"{where}: 'chat_template_kwargs' is {_short(further)}; give an object.")
    twice = next((key for key in own if key in further), None)
    if twice:
        raise LimbeckError(f"{where} has {twice!r} in 'chat_template_kwargs' too; remove one.")
    return {**own, **further}


def _refuse_strange(fields: Mapping[str, Any], where: str) -> None:
    """Refuse values that JSON does not have, such as images and times."""
    for key, value in fields.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise LimbeckError(
                f"{where}: {key!r} holds {_short(value)}; give text, numbers, lists and objects."
            ) from None


def _responses(fields: Mapping[str, Any], demonstration: Mapping[str, Any] | None, where: str) -> tuple[Response, ...]:
    if ("chosen" in fields) != ("rejected" in fields):
        has, lacks = ("chosen", "rejected") if "chosen" in fields else ("rejected", "chosen")
        raise LimbeckError(f"{where} has {has!r} but no {lacks!r}; add it or remove {has!r}.")
    given = [key for key in ("response", "chosen") if key in fields]
    given += ["an assistant's last message"] if demonstration is not None else []
    if len(given) > 1:
        raise LimbeckError(f"{where} has both {given[0]!r} and {given[1]!r}; keep one.")
    if "chosen" in fields:
        chosen, rejected = (_text(fields, key, where, empty=False) for key in ("chosen", "rejected"))
        if chosen == rejected:
            raise LimbeckError(f"{where}: 'chosen' and 'rejected' are both {_short(chosen)}; give two that differ.")
        return Response(chosen, 1.0), Response(rejected, 0.0)
    if "response" in fields:
        return (Response(_text(fields, "response", where, empty=False)),)
    return () if demonstration is None else (Response.of(demonstration),)


def _text(fields: Mapping[str, Any], key: str, where: str, empty: bool = True) -> str:
    value = fields[key]
    if key == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise LimbeckError(f"{where}: 'answer' is {value}; give a finite number or a string.")
        return str(value)
    if not isinstance(value, str) or not (empty or value.strip()):
        kind = "a string" if empty else "a string that is not empty"
        raise LimbeckError(f"{where}: {key!r} is {_short(value)}; give {kind}.")
    return value


def left_out(raw: Mapping[str, Any]) -> set[str]:
    """Unknown keys of a record with lists or objects; they are ignored, because columns hold numbers and texts."""
    return {k for k, v in raw.items() if k not in KEYS and v is not None and not isinstance(v, str | int | float)}


def say_left_out(keys: Collection[str], name: str) -> None:
    """Warn about keys that are ignored."""
    if keys:
        names = ", ".join(_short(key) for key in sorted(keys)[:5])
        message = f"{name}: {names} hold lists or objects, which are not used, and are left out"
        warnings.warn(message, stacklevel=5)


def _columns(fields: Mapping[str, Any]) -> dict[str, float | str]:
    """Other numbers and texts of a record; lists and objects are ignored (:func:`left_out`)."""
    further = {key: value for key, value in fields.items() if key not in KEYS and isinstance(value, str | int | float)}
    return {key: value if isinstance(value, str) else _float(value) for key, value in further.items()}


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _check_ids(records: Iterable[Record]) -> None:
    seen: dict[str, Record] = {}
    for record in records:
        other = seen.setdefault(record.prompt.id, record)
        if other is not record and other.text != record.text:
            raise LimbeckError(
                f"{record.where}: 'id' {record.prompt.id!r} is already used by {other.where}; change one."
            )


def _lacking(service: str, records: Sequence[Record]) -> str:
    """A clause that says how many records lack a service, and which is the first."""
    without = [r for r in records if service not in r.serves]
    return f"{len(without)} of {len(records)} records lack it, first {without[0].where}"


def _told_apart(records: Sequence[Record]) -> list[Record]:
    """Give records with the same prompt and different responses ids of their own: ``id``, ``id (2)`` ..."""
    seen: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    out = []
    for record in records:
        answers = [r.message for r in record.responses]
        known = seen.setdefault((record.prompt.id, record.text), [])
        if answers not in known:
            known.append(answers)
        n = known.index(answers) + 1
        prompt = replace(record.prompt, id=f"{record.prompt.id} ({n})") if n > 1 else record.prompt
        out.append(replace(record, prompt=prompt))
    return out


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in fields) or "nothing"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of nested brackets
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
