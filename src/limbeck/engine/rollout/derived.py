"""Sources made of others: tried again, chosen among, patched, stored, refined, put under another prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...axes.derived_source import SAME, Once, Patch, Recast, Refine, Select
from ...axes.derived_source import stored as column_of
from ...axes.expression import Expr
from ...axes.levels import Level
from ...axes.signal import logp as logp_of
from ...axes.source import Resample, hand
from ...loss.terms import Batch
from ...tasks import Response
from ...types import DATA, Prompt, Rollout
from ..models.generate import SamplingPolicy, generate
from ..scoring.contexts import ContextViews, of_record, with_blocks
from ..scoring.forward import read_view
from ..scoring.templates import block, fill
from ..session import Session
from .trajectory import Segment, Trajectory, assemble, from_json, single, to_json
from .writer import Groups, RolloutWriter, judge, kept


def evaluate(v: Expr, record: Rollout, session: Session, step: int, level: Level) -> Tensor:
    """An expression on a record that has just been written, one value a unit of ``level``; its readers are read now."""
    keys = {(reader.at(1.0), ability) for reader, ability in v.needs if reader.key != "writer"}
    lens, views = ContextViews(record, session), dict[str, Any]()
    for reader, _ in sorted(keys, key=lambda need: need[0].key):
        abilities = frozenset(a for r, a in keys if r == reader)
        seen = lens.seen_by(reader)
        views[reader.key] = read_view(session.policy(reader.role), seen, abilities, session.config.micro_tokens, None)
    batch = Batch(record, views, step, memory=dict(session.state.memory.numbers))
    return batch.levels.down(v.evaluate(batch), v.level, level)


def resampled(source: Resample, writer: RolloutWriter) -> Groups:
    """Write until ``n`` groups satisfy the condition, at most ``rounds`` times; with none at all, one group remains."""
    kept: Groups = []
    last: Groups = []
    for _ in range(source.rounds):
        new = [g for g in writer.write(source.source) if g]
        if not new:
            continue
        last = new
        holds = (
            evaluate(source.until, assemble(last, writer.name), writer.session, writer.step, Level.GROUP)
            .bool()
            .tolist()
        )
        kept += [group for group, keep in zip(last, holds, strict=True) if keep]
        if len(kept) >= writer.n:
            break
    # A group whose rewards agree has no advantage: keeping one keeps the step whole where no group informs.
    return kept[: writer.n] if kept else last[:1]


def selected(source: Select, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Groups:
    """The best ``keep`` of each group."""
    groups = [g for g in writer.write(source.source, prompts) if g]
    if not groups:
        return []
    record = assemble(groups, writer.name)
    scores = [evaluate(v, record, writer.session, writer.step, Level.SEQUENCE).tolist() for v in source.by]
    ranks = list(zip(*scores, strict=True))
    out, first = [], 0
    for group in groups:
        order = sorted(range(len(group)), key=lambda i, at=first: ranks[at + i], reverse=True)  # type: ignore[misc]
        out.append([group[i] for i in order[: source.keep]])
        first += len(group)
    return out


def patched(source: Patch, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Groups:
    """Groups where ``when`` holds, with the new writer's rows behind their own."""
    groups = [g for g in writer.write(source.source, prompts) if g]
    if not groups:
        return []
    holds = (
        evaluate(source.when, assemble(groups, writer.name), writer.session, writer.step, Level.GROUP).bool().tolist()
    )
    asked = [group[0].prompt for group, wanted in zip(groups, holds, strict=True) if wanted]
    new: dict[str, Groups] = {}  # by prompt: a group whose episodes all broke off is not among them
    for group in writer.write(source.new, asked) if asked else []:
        new.setdefault(group[0].prompt.id if group else "", []).append(group)
    out = []
    for group, wanted in zip(groups, holds, strict=True):
        more = new.get(group[0].prompt.id, []) if wanted else []
        out.append([*group, *more.pop(0)] if more else group)
    return out


# ---------------------------------------------------------------- written once


