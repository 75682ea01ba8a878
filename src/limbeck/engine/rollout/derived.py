"""Sources made of others: sampled again, selected, patched, stored, refined, or put under another prompt.

Each takes the record of its inner source and returns another record: filtered, joined with new responses, or read from
the run's memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...axes.derived_source import SAME, Once, Patch, Recast, Refine, Select, score_column
from ...axes.expression import Expr
from ...axes.levels import Level
from ...axes.reader import behavior
from ...axes.signal import logp as logp_of
from ...axes.source import Resample
from ...loss.batch import Batch
from ...tasks import Response
from ...types import DATA, Prompt, Rollout, Scores, concatenate
from ..models.generate import SamplingPolicy, generate
from ..scoring.contexts import ContextViews, record_evidence, reframed, with_blocks
from ..scoring.forward import score_record
from ..scoring.templates import block, fill
from ..session import Session
from .trajectory import Segment, Trajectory, assemble, segment_of, single
from .writer import RolloutWriter, is_kept, judge


def evaluate_expression(v: Expr, record: Rollout, session: Session, step: int, level: Level) -> Tensor:
    """An expression on a record that has just been written, one value a unit of ``level``; its readers score it now."""
    keys = {(reader.at(1.0), ability) for reader, ability in v.needs if reader.kind != behavior.kind}
    views, scores = ContextViews(record, session), dict[str, Scores]()
    for reader, _ in sorted(keys, key=lambda need: need[0].key):
        abilities = frozenset(a for r, a in keys if r == reader)
        seen = views.seen_by(reader)
        scores[reader.key] = score_record(
            session.policy(reader.role), seen, abilities, session.config.micro_tokens, None
        )
    on_device = record.to(session.policies["student"].device)
    batch = Batch(on_device, scores, step, memory=dict(session.state.memory.numbers))
    return batch.levels.down(v.evaluate(batch), v.level, level).cpu()


def write_resample(source: Resample, writer: RolloutWriter) -> Rollout:
    """Groups that satisfy the condition, ``n`` of them, from at most ``rounds`` rounds.

    Where no group satisfies it, the first one of the last round remains, so that the step has a batch. A group whose
    rewards are all equal has no advantage and adds no gradient.
    """
    kept: list[Rollout] = []
    last = assemble([], writer.name)
    for _ in range(source.rounds):
        new = writer.write(source.source)
        if not new.n_groups:
            continue
        last = new
        holds_G = _holds(source.until, last, writer)
        kept.append(last.select([b for g, members in enumerate(last.sequences_G) if holds_G[g] for b in members]))
        if sum(record.n_groups for record in kept) >= writer.n:
            break
    found = concatenate([assemble([], writer.name), *kept])
    return found.groups(0, writer.n)[0] if found.n_groups else last.groups(0, 1)[0]


def write_select(source: Select, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Rollout:
    """The best ``keep`` sequences of each group."""
    record = writer.write(source.source, prompts)
    if not record.n_groups:
        return record
    scores = [evaluate_expression(v, record, writer.session, writer.step, Level.SEQUENCE).tolist() for v in source.by]
    ranks = list(zip(*scores, strict=True))
    best = [sorted(members, key=ranks.__getitem__, reverse=True)[: source.keep] for members in record.sequences_G]
    return record.select([b for members in best for b in members])


def write_patch(source: Patch, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Rollout:
    """The groups of a source; where ``when`` holds, the sequences of a new writer are added to the group."""
    record = writer.write(source.source, prompts)
    if not record.n_groups:
        return record
    holds_G = _holds(source.when, record, writer)
    asked = [_prompt(record, g) for g in range(record.n_groups) if holds_G[g]]
    new = writer.write(source.new, asked) if asked else assemble([], writer.name)
    both, first = concatenate([record, new]), record.n_sequences
    more: dict[str, list[range]] = {}  # by prompt: a group whose episodes all broke off is not among them
    for g, members in enumerate(new.sequences_G):
        more.setdefault(_prompt(new, g).id, []).append(members)
    chosen: list[int] = []
    groups: list[int] = []
    for g, members in enumerate(record.sequences_G):
        added = more.get(_prompt(record, g).id, []) if holds_G[g] else []
        now = [*members, *(first + b for b in added.pop(0))] if added else list(members)
        chosen, groups = chosen + now, groups + [g] * len(now)
    return both.select(chosen, groups)


def _holds(v: Expr, record: Rollout, writer: RolloutWriter) -> list[bool]:
    """Whether a condition holds, group by group."""
    holds: list[bool] = evaluate_expression(v, record, writer.session, writer.step, Level.GROUP).bool().tolist()
    return holds


def _prompt(record: Rollout, g: int) -> Prompt:
    """The prompt of a group."""
    return record.prompts_B[record.sequences_G[g][0]]


# ---------------------------------------------------------------- written once


def write_once(source: Once, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Rollout:
    """The stored group of each prompt; prompts without one are written, scored and stored now."""
    stored = writer.session.state.memory.written.setdefault(writer.name, {})
    if prompts is None:
        prompts = writer.take()
    missing = list({p.id: p for p in prompts if p.id not in stored}.values())
    if missing:
        record = writer.write(source.source, missing)
        if source.score is not None and record.n_groups:
            logp_N = evaluate_expression(logp_of(source.score), record, writer.session, writer.step, Level.TOKEN)
            record = replace(record, columns_N={**record.columns_N, score_column(source.score): logp_N})
        for g in range(record.n_groups):
            stored[_prompt(record, g).id] = replace(record.groups(g, g + 1)[0], prompts_B=())
    found = [(p, stored[p.id]) for p in prompts if p.id in stored]
    records = [replace(group, prompts_B=(p,) * group.n_sequences) for p, group in found]
    return concatenate([assemble([], writer.name), *records])


# ---------------------------------------------------------------- from another record


def write_refine(source: Refine, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Rollout:
    """One new response in place of each sequence of the inner source, by a writer that may see that sequence."""
    session, reader = writer.session, source.reader
    drafts = writer.write(source.source, prompts)
    if not drafts.n_groups:
        return drafts
    known = record_evidence(drafts, session)
    seen = []
    for prompt, k in zip(drafts.prompts_B, known, strict=True):
        blocks = [block(c, k, session.templates) for c in reader.context]
        what = f"prompt {prompt.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
        seen.append(session.renderer.render(with_blocks(prompt, blocks), reader.role, what, session.config.max_tokens))
    policy = SamplingPolicy(((session.policy(reader.role), 1.0),), source.tau * reader.tau)
    texts = generate(policy, seen, session.config.max_tokens, session.config.generate_batch)
    rows: list[Trajectory | None] = []
    for prompt, w, k in zip(drafts.prompts_B, texts, known, strict=True):
        verdict = judge(session, prompt, w, writer.failures) if source.check else None
        new = single(prompt, session.renderer.prompt_ids(prompt), w.ids, w.logp, source.author, w.truncated, verdict)
        rows.append(replace(new, draft=str(k["reply"])) if is_kept(session, verdict) else None)
    groups = [[row for b in members if (row := rows[b]) is not None] for members in drafts.sequences_G]
    return assemble(groups, writer.name)


def write_recast(source: Recast, writer: RolloutWriter) -> Rollout:
    """The sequences of another source under another prompt."""
    session, record = writer.session, writer.done[source.of]
    if not record.n_groups:
        return assemble([], writer.name)
    known = _evidence(record, session)
    keep = [True] * record.n_sequences
    if source.keep is not None:
        keep = evaluate_expression(source.keep, record, session, writer.step, Level.SEQUENCE).bool().tolist()
    carried = {n: evaluate_expression(v, record, session, writer.step, Level.SEQUENCE) for n, v in source.carry}
    record = replace(record, columns_B={**record.columns_B, **{n: x.float() for n, x in carried.items()}})
    if source.response == SAME:
        return _same_under_other_prompts(source, record, known, keep, writer)
    groups = []
    for members in record.sequences_G:
        rows = [_recast_row(source, record, b, known[b], session) for b in members if keep[b]]
        groups.append([row for row in rows if row is not None])
    return assemble(groups, writer.name)


def _evidence(record: Rollout, session: Session) -> list[dict[str, Any]]:
    """The evidence of each sequence, with the text of every turn and the environment's message after it."""
    known, token_N, spans = record_evidence(record, session), record.token_N.tolist(), record.tokens_U
    for k, turns in zip(known, record.turns_B, strict=True):
        k |= {f"turn_{t}": session.policies["student"].text(token_N[spans[u]]) for t, u in enumerate(turns)}
        k |= {f"said_{t}": record.said_U[u] for t, u in enumerate(turns)}
    return known


