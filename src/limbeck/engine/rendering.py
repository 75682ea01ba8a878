"""Prompts and written responses as token ids, checked against the window and the vocabulary of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..axes.reader import HELD_BY_STUDENT
from ..errors import LimbeckError
from ..tasks import Response
from ..types import Prompt
from .models.policy import Policy


class TooLong(LimbeckError):
    """A prompt leaves no room for its response in some model's window."""


@dataclass
class PromptRenderer:
    """Renders prompts with the chat template of the model that reads them, and tokenises them.

    Attributes:
        policies: models by role (``student``, ``teacher`` ...); roles that are added later are seen.
        room: tokens of the longest response that any source may write.
        formats: roles that read prompts in a chat format of their own; all others read the student's.
    """

    policies: Mapping[str, Policy]
    room: int
    formats: frozenset[str] = frozenset()
    _known: dict[tuple[str, str], list[int]] = field(default_factory=dict, repr=False)

    def policy(self, role: str) -> Policy:
        """The model of a role. ``old`` and ``synced(1)`` equal the student at the start of a batch: the student."""
        return self.policies["student" if role in HELD_BY_STUDENT else role]

    def foreign(self, role: str) -> bool:
        """Whether a role reads prompts in a chat format of its own."""
        return role in self.formats

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt as the student reads it; kept, so that each prompt is rendered once.

        Raises:
            TooLong: it leaves no room for its response in the window of some model.
            LimbeckError: it is empty, or has tokens that another model's vocabulary lacks.
        """
        key = (prompt.id, str((prompt.messages, prompt.chat_template_kwargs)))
        if key not in self._known:
            for role in self.formats:  # a role with a format of its own must be able to read the prompt too
                self.render(prompt, role, _in_format(prompt, role), self.room)
            self._known[key] = self.render(prompt, "student", _in_format(prompt, "student"), self.room)
        return self._known[key]

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt leaves room for its response in the window of every model."""
        try:
            self.prompt_ids(prompt)
        except TooLong:
            return False
        return True

    def too_long(self, prompts: Sequence[Prompt]) -> list[TooLong | None]:
        """For each prompt, the error about its length, or None where it fits. Prompts are tokenised at once.

        Raises:
            LimbeckError: for a prompt that no model can read at any length.
        """
        out: list[TooLong | None] = [None for _ in prompts]
        for role in (*self.formats, "student"):
            ids = self.policy(role).chat.all_ids(prompts)
            for n, prompt in enumerate(prompts):
                try:
                    self._checked(ids[n], prompt, role, _in_format(prompt, role), self.room)
                except TooLong as e:
                    out[n] = out[n] or e
        return out

    def render(self, prompt: Prompt, role: str, what: str, room: int, written: bool = False) -> list[int]:
        """Token ids of a prompt as a role reads it, with room for ``room`` more tokens.

        Args:
            prompt: to render.
            role: of the model that reads it.
            what: the prompt in words, for messages.
            room: tokens that follow it.
            written: whether those tokens exist already; then the remedy is another one.

        Raises:
            TooLong: it leaves no such room.
            LimbeckError: it is empty, or has tokens that another model's vocabulary lacks.
        """
        reader = self.policy(role if self.foreign(role) else "student")
        return self._checked(reader.chat.ids(prompt), prompt, role, what, room, written)

    def _checked(
        self, ids: list[int], prompt: Prompt, role: str, what: str, room: int, written: bool = False
    ) -> list[int]:
        """The ids, after the checks of ``render``."""
        student, reader = self.policies["student"], self.policy(role if self.foreign(role) else "student")
        limit = min(p.context for p in self.policies.values()) if role == "student" else self.policy(role).context
        if len(ids) + room > limit:
            behind = f"the text that follows it has {room}" if written else f"the response may have {room}"
            turns = " or episode_turns" if written else ""
            raise TooLong(
                f"{prompt.at}{what} has {len(ids)} tokens and {behind}, but the model reads only {limit}; shorten it, "
                f"or lower max_tokens{turns}{'' if written else ', or leave such prompts out (skip_overlong=true)'}."
            )
        if ids and max(ids) >= student.vocabulary:
            token = student.tokenizer.convert_ids_to_tokens(max(ids))
            raise LimbeckError(
                f"{prompt.at}{what} has the token {token!r}, which the other model's vocabulary lacks; use another "
                f"chat template (--set {reader.chat.setting}=FILE.jinja) or models of one family."
            )
        if not ids:
            raise LimbeckError(f"{prompt.at}{what} renders to no token; give it text or a template with some.")
        return ids

    def response_ids(self, prompt: Prompt, response: Response) -> list[int]:
        """Token ids of a written response after its prompt, the end of the turn included."""
        return self.all_response_ids([(prompt, response)])[0]

    def all_response_ids(self, responses: Sequence[tuple[Prompt, Response]]) -> list[list[int]]:
        """Token ids of several written responses, tokenised at once.

        Raises:
            LimbeckError: for a response that its template cannot write, or with tokens that another model's vocabulary
                lacks.
        """
        policy = self.policies["student"]
        out = policy.chat.reply_ids([(p, r.message) for p, r in responses], policy.end)
        for (prompt, _), ids in zip(responses, out, strict=True):
            if max(ids) >= policy.vocabulary:
                token = policy.tokenizer.convert_ids_to_tokens(max(ids))
                raise LimbeckError(
                    f"{prompt.at}the response of prompt {prompt.id!r} has the token {token!r}, which the other model's "
                    "vocabulary lacks; take it out of the text, or use models of one family."
                )
        return out


def _in_format(prompt: Prompt, role: str) -> str:
    return f"prompt {prompt.id!r}{'' if role == 'student' else f' in the format of the {role}'}"
