"""Writing one batch: who writes, what the writer reads, for how long, and what the verifier says to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...axes.reader import Blend
from ...axes.source import Sample, Source, hand
from ...errors import LimbeckError, shown
from ...tasks import Verdict
from ...tasks.base import Unjudged, judged_all
from ...types import Prompt
from ..models.generate import SamplingPolicy, Written
from ..scoring.contexts import of_prompt, with_blocks
from ..scoring.templates import block
from ..session import Session
from .trajectory import Trajectory

Groups = list[list[Trajectory]]
"""Rows of one source; a group is what one prompt gave."""


@dataclass
class RolloutWriter:
    """One batch being written.

    Attributes:
        session: models, tasks and prompts.
        n: groups a source writes in this process.
        step: for schedules.
        dispatch: writes the groups of any source (``sources.written``).
        done: what the named sources before this one wrote.
        name: of the source that is being written.
        died: why environments broke off episodes, one clause for each.
    """

    session: Session
    n: int
    step: int
    dispatch: Callable[[Source, RolloutWriter, Sequence[Prompt] | None], Groups]
    done: dict[str, Groups] = field(default_factory=dict)
    name: str = ""
    died: list[str] = field(default_factory=list)

    def take(self) -> list[Prompt]:
        """The next prompts of the task."""
        return self.session.streams["task"].take(self.n)

    @property
    def numbers(self) -> dict[str, float]:
        """The run's memory, where controllers find their values."""
        return self.session.state.memory.numbers

    def write(self, source: Source, prompts: Sequence[Prompt] | None = None) -> Groups:
        """The groups of any source, on the given prompts or on the next ones."""
        return self.dispatch(source, self, prompts)


def refuse_all_dead(writer: RolloutWriter, groups: Groups, which: str) -> None:
    """Stop where environments broke off every episode, or verifiers judged no response.

    Raises:
        LimbeckError: with the reason of the first.
    """
    if any(row for group in groups for row in group):
        return
    unjudged = writer.session.state.unjudged
    if unjudged and not writer.died:
        raise LimbeckError(
            f"the verifier of {shown(writer.session.tasks['task'].name)} judged no response {which} "
            f"({len(unjudged)} of them; the first: {unjudged[0]}), so there is nothing to learn "
            f"from; mend the verifier, or give it more time (verify_seconds)."
        )
    if writer.died:
        raise LimbeckError(
            f"every episode {which} was broken off by its environment ({len(writer.died)} of them; the first: "
            f"{writer.died[0]}), so there is nothing to learn from; mend the environment, and go on."
        )


def sampling_policy_of(source: Sample, session: Session) -> SamplingPolicy:
    """Who writes, each reader at its own temperature and all at the source's on top."""
    parts = source.reader.parts if isinstance(source.reader, Blend) else ((source.reader, 1.0),)
    policies = tuple((session.policy(reader.role), weight) for reader, weight in parts)
    return SamplingPolicy(policies, source.tau, tuple(reader.tau for reader, _ in parts))


def author_of(source: Sample) -> int:
    """Whose hand it is in the record."""
    return hand(source.reader.readers if isinstance(source.reader, Blend) else (source.reader,))


def limit_of(source: Sample, writer: RolloutWriter) -> int:
    """Tokens of a response, or of a turn."""
    return (
        writer.session.config.max_tokens
        if source.max_tokens is None
        else int(source.max_tokens.now(writer.step, writer.numbers))
    )


def seen(source: Sample, session: Session, prompts: Sequence[Prompt]) -> list[list[int]]:
    """What the writer reads: the prompt as the student reads it, or with the writer's own contexts behind it."""
    reader = source.reader
    if isinstance(reader, Blend) or not (reader.context or session.renderer.foreign(reader.role)):
        return [session.renderer.prompt_ids(p) for p in prompts]
    out = []
    for p in prompts:
        blocks = [block(c, of_prompt(p), session.templates) for c in reader.context]
        what = f"prompt {p.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
        out.append(session.renderer.render(with_blocks(p, blocks), reader.role, what, session.config.max_tokens))
    return out


UNJUDGED = Verdict(math.nan, False)
"""What a response has whose verifier raised, took too long or gave no reward."""


def judge(session: Session, prompt: Prompt, text: Written) -> Verdict | None:
    """The task's verdict, None where it has no verifier, or ``UNJUDGED`` where that gave none.

    Raises:
        LimbeckError: where it gave something that is no verdict.
    """
    return judge_all(session, [prompt], [text])[0]


def judge_all(session: Session, prompts: Sequence[Prompt], texts: Sequence[Written]) -> list[Verdict | None]:
    """The same of several responses, which a task may judge together."""
    task = session.tasks["task"]
    if "reward" not in task.serves or "episodes" in task.serves:
        return [None for _ in texts]
    written = [session.policies["student"].text(w.ids) for w in texts]
    said = judged_all(task, prompts, written, session.config.verify_seconds)
    session.state.unjudged += [v.reason for v in said if isinstance(v, Unjudged)]
    return [UNJUDGED if isinstance(v, Unjudged) else v for v in said]


def kept(session: Session, verdict: Verdict | None) -> bool:
    """Whether a response stays in the batch: one without a verdict has no reward that a method could read."""
    return verdict is not UNJUDGED or not session.reads_verdicts
