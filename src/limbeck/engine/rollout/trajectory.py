"""Responses in segments of one author each, and how groups of them become a record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...tasks import Verdict
from ...types import DATA, Prompt, Rollout


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one author.

    Attributes:
        ids: tokens.
        logp: log-probs under the behaviour policy that sampled them, in nats; None: not known.
        author: ``DATA``, ``STUDENT`` or ``TEACHER``.
        scored: whether losses may read them; a scored segment is a turn. An environment's message is never scored.
        reward: of the turn; NaN where nothing verified it.
        columns: further numbers per token, by name.
        said: text of the environment's message, where the segment holds one.
    """

    ids: list[int]
    logp: list[float] | None
    author: int
    scored: bool = True
    reward: float = math.nan
    columns: Mapping[str, list[float]] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class Trajectory:
    """One sequence: a prompt and the response to it.

    Attributes:
        prompt: the problem.
        prompt_ids: tokens of the prompt as the student reads it.
        segments: in reading order; at least one is scored, and it may be empty.
        truncated: whether the response was cut at a limit.
        correct: the last verdict; False where nothing verified.
        feedback: the verifier's text.
        label: preference; NaN where the data has none.
        columns: further numbers, by name.
        draft: text that the response was refined from, which contexts show as ``reply``; empty: none.
    """

    prompt: Prompt
    prompt_ids: list[int]
    segments: tuple[Segment, ...]
    truncated: bool = False
    correct: bool = False
    feedback: str | None = None
    label: float = math.nan
    columns: Mapping[str, float] = field(default_factory=dict)
    draft: str = ""

    @property
    def ids(self) -> list[int]:
        """All tokens after the prompt."""
        return [i for segment in self.segments for i in segment.ids]

    @property
    def turns(self) -> list[Segment]:
        """The scored segments."""
        return [p for p in self.segments if p.scored]


def single(
    prompt: Prompt,
    prompt_ids: list[int],
    ids: list[int],
    logp: list[float] | None,
    author: int,
    truncated: bool = False,
    verdict: Verdict | None = None,
    label: float = math.nan,
) -> Trajectory:
    """A response of one turn."""
    segment = Segment(ids, logp, author, reward=verdict.reward if verdict else math.nan)
    correct = verdict.correct if verdict else False
    return Trajectory(prompt, prompt_ids, (segment,), truncated, correct, verdict.feedback if verdict else None, label)


def assemble(groups: Sequence[Sequence[Trajectory]], name: str) -> Rollout:
    """One record of one source from groups of responses; groups without a response are left out."""
    groups = [group for group in groups if group]
    rows = [row for group in groups for row in group]
    segments = [(b, segment) for b, row in enumerate(rows) for segment in row.turns]
    length = torch.tensor([len(r.prompt_ids) + len(r.ids) for r in rows], dtype=torch.int64)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    return Rollout(
        ids_L=_long(i for r in rows for i in (*r.prompt_ids, *r.ids)),
        start_B1=start,
        root_B=_long(len(r.prompt_ids) for r in rows),
        pos_N=_long(p for b, row in enumerate(rows) for p in _places(row, int(start[b]))),
        turn_N=_long(u for u, (_, segment) in enumerate(segments) for _ in segment.ids),
        seq_U=_long(b for b, _ in segments),
        group_B=_long(g for g, group in enumerate(groups) for _ in group),
        author_N=torch.tensor([p.author for _, p in segments for _ in p.ids], dtype=torch.int8),
        rollout_logp_N=_float(x for _, p in segments for x in (p.logp or [math.nan] * len(p.ids))),
        origin_B=torch.zeros(len(rows), dtype=torch.int64),
        reward_U=_float(p.reward for _, p in segments),
        correct_B=torch.tensor([r.correct for r in rows], dtype=torch.bool),
        truncated_B=torch.tensor([r.truncated for r in rows], dtype=torch.bool),
        label_B=_float(r.label for r in rows),
        sources=(name,),
        columns_B={k: _float(r.columns.get(k, math.nan) for r in rows) for k in _names(r.columns for r in rows)},
        columns_N={
            k: _float(x for _, p in segments for x in p.columns.get(k, [math.nan] * len(p.ids)))
            for k in _names(p.columns for _, p in segments)
        },
        prompts_B=tuple(r.prompt for r in rows),
        drafts_B=tuple(r.draft for r in rows),
        feedback_B=tuple(r.feedback for r in rows),
        said_U=tuple(said for r in rows for said in _said(r)),
    )


def segment_of(record: Rollout, u: int) -> Segment:
    """A turn of a record as a segment."""
    span = record.tokens_U[u]
    authors = record.author_N[span].tolist()
    return Segment(
        record.token_N[span].tolist(),
        record.rollout_logp_N[span].tolist(),
        authors[0] if authors else DATA,
        reward=float(record.reward_U[u]),
        columns={name: x[span].tolist() for name, x in record.columns_N.items()},
    )


def _places(row: Trajectory, start: int) -> list[int]:
    """Positions of the scored tokens of a response."""
    places: list[int] = []
    at = start + len(row.prompt_ids)
    for segment in row.segments:
        if segment.scored:
            places += range(at, at + len(segment.ids))
        at += len(segment.ids)
    return places


def _said(row: Trajectory) -> list[str]:
    """The environment's message after each turn; empty where there was none."""
    texts: list[str] = []
    for segment in row.segments:
        if segment.scored:
            texts.append("")
        elif texts:
            texts[-1] = segment.said
    return texts


def _names(columns: Any) -> list[str]:
    return list(dict.fromkeys(name for c in columns for name in c))


def _long(values: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _float(values: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32)
