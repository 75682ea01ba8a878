"""Checks that a chat template writes what a record gives it: keys of messages, variables, and the text of messages.

Each check runs when prompts are read, before the first step. White space may change, and text may be escaped as in
JSON; text that is gone is refused or reported.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...errors import LimbeckError, nearest, shown
from ...types import Prompt, text_of
from .template_variables import variables_of

RESERVED = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {
    "tools",
    "documents",
}
"""Arguments of ``apply_chat_template`` that Limbeck sets itself."""

_GIVEN = frozenset(("messages", "add_generation_prompt", "raise_exception", "strftime_now", "generation"))
"""Names that Transformers passes to every template."""

LINKS = frozenset((("tool", "tool_call_id"), ("tool", "name")))
"""Keys that name the call of a tool's result. Templates of models that use the order instead leave them out."""

_SWITCHES = re.compile(r"/(?:no_)?think\b")
"""Words in a message that some templates read as a switch and remove (Nemotron)."""

Attempt = Callable[[Prompt, Sequence[Mapping[str, Any]]], str | None]


@dataclass
class TemplateChecks:
    """The checks of one chat template.

    Attributes:
        attempt: renders messages with the variables of a prompt; None where the template fails.
        sources: the texts of the template; several where a tokenizer has one with tools and one without.
        name: of the model, for messages.
        setting: name of the setting of the template, for messages.
        notes: notices for people.
        left_out: keys in ``LINKS`` that the template does not write.
    """

    attempt: Attempt
    sources: Sequence[str]
    name: str
    setting: str
    notes: dict[str, None] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    _seen: set[Any] = field(default_factory=set, repr=False)

    # ---------------------------------------------------------------- keys and variables

    def refuse_unwritten(self, prompt: Prompt, reply: Mapping[str, Any] | None = None) -> None:
        """Refuse keys of messages, and variables such as ``tools``, that the template would drop.

        Raises:
            LimbeckError: with the key and the remedy.
        """
        messages = [*prompt.messages, *([] if reply is None else [reply])]
        for i, message in enumerate(messages):
            for key, value in message.items():
                known = (str(message.get("role")), key)
                if key in ("role", "content") or _empty(value) or known in self._seen:
                    continue
                writes = self._writes_key(prompt, messages, i, key)
                if writes is None:
                    continue
                if not writes:
                    if known not in LINKS:
                        raise self._unwritten(prompt, f"{key!r} of a message of the {message.get('role')}")
                    self.left_out.add(key)
                self._seen.add(known)
        for key, value in prompt.chat_template_kwargs.items():
            if key in RESERVED:
                raise LimbeckError(f"{prompt.at}chat_template_kwargs names {key!r}, which Limbeck sets; take it out.")
            if not _empty(value) and not any(key in variables_of(s) for s in self.sources):
                raise self._unwritten(prompt, repr(key))

    def _unwritten(self, prompt: Prompt, what: str) -> LimbeckError:
        return LimbeckError(
            f"{prompt.at}the chat template of {self.name!r} does not use {what}, so it would be dropped; take it out "
            f"of the data, or give a template that writes it (--set {self.setting}=FILE.jinja)."
        )

    def _writes_key(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]], i: int, key: str) -> bool | None:
        """Whether a key of a message changes the text, in its place or with its message as the last one.

        Templates leave out the reasoning of earlier turns on purpose. None where the template fails on the messages;
        rendering refuses them with the template's own message.
        """
        if self.attempt(prompt, messages) is None:
            return None
        without = [{k: v for k, v in m.items() if n != i or k != key} for n, m in enumerate(messages)]
        for last in (len(messages), i + 1):
            text = self.attempt(prompt, messages[:last])
            if text is not None and text != self.attempt(prompt, without[:last]):
                return True
        return False

    # ---------------------------------------------------------------- the text of messages

    def refuse_lost(self, prompt: Prompt, whole: str) -> None:
        """Refuse a template that leaves out text of a system's, user's or tool's message.

        Text of earlier turns of the assistant is only reported, and their reasoning is not reported: some formats
        drop it on purpose (Qwen 3, gpt-oss).

        Args:
            prompt: with its messages.
            whole: the prompt as the template writes it.

        Raises:
            LimbeckError: with the beginning of the text and the remedy.
        """
        for message in prompt.messages:
            self.look_at_calls(prompt, message, whole)
            thinks = message.get("role") == "assistant"
            if not all(holds(whole, text.rpartition("</think>")[2] if thinks else text) for text in texts_of(message)):
                self._lost(prompt, message)
        self._probe(prompt)

    def _lost(self, prompt: Prompt, message: Mapping[str, Any]) -> None:
        role, text = message.get("role"), text_of(message)
        if role == "assistant":
            self._note(
                ("lost", self.name),
                f"note: {prompt.at}the chat template of {self.name!r} leaves out text of an earlier message of the "
                f"assistant ({text[:40]!r}), so the model does not read it there.",
            )
            return
        raise LimbeckError(
            f"{prompt.at}the chat template of {self.name!r} does not write all text of a message of the {role} "
            f"({text[:40]!r}), so the model would not read it; take it out of the data, or give a template that writes "
            f"it (--set {self.setting}=FILE.jinja)."
        )

    def _probe(self, prompt: Prompt) -> None:
        """Render messages of this form with a mark for each text: a short text may occur elsewhere by chance."""
        form = form_of(prompt.messages, prompt.chat_template_kwargs)
        if form in self._seen:
            return
        self._seen.add(form)
        marks, marked = marked_texts(prompt.messages)
        whole = self.attempt(prompt, marked)
        if whole is None:  # a template may need more than text in the content
            return
        for i, mark in marks.items():
            times = whole.count(mark)
            if not times:
                self._lost(prompt, prompt.messages[i])
            elif times > 1:
                self.twice(str(prompt.messages[i].get("role")))

    def twice(self, role: str) -> None:
        """Report a role whose text the template writes more than once."""
        self._note(
            ("twice", role),
            f"note: the chat template of {self.name!r} writes the text of a message of the {role} more than once.",
        )

    def look_at_calls(self, prompt: Prompt, message: Mapping[str, Any], whole: str) -> None:
        """Report arguments of a tool call that are given as JSON text and written as a quoted text once more."""
        for text in _arguments(message):
            if '"' in text and text not in whole and any(quoted in whole for quoted in _escaped(text)):
                self._note(
                    ("quoted", self.name),
                    f"note: {prompt.at}the arguments of a tool call are a text ({text[:40]!r}), which the chat "
                    f"template of {self.name!r} writes in quotation marks; give an object where it should write one.",
                )

    def said(self) -> list[str]:
        """Notices for people."""
        links = " and ".join(sorted(self.left_out))
        ordered = [
            f"note: the chat template of {self.name!r} does not write {links} of a tool's message; the model tells "
            "results apart by their order."
        ]
        return [*self.notes, *(ordered if links else [])]

    def _note(self, known: tuple[str, str], text: str) -> None:
        if known not in self._seen:
            self._seen.add(known)
            self.notes[text] = None


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """The texts of a message's content: one, or that of each part."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return [text_of({"content": [part]}) for part in content]
    return [text_of(message)]


def in_parts(message: Mapping[str, Any]) -> bool:
    """Whether a message's content is a list of parts."""
    return isinstance(message.get("content"), list | tuple)


