"""Writing the sources of a method: each becomes a record, and the records of a batch are joined.

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
from .derived import write_once, write_patch, write_recast, write_refine, write_resample, write_select
from .episodes import write_episodes
from .trajectory import Trajectory, assemble, single
from .writer import (
    Failures,
    RolloutWriter,
    is_kept,
    judge_all,
    limit_of,
    refuse_empty,
    sampling_author,
    sampling_policy_of,
    sampling_prompts,
)


def writer_for(session: Session, n: int, step: int) -> RolloutWriter:
    """The writer of one batch of ``n`` groups a source, at a step."""
    return RolloutWriter(session, n, step, write_source)


def write(sources: Mapping[str, Source], session: Session, prompts: int, step: int) -> tuple[Rollout, Failures]:
    """One record with ``prompts`` groups of every source, and the failures of environments and verifiers.

    Args:
        sources: of the method, by name.
        session: models, tasks and prompts.
        prompts: groups that a source writes in this process.
        step: for schedules.
    """
    writer = writer_for(session, prompts, step)
    done: dict[str, Rollout] = {}
    for name, source in sources.items():
        done[name] = replace(writer, name=name, done=done).write(source)
    record = concatenate(list(done.values()))
    refuse_empty(writer, record, f"of step {step}")
    promised = [n for s in sources.values() for part in s.walk() if isinstance(part, Recast) for n, _ in part.carry]
    nothing = torch.full((record.n_sequences,), torch.nan)  # a recast that dropped every sequence still has its columns
    columns_B = {**dict.fromkeys(promised, nothing), **record.columns_B}
    return replace(record, columns_B=columns_B).check(), writer.failures


def write_source(source: Source, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Rollout:
    """The record of one source, on the given prompts or on the next ones."""
    match source:
        case Data():
            return _write_data(source, writer)
        case Sample():
            return write_sample(source, writer, writer.take() if prompts is None else prompts)
        case Either():
            heads = _coin(writer.session.streams["task"].seed, writer.step, writer.name) < _chance(source, writer)
            return writer.write(source.a if heads else source.b, prompts)
        case Resample():
            return write_resample(source, writer)
        case Select():
            return write_select(source, writer, prompts)
        case Patch():
            return write_patch(source, writer, prompts)
        case Once():
            return write_once(source, writer, prompts)
        case Refine():
            return write_refine(source, writer, prompts)
        case Recast():
            return write_recast(source, writer)
    raise LimbeckError(
        f"source {writer.name}={source}: the engine cannot write a {type(source).__name__}; use a source of "
        "limbeck.axes."
    )


def _chance(source: Either, writer: RolloutWriter) -> float:
    """The present chance of a coin, which a controller may have moved out of [0, 1]."""
    chance = source.chance.now(writer.step, writer.numbers)
    number(f"the chance of either ({source.chance}) at step {writer.step}", chance, 0, 1, ends=True)
    return chance


def _coin(seed: int, step: int, name: str) -> float:
    """Uniform in [0, 1), the same in every process, so that the parts of a batch come from the same source."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {step} {name}".encode()))
    return float(torch.rand((), generator=generator))


# ---------------------------------------------------------------- sources that are made of no other


def write_sample(source: Sample, writer: RolloutWriter, prompts: Sequence[Prompt]) -> Rollout:
    """``n`` responses a prompt, of one turn or of several."""
    if source.episodic or "episodes" in writer.session.tasks["task"].serves:
        return assemble(write_episodes(source, writer, prompts), writer.name)
    session = writer.session
    repeated = [p for p in prompts for _ in range(source.n)]
    seen = sampling_prompts(source, session, repeated)
    texts = generate(sampling_policy_of(source, session), seen, limit_of(source, writer), session.config.generate_batch)
    rows: list[Trajectory | None] = []
    # Judged wherever there is a verifier, also for methods that read no verdict: the accuracy is reported.
    verdicts = judge_all(session, repeated, texts, writer.failures)
    for p, w, verdict in zip(repeated, texts, verdicts, strict=True):
        row = single(p, session.renderer.prompt_ids(p), w.ids, w.logp, sampling_author(source), w.truncated, verdict)
        rows.append(row if is_kept(session, verdict) else None)
    groups = [[r for r in rows[i : i + source.n] if r is not None] for i in range(0, len(rows), source.n)]
    return assemble(groups, writer.name)


def _write_data(source: Data, writer: RolloutWriter) -> Rollout:
    """Responses that the data holds, cut at the run's limit."""
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
    return assemble(groups, writer.name)
