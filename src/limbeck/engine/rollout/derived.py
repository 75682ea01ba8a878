"""Sources made of others: tried again, chosen among, patched, stored, refined, put under another prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...axes.derived_source import SAME, Once, Patch, Recast, Refine, Select
from ...axes.derived_source import stored as column_of
from ...axes.expression import Vec
from ...axes.levels import Rung
from ...axes.signal import logp as logp_of
from ...axes.source import Resample, hand
from ...loss.terms import Batch
from ...tasks import Response
from ...types import DATA, Prompt, Rollout
from ..models.generate import Law, generate
from ..scoring.contexts import Lens, of_record, with_blocks
from ..scoring.forward import read_view
from ..scoring.templates import block, fill
from ..session import Desk
from .trajectory import Piece, Row, assemble, from_json, single, to_json
from .writer import Groups, Pen, judge, kept


def evaluate(v: Vec, record: Rollout, desk: Desk, step: int, rung: Rung) -> Tensor:
    """An expression on a record that has just been written, one value a unit of ``rung``; its readers are read now."""
    keys = {(reader.at(1.0), ability) for reader, ability in v.needs if reader.key != "writer"}
    lens, views = Lens(record, desk), dict[str, Any]()
    for reader, _ in sorted(keys, key=lambda need: need[0].key):
        abilities = frozenset(a for r, a in keys if r == reader)
        seen = lens.seen_by(reader)
        views[reader.key] = read_view(desk.policy(reader.role), seen, abilities, desk.micro_tokens, None)
    batch = Batch(record, views, step, memory=dict(desk.memory.numbers))
    return batch.ladder.down(v.evaluate(batch), v.rung, rung)


def resampled(source: Resample, pen: Pen) -> Groups:
    """Write until ``n`` groups satisfy the condition, at most ``rounds`` times; with none at all, one group remains."""
    kept: Groups = []
    last: Groups = []
    for _ in range(source.rounds):
        new = [g for g in pen.write(source.source) if g]
        if not new:
            continue
        last = new
        holds = evaluate(source.until, assemble(last, pen.name), pen.desk, pen.step, Rung.GROUP).bool().tolist()
        kept += [group for group, keep in zip(last, holds, strict=True) if keep]
        if len(kept) >= pen.n:
            break
    # A group whose rewards agree has no advantage: keeping one keeps the step whole where no group informs.
    return kept[: pen.n] if kept else last[:1]


def selected(source: Select, pen: Pen, prompts: Sequence[Prompt] | None) -> Groups:
    """The best ``keep`` of each group."""
    groups = [g for g in pen.write(source.source, prompts) if g]
    if not groups:
        return []
    record = assemble(groups, pen.name)
    scores = [evaluate(v, record, pen.desk, pen.step, Rung.SEQUENCE).tolist() for v in source.by]
    ranks = list(zip(*scores, strict=True))
    out, first = [], 0
    for group in groups:
        order = sorted(range(len(group)), key=lambda i, at=first: ranks[at + i], reverse=True)  # type: ignore[misc]
        out.append([group[i] for i in order[: source.keep]])
        first += len(group)
    return out


def patched(source: Patch, pen: Pen, prompts: Sequence[Prompt] | None) -> Groups:
    """Groups where ``when`` holds, with the new writer's rows behind their own."""
    groups = [g for g in pen.write(source.source, prompts) if g]
    if not groups:
        return []
    holds = evaluate(source.when, assemble(groups, pen.name), pen.desk, pen.step, Rung.GROUP).bool().tolist()
    asked = [group[0].prompt for group, wanted in zip(groups, holds, strict=True) if wanted]
    new: dict[str, Groups] = {}  # by prompt: a group whose episodes all broke off is not among them
    for group in pen.write(source.new, asked) if asked else []:
        new.setdefault(group[0].prompt.id if group else "", []).append(group)
    out = []
    for group, wanted in zip(groups, holds, strict=True):
        more = new.get(group[0].prompt.id, []) if wanted else []
        out.append([*group, *more.pop(0)] if more else group)
    return out


# ---------------------------------------------------------------- written once


def stored(source: Once, pen: Pen, prompts: Sequence[Prompt] | None) -> Groups:
    """Groups from the memory; what it lacks is written, scored and stored."""
    memory = pen.desk.memory.written.setdefault(pen.name, {})
    if prompts is None:
        prompts = pen.take()
    missing = list({p.id: p for p in prompts if p.id not in memory}.values())
    if missing:
        groups = [g for g in pen.write(source.source, missing) if g]
        groups = groups if source.score is None or not groups else _scored(source, groups, pen)
        for group in groups:
            memory[group[0].prompt.id] = [to_json(row) for row in group]
    return [[from_json(p, row) for row in memory.get(p.id, [])] for p in prompts]


