"""A record as a reader with contexts sees it.

Evidence fills the templates of the contexts, the texts (blocks) are added to the prompt, and the response is copied
after it. The response is never rendered again. Its tokens keep their order, so every scored token keeps its row:
``framed.ids_L[framed.pos_N] == record.ids_L[record.pos_N]``, asserted on every batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...axes.context import Context, ContextQuestion
from ...axes.reader import Reader
from ...types import Prompt, Rollout, text_of
from ..models.generate import SamplingPolicy, generate
from ..session import Session
from ..storage.memory import Skill
from .templates import Evidence, block, fill

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def prompt_evidence(prompt: Prompt) -> Evidence:
    """The evidence that the problem itself holds."""
    known: Evidence = dict(prompt.privileged)
    known.setdefault("solution", known.get("answer", ""))
    return {**known, "id": prompt.id, "prompt": last_text(prompt)}


def last_text(prompt: Prompt) -> str:
    """The text of the last message; empty where it has none."""
    return text_of(prompt.messages[-1]) if prompt.messages else ""


def record_evidence(record: Rollout, session: Session) -> list[Evidence]:
    """The evidence of each sequence: that of its problem, its reply, its verdict and a correct sibling."""
    replies = _replies(record, session)
    reward_B = torch.zeros(record.n_sequences).index_add_(0, record.seq_U, record.reward_U.nan_to_num(0.0))
    turns_B = torch.bincount(record.seq_U, minlength=record.n_sequences)
    out = []
    for b in range(record.n_sequences):
        known = prompt_evidence(record.prompts_B[b])
        draft = record.drafts_B[b] if record.drafts_B else ""
        known |= {"reply": draft or replies[b], "reward": float(reward_B[b]), "correct": bool(record.correct_B[b])}
        known |= {
            "turns": int(turns_B[b]),
            "feedback": record.feedback_B[b] or "",
            "sibling": _sibling(record, b, replies),
        }
        out.append(known)
    return out


def _replies(record: Rollout, session: Session) -> list[str]:
    """The text of each sequence: its turns, decoded one by one."""
    policy, token_N, spans = session.policies["student"], record.token_N.tolist(), record.tokens_U
    return ["\n".join(policy.text(token_N[spans[u]]) for u in turns) for turns in record.turns_B]


def _sibling(record: Rollout, b: int, replies: Sequence[str]) -> str:
    """The first other correct response of the group; empty where there is none."""
    mates = (record.group_B == record.group_B[b]).nonzero().squeeze(-1).tolist()
    return next((replies[j] for j in mates if j != b and bool(record.correct_B[j])), "")


# ---------------------------------------------------------------- contexts on a record


@dataclass
class RenderedContext:
    """One context on one record.

    Attributes:
        blocks: the text for each sequence, None where evidence is missing.
        numbers: answers of the context's questions as numbers, one a sequence.
        used: the skill that each sequence's text shows, or None.
    """

    blocks: list[str | None]
    numbers: dict[str, list[float]]
    used: list[Skill | None]


def render_context(context: Context, known: list[Evidence], session: Session) -> RenderedContext:
    """Choose a skill, ask the context's questions, and fill its template, for each sequence."""
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
    return RenderedContext([block(context, k, session.templates) for k in known], numbers, used)


def _answers(ask: ContextQuestion, known: list[Evidence], session: Session, name: str) -> list[str]:
    """A model's answer for each sequence; equal questions are asked once."""
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
    replies = {t: policy.text(w.ids) for t, w in zip(different, written, strict=True)}
    return [replies[t] for t in texts]


def _stated(answer: str) -> float:
    """The last number of a text; NaN where there is none."""
    found = _NUMBER.findall(answer)
    return float(found[-1]) if found else math.nan


class ContextViews:
    """The contexts of one record, each rendered once, and the record as each reader sees it."""

    def __init__(self, record: Rollout, session: Session):
        self.record, self.session = record, session
        self._known: list[Evidence] | None = None
        self._rendered: dict[Context, RenderedContext] = {}

    def rendered(self, context: Context) -> RenderedContext:
        """One context on this record, rendered at its first use."""
        if context not in self._rendered:
            if self._known is None:
                self._known = record_evidence(self.record, self.session)
            self._rendered[context] = render_context(context, self._known, self.session)
        return self._rendered[context]

    def learn(self, context: Context) -> None:
        """Credit each group's skill with the group's mean reward, and add a skill from its best sequence."""
        bank = context.bank
        assert bank is not None
        used, known = self.rendered(context).used, self._known or []
        groups_GM = self.record.sequences_G
        best_G = [known[max(members, key=lambda b: float(known[b]["reward"]))] for members in groups_GM]
        texts_G = [str(k["reply"]) for k in best_G]
        if bank.summary is not None:
            texts_G = _answers(bank.summary, best_G, self.session, context.name)
        for members, best, text in zip(groups_GM, best_G, texts_G, strict=True):
            mean = sum(float(known[b]["reward"]) for b in members) / len(members)
            self.session.state.memory.learn(str(best["id"]), bank, used[members[0]], mean, text)

    def with_columns(self, contexts: Sequence[Context]) -> Rollout:
        """The record with columns that say which sequences each context has a text for, and its numbers."""
        columns = dict(self.record.columns_B)
        for context in contexts:
            found = self.rendered(context)
            columns[context.column] = torch.tensor([float(b is not None) for b in found.blocks])
            columns |= {name: torch.tensor(values) for name, values in found.numbers.items()}
        return replace(self.record, columns_B=columns)

    def seen_by(self, reader: Reader) -> Rollout:
        """The record as a reader sees it; sequences that no context has a text for keep the plain prompt."""
        if not reader.context and not self.session.renderer.foreign(reader.role):
            return self.record
        found = [self.rendered(c) for c in reader.context]
        prompts = []
        for b, prompt in enumerate(self.record.prompts_B):
            blocks = [c.blocks[b] for c in found]
            what = f"prompt {prompt.id!r} with context {', '.join(map(str, reader.context)) or 'none'}"
            room = int(self.record.start_B1[b + 1] - self.record.start_B1[b] - self.record.root_B[b])
            prompts.append(
                self.session.renderer.render(with_blocks(prompt, blocks), reader.role, what, room, written=True)
            )
        return reframed(self.record, prompts)


def with_blocks(prompt: Prompt, blocks: Sequence[str | None]) -> Prompt:
    """The prompt with blocks at the end of its last message."""
    *before, last = prompt.messages
    shown = [b for b in blocks if b]
    content = last["content"] or ""
    if isinstance(content, str):
        content = "\n\n".join([content, *shown])
    else:  # text parts, as some data has them
        *parts, end = content
        content = [*parts, {**end, "text": "\n\n".join([end["text"], *shown])}]
    return replace(prompt, messages=(*before, {**last, "content": content}))


def reframed(record: Rollout, prompt_ids_B: Sequence[list[int]]) -> Rollout:
    """The same responses after other prompts: ids, offsets and positions change, everything else stays."""
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
    assert torch.equal(framed.token_N, record.token_N), "a reframed record must score the record's own tokens"
    return framed