def _same_under_other_prompts(
    source: Recast, record: Rollout, known: Sequence[Mapping[str, Any]], keep: Sequence[bool], writer: RolloutWriter
) -> Rollout:
    """The same responses after another prompt; sequences without the evidence of a context are dropped."""
    chosen, prompts, all_ids = [], [], []
    response_B = (record.start_B1.diff() - record.root_B).tolist()
    for b in range(record.n_sequences):
        made = _recast_prompt(source, record.prompts_B[b], known[b], response_B[b], writer.session) if keep[b] else None
        if made is not None:
            chosen.append(b)
            prompts.append(made[0])
            all_ids.append(made[1])
    moved = replace(record.select(chosen), prompts_B=tuple(prompts), sources=(writer.name,))
    return reframed(replace(moved, origin_B=torch.zeros_like(moved.origin_B)), all_ids)


def _recast_row(
    source: Recast, record: Rollout, b: int, known: Mapping[str, Any], session: Session
) -> Trajectory | None:
    """A turn of a sequence, or a text made of it, under the new prompt; None where there is no such turn or text."""
    segment = _recast_segment(source, record, b, known, session)
    if segment is None:
        return None
    made = _recast_prompt(source, record.prompts_B[b], known, len(segment.ids), session)
    if made is None:
        return None
    return Trajectory(
        made[0],
        made[1],
        (segment,),
        bool(record.truncated_B[b]),
        bool(record.correct_B[b]),
        record.feedback_B[b],
        float(record.label_B[b]),
        {name: float(x[b]) for name, x in record.columns_B.items()},
        record.drafts_B[b],
    )