def _scored(source: Once, groups: Groups, pen: Pen) -> Groups:
    """The same rows with a reader's log-probs of their tokens as a column."""
    assert source.score is not None
    record, reader = assemble(groups, pen.name), source.score
    logp = iter(evaluate(logp_of(reader), record, pen.desk, pen.step, Rung.TOKEN).tolist())
    name = column_of(reader)

    def scored(piece: Piece) -> Piece:
        if not piece.scored:
            return piece
        return replace(piece, columns={**piece.columns, name: [next(logp) for _ in piece.ids]})

    return [[replace(row, pieces=tuple(scored(p) for p in row.pieces)) for row in group] for group in groups]


# ---------------------------------------------------------------- from another record


def refined(source: Refine, pen: Pen, prompts: Sequence[Prompt] | None) -> Groups:
    """One response in place of each sequence of the inner source, by a writer that sees it."""
    desk, reader = pen.desk, source.reader
    drafts = [g for g in pen.write(source.source, prompts) if g]
    if not drafts:
        return []
    record = assemble(drafts, pen.name)
    known = of_record(record, desk)
    seen = []
    for prompt, k in zip(record.prompts, known, strict=True):
        blocks = [block(c, k, desk.blocks) for c in reader.context]
        what = f"prompt {prompt.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
        seen.append(desk.render(with_blocks(prompt, blocks), reader.role, what, desk.max_tokens))
    law = Law(((desk.policy(reader.role), 1.0),), source.tau * reader.tau)
    texts = generate(law, seen, desk.max_tokens, desk.batch)
    author = hand((reader,))
    rows: list[Row | None] = []
    for prompt, w, k in zip(record.prompts, texts, known, strict=True):
        verdict = judge(desk, prompt, w) if source.check else None
        new = single(prompt, desk.prompt_ids(prompt), w.ids, w.logp, author, w.truncated, verdict)
        rows.append(replace(new, draft=str(k["reply"])) if kept(desk, verdict) else None)
    ends = iter(rows)
    return [[row for row in [next(ends) for _ in group] if row is not None] for group in drafts]


def recast(source: Recast, pen: Pen) -> Groups:
    """Another source's sequences under another prompt."""
    desk = pen.desk
    groups = [g for g in pen.done[source.of] if g]
    if not groups:
        return []
    record = assemble(groups, source.of)
    known = of_record(record, desk)
    keep = [True] * record.n_sequences
    if source.keep is not None:
        keep = evaluate(source.keep, record, desk, pen.step, Rung.SEQUENCE).bool().tolist()
    columns = {n: evaluate(v, record, desk, pen.step, Rung.SEQUENCE).tolist() for n, v in source.carry}
    out, b = [], 0
    for group in groups:
        rows = []
        for row in group:
            new = _recast(source, row, known[b], desk) if keep[b] else None
            if new is not None:
                rows.append(replace(new, columns={**new.columns, **{n: values[b] for n, values in columns.items()}}))
            b += 1
        out.append(rows)
    return out


def _recast(source: Recast, row: Row, known: dict[str, Any], desk: Desk) -> Row | None:
    """One sequence under its new prompt; None where it has nothing to say there, or the prompt nothing to show."""
    turns = row.turns
    known = {**known, **{f"turn_{t}": desk.policies["student"].text(p.ids) for t, p in enumerate(turns)}}
    known |= {f"said_{t}": text for t, text in enumerate(_said(row))}
    pieces = _response(source, row, known, desk)
    if not pieces:
        return None
    prompt = row.prompt
    if source.question:
        *before, last = prompt.messages
        text = fill(source.question, known, f"{source.name} question")
        prompt = replace(prompt, messages=(*before, {**last, "content": text}))
    blocks = [block(c, known, desk.blocks) for c in source.given]
    if None in blocks:
        return None
    if source.copies and not source.question and not blocks:
        ids = desk.prompt_ids(prompt)
    else:
        room = sum(len(p.ids) for p in pieces)
        what = f"prompt {prompt.id!r} recast with {', '.join(map(str, source.given)) or 'another text'}"
        ids = desk.render(with_blocks(prompt, blocks), "student", what, room, written=True)
    return replace(row, prompt_ids=ids, pieces=pieces)


def _said(row: Row) -> list[str]:
    """What was said to each turn of a sequence; empty where nothing was."""
    said: list[str] = []
    for piece in row.pieces:
        if piece.scored:
            said.append("")
        elif said:
            said[-1] = piece.said
    return said


def _response(source: Recast, row: Row, known: dict[str, Any], desk: Desk) -> tuple[Piece, ...]:
    """The tokens that are scored under the new prompt."""
    if source.response == SAME:
        return row.pieces
    if source.copies:
        k = int(source.response.removeprefix("turn "))
        return (row.turns[k],) if k < len(row.turns) else ()
    text = fill(source.response, known, f"{source.name} response")
    if not text:
        return ()
    ids = desk.response_ids(row.prompt, Response(text))
    return (Piece(ids, None, DATA, reward=math.nan),)
