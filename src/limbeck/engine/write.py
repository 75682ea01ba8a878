"""Writing: sources become groups of rows, and rows a record. Who writes and who verifies is the source's; how is here.

Sources made of others are in ``rewrite``, responses of several turns in ``episode``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..axes.reader import Blend
from ..axes.rewrite import Once, Patch, Recast, Refine, Select
from ..axes.source import Data, Either, Resample, Sample, Source, hand
from ..errors import LimbeckError, number, shown
from ..refusals import walk
from ..tasks import Verdict
from ..tasks.base import Unjudged, judged
from ..types import DATA, Prompt, Rollout, concatenate
from .desk import Desk
from .frame import of_prompt, with_blocks
from .rows import Row, assemble, single
from .sampler import Law, Written, generate
from .templates import block

Groups = list[list[Row]]
"""Rows of one source; a group is what one prompt gave."""


@dataclass
class Pen:
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
        return self.desk.feeds["task"].take(self.n)

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
    pen = Pen(desk, prompts, step)
    for name, source in sources.items():
        pen.name = name
        pen.done[name] = written(source, pen, None)
    refuse_all_dead(pen, [g for groups in pen.done.values() for g in groups], f"of step {step}")
    record = concatenate([assemble(groups, name) for name, groups in pen.done.items()])
    promised = [n for s in sources.values() for part in walk(s) if isinstance(part, Recast) for n, _ in part.carry]
    nothing = torch.full((record.n_sequences,), torch.nan)  # a recast that dropped every sequence still has its columns
    desk.died += pen.died
    return replace(record, columns_B={**dict.fromkeys(promised, nothing), **record.columns_B}).check()


def refuse_all_dead(pen: Pen, groups: Groups, which: str) -> None:
    """Stop where environments broke off every episode, or verifiers judged no response.

    Raises:
        LimbeckError: with the reason of the first.
    """
    if any(row for group in groups for row in group):
        return
    if pen.desk.unjudged and not pen.died:
        raise LimbeckError(
            f"the verifier of {shown(pen.desk.tasks['task'].name)} judged no response {which} "
            f"({len(pen.desk.unjudged)} of them; the first: {pen.desk.unjudged[0]}), so there is nothing to learn "
            "from; mend the verifier, or give it more time (verify_seconds)."
        )
    if pen.died:
        raise LimbeckError(
            f"every episode {which} was broken off by its environment ({len(pen.died)} of them; the first: "
            f"{pen.died[0]}), so there is nothing to learn from; mend the environment, and go on."
        )


def written(source: Source, pen: Pen, prompts: Sequence[Prompt] | None) -> Groups:
    """The groups of one source, on the given prompts or on the next ones."""
    from . import rewrite  # it calls back here for the sources that its own are made of

    match source:
        case Data():
            return _from_data(source, pen)
        case Sample():
            return sampled(source, pen, pen.take() if prompts is None else prompts)
        case Either():
            heads = _coin(pen.desk.feeds["task"].seed, pen.step, pen.name) < _chance(source, pen)
            return written(source.a if heads else source.b, pen, prompts)
        case Resample():
            return rewrite.resampled(source, pen)
        case Select():
            return rewrite.selected(source, pen, prompts)
        case Patch():
            return rewrite.patched(source, pen, prompts)
        case Once():
            return rewrite.stored(source, pen, prompts)
        case Refine():
            return rewrite.refined(source, pen, prompts)
        case Recast():
            return rewrite.recast(source, pen)
    raise LimbeckError(f"source {pen.name}={source}: the engine has no writer for {type(source).__name__}.")


def _chance(source: Either, pen: Pen) -> float:
    """The present chance of a coin; a controller may have moved it anywhere."""
    chance = source.chance.now(pen.step, pen.numbers)
    number(f"the chance of either ({source.chance}) at step {pen.step}", chance, 0, 1, ends=True)
    return chance


def _coin(seed: int, step: int, name: str) -> float:
    """Uniform in [0, 1), the same in every process: a batch is one batch wherever its parts are written."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {step} {name}".encode()))
    return float(torch.rand((), generator=generator))


# ---------------------------------------------------------------- the two that start from nothing


def sampled(source: Sample, pen: Pen, prompts: Sequence[Prompt]) -> Groups:
    """``n`` responses a prompt, of one turn or of several."""
    if source.episodic or "episodes" in pen.desk.tasks["task"].serves:
        from .episode import played

        return played(source, pen, prompts)
    desk = pen.desk
    repeated = [p for p in prompts for _ in range(source.n)]
    texts = generate(law_of(source, desk), seen(source, desk, repeated), limit_of(source, pen), desk.batch)
    rows: list[Row | None] = []
    for p, w in zip(repeated, texts, strict=True):
        # Judged where there is a verifier, also for methods that do not read it: training accuracy is worth seeing.
        said = judge(desk, p, w)
        row = single(p, desk.prompt_ids(p), w.ids, w.logp, author_of(source), w.truncated, said)
        rows.append(row if kept(desk, said) else None)
    return [[r for r in rows[i : i + source.n] if r is not None] for i in range(0, len(rows), source.n)]


def law_of(source: Sample, desk: Desk) -> Law:
    """Who writes, each reader at its own temperature and all at the source's on top."""
    parts = source.reader.parts if isinstance(source.reader, Blend) else ((source.reader, 1.0),)
    policies = tuple((desk.policy(reader.role), weight) for reader, weight in parts)
    return Law(policies, source.tau, tuple(reader.tau for reader, _ in parts))


def author_of(source: Sample) -> int:
    """Whose hand it is in the record."""
    return hand(source.reader.readers if isinstance(source.reader, Blend) else (source.reader,))


def limit_of(source: Sample, pen: Pen) -> int:
    """Tokens of a response, or of a turn."""
    return pen.desk.max_tokens if source.max_tokens is None else int(source.max_tokens.now(pen.step, pen.numbers))


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
    task = desk.tasks["task"]
    if "reward" not in task.serves or "episodes" in task.serves:
        return None
    try:
        return judged(task, prompt, desk.policies["student"].text(text.ids), desk.verify_seconds)
    except Unjudged as e:
        desk.unjudged.append(e.reason)
        return UNJUDGED


def kept(desk: Desk, verdict: Verdict | None) -> bool:
    """Whether a response stays in the batch: one without a verdict has no reward that a method could read."""
    return verdict is not UNJUDGED or not desk.judged_only


def _from_data(source: Data, pen: Pen) -> Groups:
    desk = pen.desk
    task, feed = desk.tasks[source.name], desk.feeds[source.name]
    groups = []
    for prompt in feed.take(pen.n):
        rows = []
        for response in task.responses(prompt)[: source.group]:
            ids = desk.response_ids(prompt, response)
            cut = len(ids) > desk.max_tokens
            ids = ids[: desk.max_tokens]
            rows.append(single(prompt, desk.prompt_ids(prompt), ids, None, DATA, cut, None, response.label))
        groups.append(rows)
    return groups
