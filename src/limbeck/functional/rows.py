"""Turn a ``[B, T]`` batch of plain tensors into a record of its kept tokens, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..axes.reader import Reader, behavior, old, student
from ..errors import LimbeckError
from ..loss.terms import Batch
from ..types import Dense, Hidden, Rollout, Sampled, Scores, TopK
from .arguments import UNKNOWN
from .finite import (
    Doubt,
    Key,
    doubts_of_author,
    doubts_of_field,
    doubts_of_labels,
    doubts_of_sampled,
    doubts_of_scores,
)

WROTE = "rollout_logp"
FORMS: dict[type[Scores], str] = {Dense: "logits", Hidden: "hidden", TopK: "topk", Sampled: "logp"}
"""Endings of the arguments that hold scores, such as ``teacher_logits``."""

S = TypeVar("S", bound=Scores)


@dataclass
class PlainRows:
    """The positions of the kept tokens of a ``[B, T]`` batch, in the order of the record."""

    keep_BT: Tensor
    grouping: tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        self.order, self.group_B = self.grouping
        in_order = self.keep_BT[self.order]
        self.seq_N, self.t_N = in_order.nonzero(as_tuple=True)
        self.b_N = self.order[self.seq_N]

    def pick(self, x: Tensor) -> Tensor:
        """``[N, ...]`` from ``[B, T, ...]``."""
        return x[self.b_N, self.t_N]

    def turns(self, turn_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """The turn of each kept token and the sequence of each turn; a sequence without a kept token has one turn."""
        B = self.keep_BT.shape[0]
        if turn_BT is None:
            return self.seq_N, torch.arange(B, device=self.keep_BT.device)
        said_N = self.pick(turn_BT)
        if bool(((said_N.diff() < 0) & (self.seq_N.diff() == 0)).any()):
            raise LimbeckError(
                "turn falls along a sequence; give whole numbers that rise, or stay, from kept token to kept token."
            )
        fresh_N = torch.ones_like(self.seq_N, dtype=torch.bool)
        fresh_N[1:] = (self.seq_N.diff() != 0) | (said_N.diff() != 0)
        empty_B = torch.bincount(self.seq_N, minlength=B) == 0
        seq_U = torch.cat([self.seq_N[fresh_N], empty_B.nonzero().squeeze(-1)]).sort(stable=True).values
        before_N = torch.bincount(empty_B.nonzero().squeeze(-1), minlength=B).cumsum(0)[self.seq_N]
        return fresh_N.cumsum(0) - 1 + before_N, seq_U

    def rewards(self, per_turn: Tensor, turn_BT: Tensor | None, turns: tuple[Tensor, Tensor]) -> Tensor:
        """The reward of each turn, ``[U]``, by its number; a sequence without a kept token has the sum of its rewards.

        Raises:
            LimbeckError: a number without a reward, or a reward for a turn without a kept token.
        """
        turn_N, seq_U = turns
        number_N = torch.zeros_like(self.seq_N) if turn_BT is None else self.pick(turn_BT)
        K = per_turn.shape[1]
        beyond_N = (number_N < 0) | (number_N >= K)
        if bool(beyond_N.any()):
            raise LimbeckError(
                f"turn holds {int(number_N[beyond_N][0])}, but turn_reward has a reward for turns 0 to {K - 1}; count "
                "turns from 0, and give one reward for each."
            )
        raw = per_turn[self.order].to(torch.float64)
        x = torch.where(raw.isnan(), torch.zeros_like(raw), raw)
        paid = torch.zeros_like(x).index_put_((self.seq_N, number_N), x[self.seq_N, number_N])
        kept_B = torch.bincount(self.seq_N, minlength=x.shape[0]) > 0
        lost = (paid != x).any(1) & kept_B
        if bool(lost.any()):
            b = int(lost.nonzero()[0])
            raise LimbeckError(
                f"turn_reward gives sequence {int(self.order[b])} {float(x[b][paid[b] != x[b]][0]):g} for turn "
                f"{int((paid[b] != x[b]).nonzero()[0])}, none of whose tokens count; give that to another turn, or 0."
            )
        return x.sum(1)[seq_U].index_put_((turn_N,), raw[self.seq_N, number_N])

    def scores(self, s: S) -> S:
        """Scores of the kept tokens from those of all ``[B, T]``."""
        return s.rows((self.b_N, self.t_N))

    def doubts(
        self,
        fields: Mapping[str, Tensor | None],
        batch: Batch,
        live: Scores,
        given: set[str],
        slots: Mapping[str, Reader],
    ) -> dict[Key, list[Doubt]]:
        """Non-finite values in the arguments, keyed by the reader or field they stream."""
        slot_of = {reader.key: slot for slot, reader in slots.items()}
        width = live.width
        found: dict[Key, list[Doubt]] = {}
        for name, value in fields.items():
            held, called = (fields["reward"], "reward") if name == "correct" and value is None else (value, name)
            found["field", name] = list(doubts_of_field(called, None if held is None else held[self.order]))
        found["preference", "label"] = list(
            doubts_of_labels(None if fields["label"] is None else batch.record.label_B, batch.record.group_B)
        )
        found["token", "author"] = list(doubts_of_author(batch.record.author_N, UNKNOWN))
        own = old.role if not given & {"old_logp", "old_logits"} else student.role
        for role, scores in batch.scores.items():
            called = f"{slot_of.get(role, role)}_{FORMS[type(scores)]}"
            if role == own:  # a trainer with a loss scaler skips a step of NaN on its own
                called = "student_logp"
                if not isinstance(scores, Sampled):
                    continue
            found["role", role] = list(doubts_of_scores(called, scores, width))
            found["sampled", role] = list(doubts_of_sampled(called, scores, batch.record.token_N))
        if isinstance(live, Sampled):
            found["role", student.role] = list(doubts_of_scores("student_logp", live.detach(), width))
        if given & {"old_logp", WROTE}:  # else it is the student itself
            called = WROTE if WROTE in given else "old_logp"
            found["role", behavior.role] = list(doubts_of_field(called, batch.record.rollout_logp_N))
        return found

    def record(
        self,
        tokens: Tensor,
        fields: Mapping[str, Tensor | None],
        turns: tuple[Tensor, Tensor],
        reward_U: Tensor | None,
        columns: Mapping[str, Tensor],
        source: Sequence[str],
        author_BT: Tensor,
        rollout_logp: Tensor | None,
        dtype: torch.dtype,
    ) -> Rollout:
        """The record of the batch; each sequence starts with one token that is not scored."""
        B, device = self.keep_BT.shape[0], self.keep_BT.device
        count_B = self.keep_BT[self.order].sum(-1)
        start_B1 = torch.cat([count_B.new_zeros(1), (count_B + 1).cumsum(0)])
        ids = torch.zeros(int(start_B1[-1]), dtype=torch.int64, device=device)
        pos_N = torch.arange(self.seq_N.numel(), device=device) + self.seq_N + 1
        ids[pos_N] = self.pick(tokens)
        names = tuple(dict.fromkeys(source))
        origin = [names.index(source[int(b)]) for b in self.order]
        if any(v is not None and v.dtype == torch.float64 for v in fields.values()):
            dtype = torch.float64
        nan_B = torch.full((B,), torch.nan, dtype=dtype, device=device)
        given = {k: nan_B if v is None else v[self.order].to(dtype) for k, v in fields.items()}
        correct = fields["correct"]
        logp, (turn_N, seq_U) = rollout_logp, turns
        return Rollout(
            ids_L=ids,
            start_B1=start_B1,
            root_B=torch.ones_like(count_B),
            pos_N=pos_N,
            turn_N=turn_N,
            seq_U=seq_U,
            group_B=self.group_B,
            author_N=self.pick(author_BT),
            rollout_logp_N=torch.full(self.seq_N.shape, torch.nan, device=device) if logp is None else self.pick(logp),
            origin_B=torch.tensor(origin, dtype=torch.int64, device=device),
            reward_U=_at_the_end(given["reward"], seq_U) if reward_U is None else reward_U.to(dtype),
            correct_B=given["correct"].bool() if correct is not None else given["reward"] > 0,
            truncated_B=given["truncated"].nan_to_num(0.0).bool(),
            label_B=given["label"],
            sources=names,
            columns_B={k: v[self.order] for k, v in columns.items() if v.dim() == 1},
            columns_N={k: self.pick(v) for k, v in columns.items() if v.dim() == 2},
        )


def _at_the_end(reward_B: Tensor, seq_U: Tensor) -> Tensor:
    """The reward of each turn: that of the sequence for its last turn, and 0 for the others."""
    last_U = torch.ones_like(seq_U, dtype=torch.bool)
    last_U[:-1] = seq_U.diff() != 0
    return torch.where(last_U, reward_B[seq_U], torch.zeros_like(reward_B[seq_U]))