def stored(source: Once, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Groups:
    """Groups from the memory; what it lacks is written, scored and stored."""
    memory = writer.session.state.memory.written.setdefault(writer.name, {})
    if prompts is None:
        prompts = writer.take()
    missing = list({p.id: p for p in prompts if p.id not in memory}.values())
    if missing:
        groups = [g for g in writer.write(source.source, missing) if g]
        groups = groups if source.score is None or not groups else _scored(source, groups, writer)
        for group in groups:
            memory[group[0].prompt.id] = [to_json(row) for row in group]
    return [[from_json(p, row) for row in memory.get(p.id, [])] for p in prompts]


def _scored(source: Once, groups: Groups, writer: RolloutWriter) -> Groups:
    """The same rows with a reader's log-probs of their tokens as a column."""
    assert source.score is not None
    record, reader = assemble(groups, writer.name), source.score
    logp = iter(evaluate(logp_of(reader), record, writer.session, writer.step, Level.TOKEN).tolist())
    name = column_of(reader)

    def scored(segment: Segment) -> Segment:
        if not segment.scored:
            return segment
        return replace(segment, columns={**segment.columns, name: [next(logp) for _ in segment.ids]})

    return [[replace(row, segments=tuple(scored(p) for p in row.segments)) for row in group] for group in groups]


# ---------------------------------------------------------------- from another record


def refined(source: Refine, writer: RolloutWriter, prompts: Sequence[Prompt] | None) -> Groups:
    """One response in place of each sequence of the inner source, by a writer that sees it."""
    session, reader = writer.session, source.reader
    drafts = [g for g in writer.write(source.source, prompts) if g]
    if not drafts:
        return []
    record = assemble(drafts, writer.name)
    known = of_record(record, session)
    seen = []
    for prompt, k in zip(record.prompts, known, strict=True):
        blocks = [block(c, k, session.templates) for c in reader.context]
        what = f"prompt {prompt.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
        seen.append(session.renderer.render(with_blocks(prompt, blocks), reader.role, what, session.config.max_tokens))
    law = SamplingPolicy(((session.policy(reader.role), 1.0),), source.tau * reader.tau)
    texts = generate(law, seen, session.config.max_tokens, session.config.generate_batch)
    author = hand((reader,))
    rows: list[Trajectory | None] = []
    for prompt, w, k in zip(record.prompts, texts, known, strict=True):
        verdict = judge(session, prompt, w) if source.check else None
        new = single(prompt, session.renderer.prompt_ids(prompt), w.ids, w.logp, author, w.truncated, verdict)
        rows.append(replace(new, draft=str(k["reply"])) if kept(session, verdict) else None)
    ends = iter(rows)
    return [[row for row in [next(ends) for _ in group] if row is not None] for group in drafts]


def recast(source: Recast, writer: RolloutWriter) -> Groups:
    """Another source's sequences under another prompt."""
    session = writer.session
    groups = [g for g in writer.done[source.of] if g]
    if not groups:
        return []
    record = assemble(groups, source.of)
    known = of_record(record, session)
    keep = [True] * record.n_sequences
    if source.keep is not None:
        keep = evaluate(source.keep, record, session, writer.step, Level.SEQUENCE).bool().tolist()
    columns = {n: evaluate(v, record, session, writer.step, Level.SEQUENCE).tolist() for n, v in source.carry}
    out, b = [], 0
    for group in groups:
        rows = []
        for row in group:
            new = _recast(source, row, known[b], session) if keep[b] else None
            if new is not None:
                rows.append(replace(new, columns={**new.columns, **{n: values[b] for n, values in columns.items()}}))
            b += 1
        out.append(rows)
    return out


def _recast(source: Recast, row: Trajectory, known: dict[str, Any], session: Session) -> Trajectory | None:
    """One sequence under its new prompt; None where it has nothing to say there, or the prompt nothing to show."""
    turns = row.turns
    known = {**known, **{f"turn_{t}": session.policies["student"].text(p.ids) for t, p in enumerate(turns)}}
    known |= {f"said_{t}": text for t, text in enumerate(_said(row))}
    segments = _response(source, row, known, session)
    if not segments:
        return None
    prompt = row.prompt
    if source.question:
        *before, last = prompt.messages
        text = fill(source.question, known, f"{source.name} question")
        prompt = replace(prompt, messages=(*before, {**last, "content": text}))
    blocks = [block(c, known, session.templates) for c in source.given]
    if None in blocks:
        return None
    if source.copies and not source.question and not blocks:
        ids = session.renderer.prompt_ids(prompt)
    else:
        room = sum(len(p.ids) for p in segments)
        what = f"prompt {prompt.id!r} recast with {', '.join(map(str, source.given)) or 'another text'}"
        ids = session.renderer.render(with_blocks(prompt, blocks), "student", what, room, written=True)
    return replace(row, prompt_ids=ids, segments=segments)


def _said(row: Trajectory) -> list[str]:
    """What was said to each turn of a sequence; empty where nothing was."""
    said: list[str] = []
    for segment in row.segments:
        if segment.scored:
            said.append("")
        elif said:
            said[-1] = segment.said
    return said


def _response(source: Recast, row: Trajectory, known: dict[str, Any], session: Session) -> tuple[Segment, ...]:
    """The tokens that are scored under the new prompt."""
    if source.response == SAME:
        return row.segments
    if source.copies:
        k = int(source.response.removeprefix("turn "))
        return (row.turns[k],) if k < len(row.turns) else ()
    text = fill(source.response, known, f"{source.name} response")
    if not text:
        return ()
    ids = session.renderer.response_ids(row.prompt, Response(text))
    return (Segment(ids, None, DATA, reward=math.nan),)