def marked_texts(messages: Sequence[Mapping[str, Any]]) -> tuple[dict[int, str], list[Mapping[str, Any]]]:
    """Messages with a mark that no template writes in place of each text, and the marks by the message's place."""
    marks = {i: f"zq{i}xw" for i, m in enumerate(messages) if text_of(m).strip()}
    new: dict[int, Any] = {i: [text_part(k)] if in_parts(messages[i]) else k for i, k in marks.items()}
    return marks, [{**m, "content": new[i]} if i in new else m for i, m in enumerate(messages)]


def unread_parts(
    messages: Sequence[Mapping[str, Any]], attempt: Callable[[Sequence[Mapping[str, Any]]], str | None]
) -> set[int]:
    """Indices of the messages whose text parts a template does not read, or writes as a list with its keys."""
    marks, marked = marked_texts(messages)
    whole = attempt(marked) or ""
    listed = {i: (str(text_part(mark)), json.dumps(text_part(mark))) for i, mark in marks.items()}
    unread = {i for i, mark in marks.items() if mark not in whole or any(text in whole for text in listed[i])}
    return {i for i in unread if in_parts(messages[i])}


def text_part(text: str) -> dict[str, str]:
    """A text as a part of a message's content."""
    return {"type": "text", "text": text}


def form_of(messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> tuple[Any, ...]:
    """The form of a conversation: equal for two that differ in their texts alone."""
    return tuple(map(_form, messages)), tuple(variables)


def holds(whole: str, text: str) -> bool:
    """Whether a rendered text has a message's text in it, with other white space or escaped as in JSON."""
    text = text.strip()
    if text in whole:
        return True
    squeezed = "".join(whole.split())
    if "".join(text.split()) in squeezed or "".join(_SWITCHES.sub("", text).split()) in squeezed:
        return True
    return any(escaped in whole for escaped in _escaped(text))


def _escaped(text: str) -> Iterator[str]:
    return (json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (True, False))


def forged(prompt: Prompt, special: re.Pattern[str] | None) -> str | None:
    """A special token in the text of a system's, user's or tool's message; None where there is none.

    The tokenizer does not distinguish it from the template's own, so such a message can end its turn and begin another.
    """
    texts = (text_of(m) for m in prompt.messages if special and m.get("role") != "assistant")
    hits = (special.search(text) for text in texts if special)
    return next((hit.group() for hit in hits if hit), None)


def special_text(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern of the special tokens that a text can contain; None where the tokenizer has none."""
    tokens = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special} | set(
        tokenizer.all_special_tokens
    )
    return re.compile("|".join(map(re.escape, sorted(tokens)))) if tokens else None


def _arguments(message: Mapping[str, Any]) -> Iterator[str]:
    """Arguments of a message's tool calls that are given as text."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        called = call.get("function", call) if isinstance(call, Mapping) else {}
        given = called.get("arguments") if isinstance(called, Mapping) else None
        if isinstance(given, str):
            yield given


def _form(message: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = (key for key, value in message.items() if key != "content" and not _empty(value))
    return message.get("role"), bool(text_of(message).strip()), in_parts(message), tuple(keys)


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict | tuple) and not value)


# ---------------------------------------------------------------- keywords of a run


def sources(tokenizer: Any, template: str | None) -> tuple[str, ...]:
    """The texts of the template that is used; a tokenizer may have several by name."""
    own = template or getattr(tokenizer, "chat_template", None) or ""
    return tuple(map(str, own.values())) if isinstance(own, Mapping) else (str(own),)


def refuse_unusable(given: Mapping[str, Any]) -> None:
    """Refuse keywords of a run that Limbeck sets itself, and values that a run's folder cannot hold.

    Raises:
        LimbeckError: naming the keyword and the remedy.
    """
    for key, value in given.items():
        if key in RESERVED:
            raise LimbeckError(f"chat_template_kwargs.{key} is set by Limbeck; leave it out.")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise LimbeckError(
                f"chat_template_kwargs.{key}={shown(value)} cannot be written into a run's folder; give text, "
                "numbers, lists and tables (for tools, their JSON schemas)."
            ) from None


def refuse_unread(given: Mapping[str, Any], templates: Mapping[str, tuple[Any, Sequence[str]]]) -> None:
    """Refuse keywords of a run that none of its templates reads.

    Args:
        given: keywords by name.
        templates: by the name of the model, its tokenizer and the texts of its template.

    Raises:
        LimbeckError: naming the keyword, and those that the templates read.
    """
    read: set[str] = set()
    for tokenizer, texts in templates.values():
        read |= {v for text in texts for v in variables_of(text)} - _GIVEN - set(tokenizer.special_tokens_map)
    for key in given:
        if key not in read:
            names = " and ".join(map(repr, templates))
            known = f"it reads {', '.join(sorted(read))}" if read else "it reads no keyword at all"
            raise LimbeckError(
                f"chat_template_kwargs.{key} is not a variable that the chat template of {names} reads"
                f"{nearest(key, read)}; {known}, so leave it out or give another template."
            )
