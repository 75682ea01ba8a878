"""What a reader sees: evidence becomes blocks, blocks become another prompt, and the response is copied behind it.

The response is never rendered again. Its tokens keep their order, so every scored token keeps its row:
``framed.ids_L[framed.pos_N] == record.ids_L[record.pos_N]``, asserted on every batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...axes.context import Context, ContextQuestion
from ...axes.reader import Reader
from ...types import Prompt, Rollout, text_of
from ..models.generate import SamplingPolicy, generate
from ..session import Session
from ..storage.memory import Skill
from .templates import Evidence, block, fill

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def of_prompt(prompt: Prompt) -> Evidence:
    """What the problem itself holds."""
    known: Evidence = dict(prompt.privileged)
    known.setdefault("solution", known.get("answer", ""))
    return {**known, "id": prompt.id, "prompt": last_text(prompt)}


def last_text(prompt: Prompt) -> str:
    """What the last message says; nothing where it has no text."""
    return text_of(prompt.messages[-1]) if prompt.messages else ""


def of_record(record: Rollout, session: Session) -> list[Evidence]:
    """What is known of each written sequence."""
    replies = _replies(record, session)
    reward_B = torch.zeros(record.n_sequences).index_add_(0, record.seq_U, record.reward_U.nan_to_num(0.0))
    turns_B = torch.bincount(record.seq_U, minlength=record.n_sequences)
    out = []
    for b in range(record.n_sequences):
        known = of_prompt(record.prompts[b])
        draft = record.drafts[b] if record.drafts else ""
        known |= {"reply": draft or replies[b], "reward": float(reward_B[b]), "correct": bool(record.correct_B[b])}
        known |= {
            "turns": int(turns_B[b]),
            "feedback": record.feedback[b] or "",
            "sibling": _sibling(record, b, replies),
        }
        out.append(known)
    return out


def _replies(record: Rollout, session: Session) -> list[str]:
    """What each sequence says: its turns, decoded one by one."""
    policy, token_N = session.policies["student"], record.token_N.tolist()
    said: list[list[str]] = [[] for _ in range(record.n_sequences)]
    ends = torch.bincount(record.turn_N, minlength=record.n_turns).cumsum(0).tolist()
    first = 0
    for u, last in enumerate(ends):
        said[int(record.seq_U[u])].append(policy.text(token_N[first:last]))
        first = last
    return ["\n".join(turns) for turns in said]


def _sibling(record: Rollout, b: int, replies: Sequence[str]) -> str:
    """The first other correct response of the group; empty where there is none."""
    mates = (record.group_B == record.group_B[b]).nonzero().squeeze(-1).tolist()
    return next((replies[j] for j in mates if j != b and bool(record.correct_B[j])), "")


# ---------------------------------------------------------------- contexts on a record


@dataclass
class RenderedContext:
    """One context on one record: its block for each sequence, None where its evidence is missing."""

    context: Context
    blocks: list[str | None]
    numbers: dict[str, list[float]]
    used: list[Skill | None]


def tell(context: Context, known: list[Evidence], session: Session) -> RenderedContext:
    """A context's blocks: choose a skill, ask the questions, fill the template."""
    known = [dict(k) for k in known]
    used = [session.state.memory.choose(str(k["id"]), context.bank) if context.bank else None for k in known]
    for k, skill in zip(known, used, strict=True):
        if skill is not None:
            k["skill"] = skill.text
    numbers = {}
    for ask in context.asks:
        answers = _answers(ask, known, session, context.name)
        for k, answer in zip(known, answers, strict=True):
            k[ask.name] = answer
        if ask.number:
            numbers[ask.name] = [_stated(answer) for answer in answers]
    return RenderedContext(context, [block(context, k, session.templates) for k in known], numbers, used)


def _answers(ask: ContextQuestion, known: list[Evidence], session: Session, name: str) -> list[str]:
    """A model's answers; the same question is asked once."""
    texts = [fill(ask.question, k, name) for k in known]
    different = list(dict.fromkeys(texts))
    policy = session.policy(ask.by)
    limit = ask.max_tokens or session.config.max_tokens
    ids = [
        session.renderer.render(
            Prompt("", ({"role": "user", "content": t},)), ask.by, f"a question of context {name!r}", limit
        )
        for t in different
    ]
    written = generate(SamplingPolicy(((policy, 1.0),)), ids, limit, session.config.generate_batch)
    said = {t: policy.text(w.ids) for t, w in zip(different, written, strict=True)}
    return [said[t] for t in texts]


