"""The parts that the writers of one batch share: models, limits, the verifier, and a count of what failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...axes.reader import Blend
from ...axes.source import Sample, Source, joint_author
from ...errors import LimbeckError, shown
from ...tasks import Verdict
from ...tasks.base import Unjudged, judge_responses
from ...types import Prompt, Rollout
from ..models.generate import SamplingPolicy, Written
from ..scoring.contexts import prompt_evidence, with_blocks
from ..scoring.templates import block
from ..session import Session


@dataclass
class Failures:
    """Failures of environments and verifiers while a batch was written, one clause for each.

    Attributes:
        died: reasons why environments broke off episodes, which are missing from the batch.
        unjudged: reasons why the verifier gave no verdict on a response.
    """

    died: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)

    @property
    def first_death(self) -> str:
        """The reason of the first episode that broke off, for a message of the main process."""
        return next(iter(self.died), "in another process")

    @property
    def first_unjudged(self) -> str:
        """The reason of the first response without a verdict, for a message of the main process."""
        return next(iter(self.unjudged), "in another process")


@dataclass(frozen=True)
class RolloutWriter:
    """The state of writing one source of one batch.

    Attributes:
        session: models, tasks and prompts.
        n: groups that a source writes in this process.
        step: for schedules.
        dispatch: writes any source (``sources.write_source``).
        name: of the source that is being written.
        done: records of the named sources that were written before.
        failures: of the whole batch; every writer adds its own.
    """

    session: Session
    n: int
    step: int
    dispatch: Callable[[Source, RolloutWriter, Sequence[Prompt] | None], Rollout]
    name: str = "main"
    done: Mapping[str, Rollout] = field(default_factory=dict)
    failures: Failures = field(default_factory=Failures)

    def take(self) -> list[Prompt]:
        """The next prompts of the task."""
        return self.session.streams["task"].take(self.n)

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the run's memory, among them the values of controllers."""
        return self.session.state.memory.numbers

    def write(self, source: Source, prompts: Sequence[Prompt] | None = None) -> Rollout:
        """The record of any source, on the given prompts or on the next ones; groups without a response are absent."""
        return self.dispatch(source, self, prompts)


def refuse_empty(writer: RolloutWriter, record: Rollout, which: str) -> None:
    """Stop where environments broke off every episode, or the verifier judged no response.

    Raises:
        LimbeckError: with the reason of the first failure.
    """
    if record.n_sequences:
        return
    died, unjudged = writer.failures.died, writer.failures.unjudged
    if unjudged and not died:
        raise LimbeckError(
            f"the verifier of {shown(writer.session.tasks['task'].name)} judged no response {which} "
            f"({len(unjudged)} of them; the first: {unjudged[0]}), so there is nothing to train on; fix the "
            "verifier, or give it more time (verify_seconds)."
        )
    if died:
        raise LimbeckError(
            f"every episode {which} was broken off by its environment ({len(died)} of them; the first: {died[0]}), so "
            "there is nothing to train on; fix the environment, and resume."
        )


def sampling_policy_of(source: Sample, session: Session) -> SamplingPolicy:
    """The policy that samples: each reader at its own temperature, and the source's temperature on top."""
    parts = source.reader.parts if isinstance(source.reader, Blend) else ((source.reader, 1.0),)
    policies = tuple((session.policy(reader.role), weight) for reader, weight in parts)
    return SamplingPolicy(policies, source.tau, tuple(reader.tau for reader, _ in parts))


def sampling_author(source: Sample) -> int:
    """The author of the tokens that a source samples."""
    return joint_author(source.reader.readers if isinstance(source.reader, Blend) else (source.reader,))


def limit_of(source: Sample, writer: RolloutWriter) -> int:
    """Most tokens of a response, or of a turn."""
    if source.max_tokens is None:
        return writer.session.config.max_tokens
    return int(source.max_tokens.now(writer.step, writer.numbers))


def sampling_prompts(source: Sample, session: Session, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids that the sampling policy reads: the student's prompt, or the prompt with the reader's contexts."""
    reader = source.reader
    if isinstance(reader, Blend) or not (reader.context or session.renderer.foreign(reader.role)):
        return [session.renderer.prompt_ids(p) for p in prompts]
    out = []
    for p in prompts:
        blocks = [block(c, prompt_evidence(p), session.templates) for c in reader.context]
        what = f"prompt {p.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
        out.append(session.renderer.render(with_blocks(p, blocks), reader.role, what, session.config.max_tokens))
    return out


UNJUDGED = Verdict(math.nan, False)
"""The verdict on a response whose verifier raised, took too long or gave no reward."""


def judge(session: Session, prompt: Prompt, text: Written, failures: Failures) -> Verdict | None:
    """The task's verdict, None where it has no verifier, or ``UNJUDGED`` where that failed (added to ``failures``).

    Raises:
        LimbeckError: where the verifier returned something that is no verdict.
    """
    return judge_all(session, [prompt], [text], failures)[0]


def judge_all(
    session: Session, prompts: Sequence[Prompt], texts: Sequence[Written], failures: Failures
) -> list[Verdict | None]:
    """``judge`` for several responses, which a task may judge together."""
    task = session.tasks["task"]
    if "reward" not in task.serves or "episodes" in task.serves:
        return [None for _ in texts]
    written = [session.policies["student"].text(w.ids) for w in texts]
    verdicts = judge_responses(task, prompts, written, session.config.verify_seconds)
    failures.unjudged += [v.reason for v in verdicts if isinstance(v, Unjudged)]
    return [UNJUDGED if isinstance(v, Unjudged) else v for v in verdicts]


def is_kept(session: Session, verdict: Verdict | None) -> bool:
    """Whether a response stays in the batch: one that is not judged has no reward for a method that reads rewards."""
    return verdict is not UNJUDGED or not session.reads_verdicts
