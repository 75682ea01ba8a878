"""Writing: sources become groups of rows, and rows a record. Who writes and who verifies is the source's; how is here.

Sources made of others are in ``derived``, responses of several turns in ``episodes``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ...axes.derived_source import Once, Patch, Recast, Refine, Select
from ...axes.source import Data, Either, Resample, Sample, Source
from ...errors import LimbeckError, number
from ...types import DATA, Prompt, Rollout, concatenate
from ..models.generate import generate
from ..session import Session
from . import derived
from .episodes import played
from .trajectory import Trajectory, assemble, single
from .writer import (
    Groups,
    RolloutWriter,
    author_of,
    judge_all,
    kept,
    limit_of,
    refuse_all_dead,
    sampling_policy_of,
    seen,
)


def writer_for(session: Session, n: int, step: int) -> RolloutWriter:
    """What writes one batch of ``n`` groups a source, at a step."""
    return RolloutWriter(session, n, step, written)


def write(sources: Mapping[str, Source], session: Session, prompts: int, step: int) -> Rollout:
    """One record with ``prompts`` groups of every source.

    Args:
        sources: the method's.
        session: models, tasks and prompts.
        prompts: groups a source writes in this process.
        step: for schedules.
    """
    writer = writer_for(session, prompts, step)
    for name, source in sources.items():
        writer.name = name
        writer.done[name] = writer.write(source)
    refuse_all_dead(writer, [g for groups in writer.done.values() for g in groups], f"of step {step}")
    record = concatenate([assemble(groups, name) for name, groups in writer.done.items()])
    promised = [n for s in sources.values() for part in s.walk() if isinstance(part, Recast) for n, _ in part.carry]
    nothing = torch.full((record.n_sequences,), torch.nan)  # a recast that dropped every sequence still has its columns
    session.state.broken_off += writer.died
    return replace(record, columns_B={**dict.fromkeys(promised, nothing), **record.columns_B}).check()


def written(source: Source, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Groups:
    """The groups of one source, on the given prompts or on the next ones."""

    match source:
        case Data():
            return _from_data(source, writer)
        case Sample():
            return sampled(source, writer, writer.take() if prompts is None else prompts)
        case Either():
            heads = _coin(writer.session.streams["task"].seed, writer.step, writer.name) < _chance(source, writer)
            return writer.write(source.a if heads else source.b, prompts)
        case Resample():
            return derived.resampled(source, writer)
        case Select():
            return derived.selected(source, writer, prompts)
        case Patch():
            return derived.patched(source, writer, prompts)
        case Once():
            return derived.stored(source, writer, prompts)
        case Refine():
            return derived.refined(source, writer, prompts)
        case Recast():
            return derived.recast(source, writer)
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
    if source.episodic or "episodes" in writer.session.tasks["task"].serves:
        return played(source, writer, prompts)
    session = writer.session
    repeated = [p for p in prompts for _ in range(source.n)]
    texts = generate(
        sampling_policy_of(source, session),
        seen(source, session, repeated),
        limit_of(source, writer),
        session.config.generate_batch,
    )
    # Judged where there is a verifier, also for methods that do not read it: training accuracy is worth seeing.
    said = judge_all(session, repeated, texts)
    rows: list[Trajectory | None] = []
    for p, w, verdict in zip(repeated, texts, said, strict=True):
        row = single(p, session.renderer.prompt_ids(p), w.ids, w.logp, author_of(source), w.truncated, verdict)
        rows.append(row if kept(session, verdict) else None)
    return [[r for r in rows[i : i + source.n] if r is not None] for i in range(0, len(rows), source.n)]


def _from_data(source: Data, writer: RolloutWriter) -> Groups:
    session = writer.session
    task, stream = session.tasks[source.name], session.streams[source.name]
    groups = []
    for prompt in stream.take(writer.n):
        rows = []
        for response in task.responses(prompt)[: source.group]:
            ids = session.renderer.response_ids(prompt, response)
            cut = len(ids) > session.config.max_tokens
            ids = ids[: session.config.max_tokens]
            rows.append(single(prompt, session.renderer.prompt_ids(prompt), ids, None, DATA, cut, None, response.label))
        groups.append(rows)
    return groups
