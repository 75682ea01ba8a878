"""What writing and reading need at hand: models, tasks, prompts, templates and the run's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import LimbeckError
from ..limits import VERIFY_SECONDS
from ..tasks import Task
from ..types import Prompt
from .feed import Feed
from .models import Policy, render
from .state import Memory


@dataclass
class Desk:
    """Laid out once for a run.

    Attributes:
        policies: by role (``student``, ``teacher`` ...).
        tasks: by name; ``task`` is the run's own, others are what a method's ``data(name)`` reads.
        feeds: prompts, by the same names.
        max_tokens: limit of a response unless the source says otherwise.
        batch: sequences generated at once.
        micro_tokens: tokens a forward pass.
        blocks: templates that replace those of contexts, by name.
        formats: roles that read prompts in a chat format of their own.
        turns: of an episode, where the source does not say.
        longest: limit of any source's response, where that is more than ``max_tokens``.
        died: why environments broke off episodes since the last step, one clause for each.
        last_death: the first of them in the newest step that had one.
        memory: state of the run.
        verify_seconds: that a verifier may take for one response.
        judged_only: whether responses without a verdict are left out, because the method reads verdicts.
        unjudged: why verifiers gave no verdict since the last step, one clause for each response.
        last_unjudged: the first of them in the newest step that had one.
    """

    policies: Mapping[str, Policy]
    tasks: Mapping[str, Task]
    feeds: Mapping[str, Feed]
    max_tokens: int
    batch: int
    micro_tokens: int = 16384
    blocks: Mapping[str, str] = field(default_factory=dict)
    formats: frozenset[str] = frozenset()
    turns: int = 1
    longest: int = 0
    died: list[str] = field(default_factory=list)
    last_death: str = ""
    memory: Memory = field(default_factory=Memory)
    verify_seconds: float = VERIFY_SECONDS
    judged_only: bool = True
    unjudged: list[str] = field(default_factory=list)
    last_unjudged: str = ""
    rendered: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The rendered prompt, checked against the context of every model."""
        key = (prompt.id, str(prompt.messages))
        if key not in self.rendered:
            room = max(self.max_tokens, self.longest)
            self.rendered[key] = self.render(prompt.messages, "student", f"prompt {prompt.id!r}", room)
        return self.rendered[key]

    def foreign(self, role: str) -> bool:
        """Whether a role reads prompts in a chat format of its own."""
        return role in self.formats

    def policy(self, role: str) -> Policy:
        """A role's model; what equals the student at the start of a batch is the student."""
        return self.policies["student" if role in ("student", "old", "synced(1)") else role]

    def render(
        self, messages: tuple[Mapping[str, str], ...], role: str, what: str, room: int, written: bool = False
    ) -> list[int]:
        """Token ids of a conversation as a role reads it, with room for ``room`` tokens behind it.

        ``written`` says that they are there already: a context has to be shorter, or what is written from now on.

        Raises:
            LimbeckError: too long, empty, or with tokens that another model's vocabulary lacks.
        """
        student = self.policies["student"]
        ids = render(self.policy(role) if self.foreign(role) else student, [dict(m) for m in messages])
        limit = min(p.context for p in self.policies.values()) if role == "student" else self.policy(role).context
        if len(ids) + room > limit:
            behind = f"what is written behind it has {room}" if written else f"the response may have {room}"
            turns = " or episode_turns" if written else ""
            raise LimbeckError(
                f"{what} has {len(ids)} tokens and {behind}, but the model reads only {limit}; shorten it, or lower "
                f"max_tokens{turns}."
            )
        if ids and max(ids) >= student.vocabulary:
            token = student.tokenizer.convert_ids_to_tokens(max(ids))
            raise LimbeckError(
                f"{what} has the token {token!r}, which the other model's vocabulary lacks; use another chat template "
                "(--set template=FILE.jinja) or models of one family."
            )
        if not ids:
            raise LimbeckError(f"{what} renders to no token; give it text or a template with some.")
        return ids

    def response_ids(self, prompt: Prompt, text: str) -> list[int]:
        """The tokens of a written response, without an end."""
        policy = self.policies["student"]
        ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and max(ids) >= policy.vocabulary:
            token = policy.tokenizer.convert_ids_to_tokens(max(ids))
            raise LimbeckError(
                f"the response of prompt {prompt.id!r} has the token {token!r}, which the other model's vocabulary "
                "lacks; take it out of the text, or use models of one family."
            )
        return ids
