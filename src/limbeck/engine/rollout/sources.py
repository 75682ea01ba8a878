"""Writing: sources become groups of rows, and rows a record. Who writes and who verifies is the source's; how is here.

Sources made of others are in ``rewrite``, responses of several turns in ``episode``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ...axes.derived_source import Once, Patch, Recast, Refine, Select
from ...axes.reader import Blend
from ...axes.source import Data, Either, Resample, Sample, Source, hand
from ...errors import LimbeckError, number, shown
from ...space.refusals import walk
from ...tasks import Verdict
from ...tasks.base import Unjudged, judged_all
from ...types import DATA, Prompt, Rollout, concatenate
from ..models.generate import SamplingPolicy, Written, generate
from ..scoring.contexts import of_prompt, with_blocks
from ..scoring.templates import block
from ..session import Desk
from .trajectory import Trajectory, assemble, single

Groups = list[list[Trajectory]]
"""Rows of one source; a group is what one prompt gave."""


@dataclass
class RolloutWriter:
    """One batch being written.

    Attributes:
        desk: models, tasks and prompts.
        n: groups a source writes in this process.
        step: for schedules.
        done: what the named sources before this one wrote.
        name: of the source that is being written.
        died: why environments broke off episodes, one clause for each.
    """

    desk: Desk
    n: int
    step: int
    done: dict[str, Groups] = field(default_factory=dict)
    name: str = ""
    died: list[str] = field(default_factory=list)

    def take(self) -> list[Prompt]:
        """The next prompts of the task."""
        return self.desk.streams["task"].take(self.n)

    @property
    def numbers(self) -> dict[str, float]:
        """The run's memory, where controllers find their values."""
        return self.desk.memory.numbers


def write(sources: Mapping[str, Source], desk: Desk, prompts: int, step: int) -> Rollout:
    """One record with ``prompts`` groups of every source.

    Args:
        sources: the method's.
        desk: models, tasks and prompts.
        prompts: groups a source writes in this process.
        step: for schedules.
    """
    writer = RolloutWriter(desk, prompts, step)
    for name, source in sources.items():
        writer.name = name
        writer.done[name] = written(source, writer, None)
    refuse_all_dead(writer, [g for groups in writer.done.values() for g in groups], f"of step {step}")
    record = concatenate([assemble(groups, name) for name, groups in writer.done.items()])
    promised = [n for s in sources.values() for part in walk(s) if isinstance(part, Recast) for n, _ in part.carry]
    nothing = torch.full((record.n_sequences,), torch.nan)  # a recast that dropped every sequence still has its columns
    desk.died += writer.died
    return replace(record, columns_B={**dict.fromkeys(promised, nothing), **record.columns_B}).check()


def refuse_all_dead(writer: RolloutWriter, groups: Groups, which: str) -> None:
    """Stop where environments broke off every episode, or verifiers judged no response.

    Raises:
        LimbeckError: with the reason of the first.
    """
    if any(row for group in groups for row in group):
        return
    if writer.desk.unjudged and not writer.died:
        raise LimbeckError(
            f"the verifier of {shown(writer.desk.tasks['task'].name)} judged no response {which} "
            f"({len(writer.desk.unjudged)} of them; the first: {writer.desk.unjudged[0]}), so there is nothing to learn "
            "from; mend the verifier, or give it more time (verify_seconds)."
        )
    if writer.died:
        raise LimbeckError(
            f"every episode {which} was broken off by its environment ({len(writer.died)} of them; the first: "
            f"{writer.died[0]}), so there is nothing to learn from; mend the environment, and go on."
        )


