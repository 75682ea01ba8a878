"""Writing: sources become records. Who writes and who verifies is the source's; how is here."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..axes.ladder import Rung
from ..axes.reader import Blend, Reader, student
from ..axes.source import Data, Either, Resample, Sample, Source
from ..errors import LimbeckError
from ..objective import Batch
from ..tasks import Task, Verdict
from ..types import DATA, STUDENT, TEACHER, Prompt, Rollout, concatenate
from .feed import Feed
from .models import Policy, render
from .sampler import Law, Written, generate


@dataclass(frozen=True)
class Row:
    """One sequence before it joins a record."""

    prompt: Prompt
    prompt_ids: list[int]
    ids: list[int]
    logp: list[float] | None
    author: int
    truncated: bool = False
    verdict: Verdict | None = None
    label: float = math.nan


@dataclass
class Desk:
    """What a writer needs at hand.

    Attributes:
        policies: by role (``student``, ``teacher`` ...).
        tasks: by name; ``task`` is the run's own, others are what a method's ``data(name)`` reads.
        feeds: prompts, by the same names.
        max_tokens: limit of a response unless the source says otherwise.
        batch: sequences generated at once.
    """

    policies: Mapping[str, Policy]
    tasks: Mapping[str, Task]
    feeds: Mapping[str, Feed]
    max_tokens: int
    batch: int
    rendered: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The rendered prompt, checked against the student's context."""
        key = (prompt.id, str(prompt.messages))
        if key not in self.rendered:
            ids = render(self.policies["student"], [dict(m) for m in prompt.messages])
            room = min(p.context for p in self.policies.values())
            if len(ids) + self.max_tokens > room:
                raise LimbeckError(
                    f"prompt {prompt.id!r} has {len(ids)} tokens and max_tokens is {self.max_tokens}, but the models "
                    f"read only {room}; shorten the prompt or lower max_tokens."
                )
            if ids and max(ids) >= self.policies["student"].vocabulary:
                token = self.policies["student"].tokenizer.convert_ids_to_tokens(max(ids))
                raise LimbeckError(
                    f"prompt {prompt.id!r} has the token {token!r}, which the other model's vocabulary lacks; use "
                    "another chat template (--set template=FILE.jinja) or models of one family."
                )
            if not ids:
                raise LimbeckError(f"prompt {prompt.id!r} renders to no token; give it text or a template with some.")
            self.rendered[key] = ids
        return self.rendered[key]

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


def write(sources: Mapping[str, Source], desk: Desk, prompts: int, step: int) -> Rollout:
    """One record with ``prompts`` groups of every source.

    Args:
        sources: the method's.
        desk: models, tasks and prompts.
        prompts: groups a source writes in this process.
        step: for schedules.
    """
    return concatenate([_write(source, name, desk, prompts, step) for name, source in sources.items()]).check()


def _write(source: Source, name: str, desk: Desk, n: int, step: int) -> Rollout:
    match source:
        case Data():
            return _from_data(source, name, desk, n)
        case Sample():
            return _sampled(source, name, desk, desk.feeds["task"].take(n))
        case Either():
            heads = _coin(desk.feeds["task"].seed, step, name) < source.chance.at(step)
            return _write(source.a if heads else source.b, name, desk, n, step)
        case Resample():
            return _resampled(source, name, desk, n, step)
    raise LimbeckError(f"source {name}={source}: the engine has no writer for {type(source).__name__}.")


