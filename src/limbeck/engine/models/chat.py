"""Chat formats: messages as tokens, the tokens of a demonstration after its prompt, and the end of a turn.

A prompt and its reply are rendered together and tokenised together, so a demonstration is the text that the template
writes after the prompt, and ends as the template ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from ...errors import LimbeckError
from ...limits import Unrenderable, rendered
from ...tasks.base import found
from ...types import Prompt, text_of
from .written import (
    TemplateChecks,
    form_of,
    holds,
    in_parts,
    refuse_unread,
    sources,
    texts_of,
    unread_parts,
)

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

LONGEST = 10_000_000
"""Largest number of characters of a rendered conversation (ours); no model reads as many."""

_MARK = "\u241f"  # a symbol that no template writes
_ASKED: tuple[Mapping[str, Any], ...] = ({"role": "user", "content": "-"}, {"role": "assistant", "content": _MARK})


class _Endless(LimbeckError):
    """A template exceeds its limits; rendering is not tried again."""


@dataclass
class Chat:
    """A tokenizer with a chat template.

    Attributes:
        tokenizer: of the model.
        template: text of the chat template; None for the tokenizer's own.
        name: of the model, for messages.
        stops: ids at which the model stops by its own settings.
        setting: name of the setting of the template, for messages.
        keywords: of the run for the template; those of a prompt's record win over them.
    """

    tokenizer: Any
    template: str | None
    name: str
    stops: tuple[int, ...] = ()
    setting: str = "template"
    keywords: Mapping[str, Any] = field(default_factory=dict)
    _joins: dict[tuple[Any, ...], set[int]] = field(default_factory=dict, init=False, repr=False)

    # ---------------------------------------------------------------- messages as text and tokens

    def text(self, prompt: Prompt, reply: Mapping[str, Any] | None = None, *, opening: bool = True) -> str:
        """A conversation as the template writes it.

        Null content is given as null, and as an empty text where the template would fail on null or write ``None``.
        Text parts are given as parts, and as one text where the template would fail on them or write a list.

        Args:
            prompt: its messages, and further variables of its record for the template.
            reply: the assistant's message after them.
            opening: whether the text ends with the beginning of the assistant's reply.

        Raises:
            LimbeckError: with the template's own words, where it fails.
        """
        messages = [*prompt.messages, *([] if reply is None else [reply])]
        if any(map(in_parts, messages)):
            messages = self._parts(prompt, messages, opening)
        if any(m.get("content") is None for m in messages):
            printed = self._attempt(prompt, _said(messages, "None"), opening)
            null = self._attempt(prompt, messages, opening)
            if null is None or null == printed:
                messages = _said(messages, "")
        try:
            return self._rendered(prompt, messages, opening)
        except LimbeckError:
            raise
        except Exception as e:  # a template is a program, and may fail in any way
            message = next(iter(str(e).splitlines()), type(e).__name__).rstrip(".")
            raise LimbeckError(
                f"{prompt.at}the chat template of {self.name!r} cannot render {str(messages)[:80]} ({message}); give "
                f"another with --set {self.setting}=FILE.jinja or {self.setting}=plain."
            ) from None

    def _rendered(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]], opening: bool) -> str:
        """The one place where a template runs."""
        write = partial(
            self.tokenizer.apply_chat_template,
            [dict(m) for m in messages],
            chat_template=self.template,
            add_generation_prompt=opening,
            tokenize=False,
            **{**self.keywords, **prompt.chat_template_kwargs},
        )
        try:
            return rendered(lambda: str(write()), LONGEST)
        except Unrenderable as e:
            raise _Endless(
                f"{prompt.at}the chat template of {self.name!r} does not end ({e}); give another with --set "
                f"{self.setting}=FILE.jinja or {self.setting}=plain."
            ) from None

    def _attempt(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]], opening: bool) -> str | None:
        """The rendered text, or None where the template fails; one that exceeds its limits is not tried again."""
        try:
            return self._rendered(prompt, messages, opening)
        except LimbeckError:
            raise
        except Exception:
            return None

    def _parts(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]], opening: bool) -> list[Mapping[str, Any]]:
        """Messages with their text parts unchanged, or as one text where the template does not read parts."""
        form = form_of(messages, prompt.chat_template_kwargs)
        if form not in self._joins:
            self._joins[form] = unread_parts(messages, lambda marked: self._attempt(prompt, _said(marked, ""), opening))
        joins = self._joins[form]
        return [{**m, "content": text_of(m)} if i in joins else m for i, m in enumerate(messages)]

    @property
    def sources(self) -> tuple[str, ...]:
        """The texts of the template; several where the tokenizer has them by name."""
        return sources(self.tokenizer, self.template)

    @cached_property
    def checks(self) -> TemplateChecks:
        """Checks that the template writes all that records give it."""
        return TemplateChecks(self._tried, self.sources, self.name, self.setting)

    def _tried(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """Messages as the template writes them, without an opening; None where it fails."""
        try:
            return self.text(replace(prompt, messages=tuple(messages)), opening=False)
        except _Endless:
            raise
        except LimbeckError:
            return None

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, ready for the assistant's reply.

        Raises:
            LimbeckError: the template fails, or does not write something that the messages hold.
        """
        return self.all_ids([prompt])[0]

    def all_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of several prompts, tokenised at once."""
        texts = []
        for prompt in prompts:
            self._refuse_unwritten(prompt)
            texts.append(self.text(prompt))
            self.checks.refuse_lost(prompt, texts[-1])
        return self._tokens(texts)

    @property
    def plain(self) -> bool:
        """Whether the template is ``plain``, set for this run or saved with the model by an earlier one."""
        return (self.template or getattr(self.tokenizer, "chat_template", None)) == PLAIN_TEMPLATE

    @cached_property
    def _front(self) -> list[int]:
        """Tokens that the tokenizer itself puts before a text; tokens that it puts after one are left out."""
        if not self.plain:
            return []  # a chat template writes its own
        whole, bare = list(self.tokenizer("x")["input_ids"]), self._encode("x")
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:at]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts, with the tokens that the tokenizer itself puts before them, once."""
        front = self._front
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return [ids if ids[: len(front)] == front else [*front, *ids] for ids in found]

    def _encode(self, text: str) -> list[int]:
        """Token ids of a part of a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    # ---------------------------------------------------------------- the end of a turn

    @cached_property
    def _tails(self) -> tuple[str, str]:
        """The text after an assistant's message, at the end of a conversation and before a user's next message."""
        asked = Prompt("", _ASKED)
        texts = [self._attempt(asked, m, False) or "" for m in (_ASKED, (*_ASKED, _ASKED[0]))]
        return texts[0].partition(_MARK)[2], texts[1].partition(_MARK)[2]

    @cached_property
    def end(self) -> int | None:
        """The token that the template puts after an assistant's message; None where it puts none, as ``plain``.

        A template that writes nothing there may still let the next message's first token end the turn (GLM).
        """
        if self.plain:
            return None
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(self.tokenizer.all_special_ids)
        behind, followed = map(self._encode, self._tails)
        first = next((i for i in behind if i in special or i in self.stops), None)
        if first is None:
            first = next((i for i in followed if i in special), None)
            first = first if first in self.stops else None
        return first

    @cached_property
    def _ends(self) -> int:
        """Number of tokens after a reply that end a turn; some templates add the end of the text to it."""
        return sum(i in self.stops or i == self.end for i in self._encode(self._tails[0]))

    def between(self, prompt: Prompt, message: Mapping[str, Any]) -> list[int]:
        """The tokens between a reply and the next one: the end of its message, the next message, an opening.

        Raises:
            LimbeckError: the template fails on the message, or drops earlier messages of the assistant.
        """
        asked = replace(prompt, messages=(*_ASKED, message))
        text = self.text(asked)
        if _MARK not in text:
            raise LimbeckError(
                f"the chat template of {self.name!r} drops earlier messages of the assistant, so a second turn "
                f"cannot follow; give another with --set {self.setting}=FILE.jinja."
            )
        self.checks.refuse_lost(asked, text)
        return next(self._continued(text.partition(_MARK)[2]))

    # ---------------------------------------------------------------- demonstrations

    def reply_ids(self, replies: Sequence[tuple[Prompt, Mapping[str, Any]]], end: int) -> list[list[int]]:
        """The tokens of each written reply after its prompt, its end included.

        Text that the template writes after the end is not part of it.

        Args:
            replies: each prompt with the assistant's message after it.
            end: the token that ends a reply where the template writes none.

        Raises:
            LimbeckError: the whole does not begin with the prompt, the text holds an end token, or the template leaves
                out some of the reply.
        """
        texts = [self._texts(prompt, reply) for prompt, reply in replies]
        asked, both = (self._tokens([pair[i] for pair in texts]) for i in (0, 1))
        out = []
        for (prompt, _), text, before, whole in zip(replies, texts, asked, both, strict=True):
            n = len(before)
            ids = whole[n:] if whole[:n] == before else self._over(prompt, text, before, whole)
            out.append(self._ended(prompt, ids, end))
        return out

    def _texts(self, prompt: Prompt, reply: Mapping[str, Any]) -> tuple[str, str]:
        """A prompt, and the prompt with its reply."""
        self._refuse_unwritten(prompt, reply)
        before, whole = self.text(prompt), self.text(prompt, reply, opening=False)
        if not whole.startswith(before):
            k = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
            raise LimbeckError(
                f"{_which(prompt)} does not follow its prompt as the chat template of {self.name!r} writes both: "
                f"where the prompt has {before[k : k + 30]!r}, the whole has {whole[k : k + 30]!r}; give the response "
                "as the template expects it (with its reasoning, where the prompt opens one), or another template "
                f"(--set {self.setting}=FILE.jinja)."
            )
        self._refuse_lost(prompt, reply, whole)
        return before, whole if self._ends else whole.removesuffix(self._tails[0])

    def _ended(self, prompt: Prompt, ids: list[int], end: int) -> list[int]:
        """A reply's tokens up to its end."""
        places = [n for n, i in enumerate(ids) if i in self.stops or i == self.end]
        if len(places) > self._ends:
            token = self.tokenizer.decode([ids[places[0]]])
            raise LimbeckError(
                f"{_which(prompt)} holds {token!r}, which ends a response, so it would end twice; take it out of the "
                "text, because the template writes it after the text."
            )
        return ids[: places[0] + 1] if places else [*ids, end]

    def _refuse_lost(self, prompt: Prompt, reply: Mapping[str, Any], whole: str) -> None:
        """Refuse a template that leaves out text of the reply; white space may change, and letters may be escaped."""
        self.checks.look_at_calls(prompt, reply, whole)
        text = next((text for text in texts_of(reply) if not holds(whole, text)), None)
        if text is None:
            return
        raise LimbeckError(
            f"{_which(prompt)} is not written whole by the chat template of {self.name!r} ({text[:40]!r}): it leaves "
            "text out, such as reasoning or text beside a tool call; take that out of the data, or give another "
            f"template (--set {self.setting}=FILE.jinja)."
        )

    def _refuse_unwritten(self, prompt: Prompt, reply: Mapping[str, Any] | None = None) -> None:
        """Refuse parts that the template would drop, and earlier replies that hold the end token of a turn."""
        replies = [m for m in prompt.messages if m.get("role") == "assistant"]
        if self.end is not None and any(self._end_text in text_of(m) for m in replies):
            raise LimbeckError(
                f"{prompt.at}a message of the assistant in prompt {prompt.id!r} holds {self._end_text!r}, which ends a "
                "response, so it would end twice; take it out of the text, because the template writes it after the "
                "text."
            )
        self.checks.refuse_unwritten(prompt, reply)

    @cached_property
    def _end_text(self) -> str:
        return str(self.tokenizer.decode([self.end]))

    def notes(self) -> list[str]:
        """Notices about the template, from the prompts and demonstrations so far."""
        if _MARK in self._tails[0]:
            self.checks.twice("assistant")
        return self.checks.said()

    def _over(self, prompt: Prompt, text: tuple[str, str], before: list[int], whole: list[int]) -> list[int]:
        """A reply's tokens where a token of the whole spans the end of the prompt and the start of the reply.

        The prompt keeps the tokens that generation reads, and the rest is tokenised as a continuation.
        """
        rest = text[1][len(text[0]) :]
        for ids in self._continued(rest):
            if self._decode(before + ids) == self._decode(whole):
                return ids
        raise LimbeckError(
            f"{_which(prompt)} cannot be separated from its prompt in tokens: the tokenizer of {self.name!r} writes "
            f"{text[0][-10:] + rest[:10]!r} in tokens that belong to both; give another template (--set "
            f"{self.setting}=FILE.jinja) whose prompts end in a special token or a line break."
        )

    def _continued(self, text: str) -> Iterator[list[int]]:
        """The tokens of a text that continues another one: some tokenizers put a space before a text of its own."""
        for anchor in (*self.tokenizer.all_special_tokens[:1], "\n", ".", "a", ""):
            front, ids = self._encode(anchor), self._encode(anchor + text)
            if ids[: len(front)] == front:
                yield ids[len(front) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _which(prompt: Prompt) -> str:
    return f"{prompt.at}the response of prompt {prompt.id!r}"


def _said(messages: Iterable[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Messages with a text in place of null content."""
    return [m if m.get("content") is not None else {**m, "content": text} for m in messages]


def template_text(
    tokenizer: Any,
    template: str | None,
    name: str,
    setting: str = "template",
    keywords: Mapping[str, Any] | None = None,
) -> str | None:
    """The chat template to use: the text of a Jinja file, ``plain``, or None for the tokenizer's own.

    Raises:
        LimbeckError: a file that cannot be read, a tokenizer without a template, or keywords that it never reads.
    """
    text = None if template is None else template_file(template, setting)
    if text is None and not getattr(tokenizer, "chat_template", None):
        raise LimbeckError(
            f"the tokenizer of {name!r} has no chat template; give one with --set {setting}=FILE.jinja, or "
            f"--set {setting}=plain to use the message text as it is."
        )
    refuse_unread(keywords or {}, {name: (tokenizer, sources(tokenizer, text))})
    return text


def template_file(template: str, setting: str) -> str:
    """The text of a Jinja file, or of ``plain``.

    Raises:
        LimbeckError: naming the setting.
    """
    if template == "plain":
        return PLAIN_TEMPLATE
    file = found(template, "file")
    if file is None:
        own = ", 'own'" if setting == "teacher_template" else ""
        raise LimbeckError(f"{setting}={template!r}: there is no such file; give a Jinja file{own} or 'plain'.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise LimbeckError(
            f"{setting}={template!r}: it cannot be read ({e}); give a Jinja file in UTF-8, or 'plain'."
        ) from None