def _stated(answer: str) -> float:
    """The last number of a text; NaN where there is none."""
    found = _NUMBER.findall(answer)
    return float(found[-1]) if found else math.nan


class ContextViews:
    """The contexts of one record, each told once, and the record as each reader sees it."""

    def __init__(self, record: Rollout, session: Session):
        self.record, self.session = record, session
        self._known: list[Evidence] | None = None
        self._told: dict[Context, RenderedContext] = {}

    def told(self, context: Context) -> RenderedContext:
        """One context on this record."""
        if context not in self._told:
            if self._known is None:
                self._known = of_record(self.record, self.session)
            self._told[context] = tell(context, self._known, self.session)
        return self._told[context]

    def learn(self, context: Context) -> None:
        """Credit each group's skill with the group's mean reward, and make its best sequence a new one."""
        bank = context.bank
        assert bank is not None
        told, known = self.told(context), self._known or []
        groups_GM = [(self.record.group_B == g).nonzero().squeeze(-1).tolist() for g in range(self.record.n_groups)]
        best_G = [known[max(members, key=lambda b: float(known[b]["reward"]))] for members in groups_GM]
        texts_G = [str(k["reply"]) for k in best_G]
        if bank.summary is not None:
            texts_G = _answers(bank.summary, best_G, self.session, context.name)
        for members, best, text in zip(groups_GM, best_G, texts_G, strict=True):
            mean = sum(float(known[b]["reward"]) for b in members) / len(members)
            self.session.state.memory.learn(str(best["id"]), bank, told.used[members[0]], mean, text)

    def noted(self, contexts: Sequence[Context]) -> Rollout:
        """The record with what each context has and states, as columns."""
        columns = dict(self.record.columns_B)
        for context in contexts:
            told = self.told(context)
            columns[context.column] = torch.tensor([float(b is not None) for b in told.blocks])
            columns |= {name: torch.tensor(values) for name, values in told.numbers.items()}
        return replace(self.record, columns_B=columns)

    def seen_by(self, reader: Reader) -> Rollout:
        """The record as that reader sees it; sequences for which a context has nothing keep the plain prompt."""
        if not reader.context and not self.session.renderer.foreign(reader.role):
            return self.record
        told = [self.told(c) for c in reader.context]
        prompts = []
        for b, prompt in enumerate(self.record.prompts):
            blocks = [t.blocks[b] for t in told]
            what = f"prompt {prompt.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
            room = int(self.record.start_B1[b + 1] - self.record.start_B1[b] - self.record.root_B[b])
            prompts.append(
                self.session.renderer.render(with_blocks(prompt, blocks), reader.role, what, room, written=True)
            )
        return reframed(self.record, prompts)


def with_blocks(prompt: Prompt, blocks: Sequence[str | None]) -> Prompt:
    """The prompt with blocks behind its last message."""
    return replace(prompt, messages=behind(prompt, blocks))


def behind(prompt: Prompt, blocks: Sequence[str | None]) -> tuple[Mapping[str, Any], ...]:
    """The prompt's messages with blocks behind the last one."""
    *before, last = prompt.messages
    shown = [b for b in blocks if b]
    content = last["content"] or ""
    if isinstance(content, str):
        return (*before, {**last, "content": "\n\n".join([content, *shown])})
    *parts, end = content  # text parts, as some data has them
    return (*before, {**last, "content": [*parts, {**end, "text": "\n\n".join([end["text"], *shown])}]})


def reframed(record: Rollout, prompt_ids_B: Sequence[list[int]]) -> Rollout:
    """The same written tokens behind other prompts: ids, offsets and positions move, everything else stays."""
    start_B, root_B = record.start_B1[:-1], record.root_B
    new_root_B = torch.tensor([len(p) for p in prompt_ids_B], dtype=torch.int64)
    length_B = record.start_B1.diff() - root_B + new_root_B
    new_start_B1 = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
    ids: list[int] = []
    all_ids = record.ids_L.tolist()
    for b, prompt_ids in enumerate(prompt_ids_B):
        ids += prompt_ids
        ids += all_ids[int(start_B[b] + root_B[b]) : int(record.start_B1[b + 1])]
    delta_B = new_start_B1[:-1] + new_root_B - start_B - root_B
    framed = replace(
        record,
        ids_L=torch.tensor(ids, dtype=torch.int64),
        start_B1=new_start_B1,
        root_B=new_root_B,
        pos_N=record.pos_N + delta_B[record.seq_N],
    )
    assert torch.equal(framed.token_N, record.token_N), "a view's rows must score the record's own tokens"
    return framed