def _coin(seed: int, step: int, name: str) -> float:
    """Uniform in [0, 1), the same in every process: a batch is one batch wherever its parts are written."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {step} {name}".encode()))
    return float(torch.rand((), generator=generator))


def _sampled(source: Sample, name: str, desk: Desk, prompts: Sequence[Prompt]) -> Rollout:
    parts = source.reader.parts if isinstance(source.reader, Blend) else ((source.reader, 1.0),)
    law = Law(tuple((_policy(desk, reader), weight) for reader, weight in parts), source.tau)
    repeated = [p for p in prompts for _ in range(source.n)]
    texts = generate(law, [desk.prompt_ids(p) for p in repeated], source.max_tokens or desk.max_tokens, desk.batch)
    author = STUDENT if any(reader.role == student.role for reader, _ in parts) else TEACHER
    rows = [
        Row(p, desk.prompt_ids(p), w.ids, w.logp, author, w.truncated, judge(desk, p, w))
        for p, w in zip(repeated, texts, strict=True)
    ]
    return assemble(rows, source.n, name)


def _policy(desk: Desk, reader: Reader) -> Policy:
    return desk.policies[reader.role]


def judge(desk: Desk, prompt: Prompt, written: Written) -> Verdict | None:
    """The task's verdict, or None where it has no verifier.

    Raises:
        LimbeckError: where a reward is not finite.
    """
    task = desk.tasks["task"]
    if "reward" not in task.serves:
        return None
    policy = desk.policies["student"]
    ids = [i for i in written.ids if i not in policy.eos]
    text = str(policy.tokenizer.decode(ids, skip_special_tokens=True))
    verdict = task.verify(prompt, text)
    if not math.isfinite(verdict.reward):
        raise LimbeckError(
            f"the verifier of {task.name!r} gave reward {verdict.reward} to a response to prompt {prompt.id!r} "
            f"({text[:60]!r}); a reward must be a finite number, so mend the verifier."
        )
    return verdict


def _from_data(source: Data, name: str, desk: Desk, n: int) -> Rollout:
    task, feed = desk.tasks[source.name], desk.feeds[source.name]
    policy = desk.policies["student"]
    rows = []
    for prompt in feed.take(n):
        responses = task.responses(prompt)[: source.group]
        for response in responses:
            ids = desk.response_ids(prompt, response.text)
            limit = max(desk.max_tokens, 1)
            cut = len(ids) >= limit
            ids = ids[:limit] if cut else [*ids, policy.end]
            rows.append(Row(prompt, desk.prompt_ids(prompt), ids, None, DATA, cut, None, response.label))
    return assemble(rows, source.group, name)


def _resampled(source: Resample, name: str, desk: Desk, n: int, step: int) -> Rollout:
    """Write until ``n`` groups satisfy the condition, at most ``rounds`` times; with none at all, one group remains."""
    kept: list[Rollout] = []
    last = None
    for _ in range(source.rounds):
        record = last = _write(source.source, name, desk, n, step)
        kept += [record.groups(g, g + 1)[0] for g in _satisfying(source, record, step)]
        if len(kept) >= n:
            break
    assert last is not None
    # A group whose rewards agree has no advantage: keeping one keeps the step whole where no group informs.
    return concatenate(kept[:n]) if kept else last.groups(0, 1)[0]


def _satisfying(source: Resample, record: Rollout, step: int) -> list[int]:
    """The groups where the source's condition holds."""
    batch = Batch(record, {}, step)
    holds_G = batch.ladder.down(source.until.evaluate(batch), source.until.rung, Rung.GROUP).bool()
    groups: list[int] = holds_G.nonzero().squeeze(-1).tolist()
    return groups


def assemble(rows: Sequence[Row], group: int, name: str) -> Rollout:
    """Rows, ``group`` neighbours a group, as one record."""
    length = torch.tensor([len(r.prompt_ids) + len(r.ids) for r in rows])
    start = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    pos = [int(start[b]) + len(r.prompt_ids) + t for b, r in enumerate(rows) for t in range(len(r.ids))]
    seq = torch.tensor([b for b, r in enumerate(rows) for _ in r.ids], dtype=torch.int64)
    nan = math.nan
    return Rollout(
        ids_L=torch.tensor([i for r in rows for i in (*r.prompt_ids, *r.ids)], dtype=torch.int64),
        start_B1=start,
        pos_N=torch.tensor(pos, dtype=torch.int64),
        turn_N=seq,
        seq_U=torch.arange(len(rows)),
        group_B=torch.arange(len(rows)) // group,
        author_N=torch.tensor([r.author for r in rows for _ in r.ids], dtype=torch.int8),
        writer_logp_N=torch.tensor([x for r in rows for x in (r.logp or [nan] * len(r.ids))], dtype=torch.float32),
        origin_B=torch.zeros(len(rows), dtype=torch.int64),
        reward_U=torch.tensor([r.verdict.reward if r.verdict else nan for r in rows], dtype=torch.float32),
        correct_B=torch.tensor([r.verdict.correct if r.verdict else False for r in rows]),
        truncated_B=torch.tensor([r.truncated for r in rows]),
        label_B=torch.tensor([r.label for r in rows], dtype=torch.float32),
        sources=(name,),
        prompts=tuple(r.prompt for r in rows),
        feedback=tuple(r.verdict.feedback if r.verdict else None for r in rows),
    )