def written(source: Source, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Groups:
    """The groups of one source, on the given prompts or on the next ones."""
    from . import derived as rewrite  # it calls back here for the sources that its own are made of

    match source:
        case Data():
            return _from_data(source, writer)
        case Sample():
            return sampled(source, writer, writer.take() if prompts is None else prompts)
        case Either():
            heads = _coin(writer.desk.streams["task"].seed, writer.step, writer.name) < _chance(source, writer)
            return written(source.a if heads else source.b, writer, prompts)
        case Resample():
            return rewrite.resampled(source, writer)
        case Select():
            return rewrite.selected(source, writer, prompts)
        case Patch():
            return rewrite.patched(source, writer, prompts)
        case Once():
            return rewrite.stored(source, writer, prompts)
        case Refine():
            return rewrite.refined(source, writer, prompts)
        case Recast():
            return rewrite.recast(source, writer)
    raise LimbeckError(f"source {writer.name}={source}: the engine has no writer for {type(source).__name__}.")


def _chance(source: Either, writer: RolloutWriter) -> float:
    """The present chance of a coin; a controller may have moved it anywhere."""
    chance = source.chance.now(writer.step, writer.numbers)
    number(f"the chance of either ({source.chance}) at step {writer.step}", chance, 0, 1, ends=True)
    return chance


def _coin(seed: int, step: int, name: str) -> float:
    """Uniform in [0, 1), the same in every process: a batch is one batch wherever its parts are written."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {step} {name}".encode()))
    return float(torch.rand((), generator=generator))


# ---------------------------------------------------------------- the two that start from nothing


def sampled(source: Sample, writer: RolloutWriter, prompts: Sequence[Prompt]) -> Groups:
    """``n`` responses a prompt, of one turn or of several."""
    if source.episodic or "episodes" in writer.desk.tasks["task"].serves:
        from .episodes import played

        return played(source, writer, prompts)
    desk = writer.desk
    repeated = [p for p in prompts for _ in range(source.n)]
    texts = generate(
        sampling_policy_of(source, desk), seen(source, desk, repeated), limit_of(source, writer), desk.batch
    )
    # Judged where there is a verifier, also for methods that do not read it: training accuracy is worth seeing.
    said = judge_all(desk, repeated, texts)
    rows: list[Trajectory | None] = []
    for p, w, verdict in zip(repeated, texts, said, strict=True):
        row = single(p, desk.prompt_ids(p), w.ids, w.logp, author_of(source), w.truncated, verdict)
        rows.append(row if kept(desk, verdict) else None)
    return [[r for r in rows[i : i + source.n] if r is not None] for i in range(0, len(rows), source.n)]


def sampling_policy_of(source: Sample, desk: Desk) -> SamplingPolicy:
    """Who writes, each reader at its own temperature and all at the source's on top."""
    parts = source.reader.parts if isinstance(source.reader, Blend) else ((source.reader, 1.0),)
    policies = tuple((desk.policy(reader.role), weight) for reader, weight in parts)
    return SamplingPolicy(policies, source.tau, tuple(reader.tau for reader, _ in parts))


def author_of(source: Sample) -> int:
    """Whose hand it is in the record."""
    return hand(source.reader.readers if isinstance(source.reader, Blend) else (source.reader,))


def limit_of(source: Sample, writer: RolloutWriter) -> int:
    """Tokens of a response, or of a turn."""
    return (
        writer.desk.max_tokens if source.max_tokens is None else int(source.max_tokens.now(writer.step, writer.numbers))
    )


def seen(source: Sample, desk: Desk, prompts: Sequence[Prompt]) -> list[list[int]]:
    """What the writer reads: the prompt as the student reads it, or with the writer's own contexts behind it."""
    reader = source.reader
    if isinstance(reader, Blend) or not (reader.context or desk.foreign(reader.role)):
        return [desk.prompt_ids(p) for p in prompts]
    out = []
    for p in prompts:
        blocks = [block(c, of_prompt(p), desk.blocks) for c in reader.context]
        what = f"prompt {p.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
        out.append(desk.render(with_blocks(p, blocks), reader.role, what, desk.max_tokens))
    return out


UNJUDGED = Verdict(math.nan, False)
"""What a response has whose verifier raised, took too long or gave no reward."""


def judge(desk: Desk, prompt: Prompt, text: Written) -> Verdict | None:
    """The task's verdict, None where it has no verifier, or ``UNJUDGED`` where that gave none (``desk.unjudged``).

    Raises:
        LimbeckError: where it gave something that is no verdict.
    """
    return judge_all(desk, [prompt], [text])[0]


def judge_all(desk: Desk, prompts: Sequence[Prompt], texts: Sequence[Written]) -> list[Verdict | None]:
    """The same of several responses, which a task may judge together."""
    task = desk.tasks["task"]
    if "reward" not in task.serves or "episodes" in task.serves:
        return [None for _ in texts]
    written = [desk.policies["student"].text(w.ids) for w in texts]
    said = judged_all(task, prompts, written, desk.verify_seconds)
    desk.unjudged += [v.reason for v in said if isinstance(v, Unjudged)]
    return [UNJUDGED if isinstance(v, Unjudged) else v for v in said]


def kept(desk: Desk, verdict: Verdict | None) -> bool:
    """Whether a response stays in the batch: one without a verdict has no reward that a method could read."""
    return verdict is not UNJUDGED or not desk.judged_only


def _from_data(source: Data, writer: RolloutWriter) -> Groups:
    desk = writer.desk
    task, stream = desk.tasks[source.name], desk.streams[source.name]
    groups = []
    for prompt in stream.take(writer.n):
        rows = []
        for response in task.responses(prompt)[: source.group]:
            ids = desk.response_ids(prompt, response)
            cut = len(ids) > desk.max_tokens
            ids = ids[: desk.max_tokens]
            rows.append(single(prompt, desk.prompt_ids(prompt), ids, None, DATA, cut, None, response.label))
        groups.append(rows)
    return groups