def _recast_segment(
    source: Recast, record: Rollout, b: int, known: Mapping[str, Any], session: Session
) -> Segment | None:
    """The tokens that are scored under the new prompt."""
    if source.copies:
        k, turns = int(source.response.removeprefix("turn ")), record.turns_B[b]
        return segment_of(record, turns[k]) if k < len(turns) else None
    text = fill(source.response, known, f"{source.name} response")
    if not text:
        return None
    return Segment(session.renderer.response_ids(record.prompts_B[b], Response(text)), None, DATA, reward=math.nan)


def _recast_prompt(
    source: Recast, prompt: Prompt, known: Mapping[str, Any], room: int, session: Session
) -> tuple[Prompt, list[int]] | None:
    """The new prompt and its tokens, with ``room`` tokens left after it; None where a context lacks its evidence."""
    if source.question:
        *before, last = prompt.messages
        text = fill(source.question, known, f"{source.name} question")
        prompt = replace(prompt, messages=(*before, {**last, "content": text}))
    blocks = [block(c, dict(known), session.templates) for c in source.given]
    if None in blocks:
        return None
    if source.copies and not source.question and not blocks:
        return prompt, session.renderer.prompt_ids(prompt)
    what = f"prompt {prompt.id!r} recast with {', '.join(map(str, source.given)) or 'another text'}"
    return prompt, session.renderer.render(with_blocks(prompt, blocks), "student", what, room, written=True)
