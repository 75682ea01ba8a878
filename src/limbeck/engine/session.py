"""What writing and reading need at hand: models, tasks, prompts, templates and the run's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator

from ..axes.reader import HELD_BY_STUDENT
from ..errors import LimbeckError
from ..limits import VERIFY_SECONDS
from ..space.method import Method
from ..tasks import Response, Task
from ..types import Prompt
from .config import RunConfig
from .models.following import FollowingModel
from .models.policy import Policy
from .prompt_stream import PromptStream
from .storage.memory import Memory


class TooLong(LimbeckError):
    """A prompt leaves no room for its response in some model's window."""


@dataclass
class Desk:
    """Laid out once for a run.

    Attributes:
        policies: by role (``student``, ``teacher`` ...).
        tasks: by name; ``task`` is the run's own, others are what a method's ``data(name)`` reads.
        streams: prompts, by the same names.
        max_tokens: limit of a response unless the source says otherwise.
        batch: sequences generated at once.
        micro_tokens: tokens a forward pass.
        blocks: templates that replace those of contexts, by name.
        formats: roles that read prompts in a chat format of their own.
        turns: of an episode, where the source does not say.
        skip_overlong: whether prompts that are too long are left out instead of refused.
        longest: limit of any source's response, where that is more than ``max_tokens``.
        memory: state of the run.
        verify_seconds: that a verifier may take for one response.
        judged_only: whether responses without a verdict are left out, because the method reads verdicts.
    """

    policies: Mapping[str, Policy]
    tasks: Mapping[str, Task]
    streams: Mapping[str, PromptStream]
    max_tokens: int
    batch: int
    micro_tokens: int = 16384
    blocks: Mapping[str, str] = field(default_factory=dict)
    formats: frozenset[str] = frozenset()
    turns: int = 1
    longest: int = 0
    skip_overlong: bool = False
    memory: Memory = field(default_factory=Memory)
    verify_seconds: float = VERIFY_SECONDS
    judged_only: bool = True
    rendered: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The rendered prompt, checked against the context of every model."""
        key = (prompt.id, str((prompt.messages, prompt.chat_template_kwargs)))
        if key not in self.rendered:
            self.rendered[key] = self.measured(prompt)
        return self.rendered[key]

    def measured(self, prompt: Prompt) -> list[int]:
        """The same without keeping it; roles that read in a format of their own must be able to read it too."""
        for role in self.formats:
            self.render(prompt, role, _in_format(prompt, role), self.room)
        return self.render(prompt, "student", _in_format(prompt, "student"), self.room)

    def too_long(self, prompts: Sequence[Prompt]) -> list[TooLong | None]:
        """What is wrong with the length of each of several prompts, rendered and tokenised at once."""
        out: list[TooLong | None] = [None for _ in prompts]
        for role in (*self.formats, "student"):
            ids = self.policy(role).chat.all_ids(prompts)
            for n, prompt in enumerate(prompts):
                try:
                    self.checked(ids[n], prompt, role, _in_format(prompt, role), self.room)
                except TooLong as e:
                    out[n] = out[n] or e
        return out

    @property
    def room(self) -> int:
        """Tokens of the longest response that any source may write."""
        return max(self.max_tokens, self.longest)

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt leaves room for its response in the window of every model."""
        try:
            self.prompt_ids(prompt)
        except TooLong:
            return False
        return True

    def foreign(self, role: str) -> bool:
        """Whether a role reads prompts in a chat format of its own."""
        return role in self.formats

    def policy(self, role: str) -> Policy:
        """A role's model; what equals the student at the start of a batch is the student."""
        return self.policies["student" if role in HELD_BY_STUDENT else role]

    def render(self, prompt: Prompt, role: str, what: str, room: int, written: bool = False) -> list[int]:
        """Token ids of a prompt as a role reads it, with room for ``room`` tokens behind it.

        ``written`` says that they are there already: a context has to be shorter, or what is written from now on.

        Raises:
            TooLong: it leaves no such room.
            LimbeckError: empty, or with tokens that another model's vocabulary lacks.
        """
        reader = self.policy(role if self.foreign(role) else "student")
        return self.checked(reader.chat.ids(prompt), prompt, role, what, room, written)

    def checked(
        self, ids: list[int], prompt: Prompt, role: str, what: str, room: int, written: bool = False
    ) -> list[int]:
        """The same of what is tokenised already."""
        student, reader = self.policies["student"], self.policy(role if self.foreign(role) else "student")
        limit = min(p.context for p in self.policies.values()) if role == "student" else self.policy(role).context
        if len(ids) + room > limit:
            behind = f"what is written behind it has {room}" if written else f"the response may have {room}"
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
        """The tokens that a written response teaches behind its prompt, the end of the turn included."""
        return self.all_response_ids([(prompt, response)])[0]

    def all_response_ids(self, responses: Sequence[tuple[Prompt, Response]]) -> list[list[int]]:
        """The same of several, tokenised at once.

        Raises:
            LimbeckError: a response that its template cannot write, or that another model's vocabulary lacks.
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


@dataclass
class Session:
    """All that a run works with."""

    config: RunConfig
    method: Method
    accelerator: Accelerator
    policies: dict[str, Policy]
    desk: Desk
    followers: dict[str, FollowingModel]
    read: tuple[str, ...] = ()
    """What reading the prompts has shown, for :func:`notices`."""

    @property
    def student(self) -> Policy:
        """The one that learns."""
        return self.policies["student"]
