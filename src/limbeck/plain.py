"""``lb.objective``: a method's loss on plain ``[B, T, V]`` tensors, inside anybody's trainer.

Nothing here needs the engine. Row t of the logits *scores* token t: shift before you call,
``objective(m)(logits[:, :-1], tokens[:, 1:], mask[:, 1:], ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .arguments import (
    UNKNOWN,
    dtype_of,
    read_all_sum,
    read_author,
    read_columns,
    read_fields,
    read_groups,
    read_logp,
    read_mask,
    read_sources,
    read_tokens,
    read_turn_rewards,
    read_turns,
    refuse_missing,
    refuse_vocabulary,
)
from .axes.ladder import Rung
from .axes.reader import Reader, old, student, writer
from .axes.scalar import move
from .axes.surrogate import Question
from .carriers import read_carriers, read_student
from .errors import LimbeckError, whole
from .finite import (
    Doubt,
    Key,
    Places,
    doubts_of_author,
    doubts_of_carrier,
    doubts_of_field,
    doubts_of_labels,
    doubts_of_sampled,
    refuse_doubts,
)
from .math.statistic import Entropy, LogProb
from .method import Method
from .objective import Batch, Heard, Loss, hear, loss
from .registry import Recipe, as_method
from .types import Carrier, Dense, Head, Hidden, Rollout, Sampled, TopK, View, width_of

_WROTE = "writer_logp"
_FORMS = {Dense: "logits", Hidden: "hidden", TopK: "topk", Sampled: "logp"}


@dataclass(frozen=True)
class Outcome:
    """What an objective returns.

    Attributes:
        loss: scalar with gradient.
        metrics: plain numbers: ``loss``, and ``term/i`` for each term without its coefficient.
    """

    loss: Tensor
    metrics: dict[str, float]


class Objective:
    """A method as a function of tensors. Built by ``lb.objective``.

    Attributes:
        method: the value that it computes.
        memory: what outlives a call: moving averages (``running``) and the states of controllers (``entropy_gate``), by
            name. Every call is one batch and moves them, so save this with a checkpoint, and empty it to start anew.
    """

    def __init__(self, method: Method):
        self.method = method
        self.memory: dict[str, float] = {}

    def __call__(
        self,
        student_logits: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        student_hidden: Tensor | None = None,
        student_head: Tensor | Head | None = None,
        student_logp: Tensor | None = None,
        old_logp: Tensor | None = None,
        writer_logp: Tensor | None = None,
        reward: Tensor | None = None,
        correct: Tensor | None = None,
        truncated: Tensor | None = None,
        label: Tensor | None = None,
        group: Tensor | None = None,
        turn: Tensor | None = None,
        turn_reward: Tensor | None = None,
        source: Sequence[str] | None = None,
        author: str | Sequence[str] | Tensor | None = None,
        columns: Mapping[str, Tensor] | None = None,
        step: int = 0,
        all_sum: Callable[[Tensor], Tensor] | None = None,
        **readers: Any,
    ) -> Outcome:
        """The loss of one batch.

        Arrays and nested lists are as good as tensors; everything is brought to the student's device. Log-probs,
        rewards, labels and correctness must be finite where a term reads them, and may be anything elsewhere: under
        the mask, where a term's own ``where`` drops a token, on sequences of a source that no term looks at. An entry
        of -inf in a top-k list has no mass; a list of nothing else is refused.

        Args:
            student_logits: ``[B, T, V]``; row t scores token t (shift before you call).
            student_hidden: ``[B, T, H]``, in place of the logits, with ``student_head``.
            student_head: the ``[V, H]`` weight of the last linear map, an ``nn.Linear`` or a ``Head``.
            student_logp: ``[B, T]`` nats, in place of the logits: enough for methods that read only sampled log-probs.
            tokens: ``[B, T]`` int64; may be left out with ``student_logp``.
            mask: ``[B, T]``, non-zero where a token counts; default everywhere. What it hides is never touched.
            old_logp: ``[B, T]`` the student at the start of the batch; left out, the batch is on-policy and it is the
                student itself, detached.
            writer_logp: ``[B, T]`` as reported when written; left out, ``old_logp``, else the student itself.
            reward, correct, truncated, label: ``[B]``; ``correct`` defaults to ``reward > 0``. The labels of a group
                say what is preferred in it, 1 and 0 for a pair: they sum to 1 and are not all equal.
            group: ``[B]`` group of each sequence, equal numbers together; default one group (pairs: consecutive twos).
            turn: ``[B, T]`` whole numbers that rise along a sequence, the turn of each token; default one turn each.
            turn_reward: ``[B, K]`` in place of ``reward``: of turn 0, 1 ... of each sequence; NaN or 0 for turns that
                it does not have.
            source: name of the source of each sequence, for methods with several; one name is everybody's.
            author: who wrote the text, ``"student"``, ``"teacher"`` or ``"data"``: one name for all, one for each
                sequence, or ``[B, T]`` numbers (0 student, 1 teacher, -1 data); default: whoever writes the method's
                source. Refused where a term reads it and the source does not tell.
            columns: further numbers by name, ``[B]`` or ``[B, T]``.
            step: for schedules and controllers, from 0; after the call every controller moves by what it measured, see
                ``memory``.
            all_sum: adds a tensor over processes, so that denominators are global.
            **readers: for each role the method reads, one of ``ROLE_logits`` ``[B, T, V]``, ``ROLE_hidden`` with
                ``ROLE_head``, ``ROLE_topk`` (ids, log-probs) ``[B, T, K]`` each, or ``ROLE_logp`` ``[B, T]``; for
                instance ``teacher_logits``. Whatever they are, no gradient enters them. ``teacher_*``, ``ref_*`` and
                ``init_*`` may be given to any method and are ignored where it does not read them; other names are
                refused.

        Raises:
            LimbeckError: naming what is missing or misshapen, and the remedy.
        """
        whole("step", step, 0)
        add = read_all_sum(all_sum)
        live, shape = read_student(student_logits, student_hidden, student_head, student_logp)
        tokens = read_tokens(tokens, shape, live, readers, self.method)
        source = read_sources(source, shape[0], self.method)
        keep = read_mask(mask, shape, tokens.device)
        rows = _Rows(keep, read_groups(group, shape[0], self.method, keep.device))
        per_turn = read_turn_rewards(turn_reward, reward, shape[0], keep.device)
        turn = read_turns(turn, shape, keep.device)
        turns = rows.turns(turn)
        reward_U = None if per_turn is None else rows.rewards(per_turn, turn, turns)
        if reward_U is not None:  # NaN stays NaN: it is refused where a term reads it
            reward = reward_U.new_zeros(shape[0]).index_add_(0, rows.order[turns[1]], reward_U)
        told = {"reward": reward, "correct": correct, "truncated": truncated, "label": label}
        fields = read_fields(told, shape[0], keep.device)
        refuse_missing(self.method, fields)
        carriers = read_carriers(readers, shape, self.method, live)
        refuse_vocabulary({student.key: live, **carriers}, rows.pick(tokens))
        clocks = {name: read_logp(name, x, shape, live) for name, x in (("old_logp", old_logp), (_WROTE, writer_logp))}
        wrote = clocks[_WROTE] if writer_logp is not None else clocks["old_logp"]
        record = rows.record(
            tokens,
            fields,
            turns,
            reward_U,
            read_columns(columns, shape, self.method, keep.device),
            source,
            read_author(author, source, self.method, shape, keep.device),
            wrote,
            dtype_of(live),
        )
        scores = {key: rows.view(c) for key, c in carriers.items()}
        if clocks["old_logp"] is not None:
            scores.setdefault(old.key, rows.view(Sampled(clocks["old_logp"])))
        method = self.method if old.key in scores else self.method.on_policy()
        carrier = rows.carrier(live)
        record, scores = _own_clocks(record, scores, method, carrier, wrote is not None)
        batch = Batch(record, scores, step, add, dict(self.memory))
        heard = hear(method, batch)
        given = {name for name, x in clocks.items() if x is not None}
        given |= {"old_logits"} if old.key in carriers else set()
        doubts = rows.doubts(fields, batch, carrier, given, method.slots)
        refuse_doubts(heard, batch, doubts, Places(rows.b_N, rows.t_N, rows.order))
        moved = self.method.controllers
        seen = (Question(Entropy()),) if moved and not isinstance(carrier, Sampled) else ()
        result: Loss = loss(method, heard, carrier, seen)
        self.memory.update(batch.memory)  # only now: a batch that was refused leaves no trace
        if moved:
            move(moved, self.memory, step, _measured(heard, result, batch, fields))
        metrics = {f"term/{name}": value for name, value in result.terms.items()}
        return Outcome(result.loss, {"loss": float(result.loss.detach()), **metrics})


def _measured(heard: Heard, result: Loss, batch: Batch, fields: Mapping[str, Tensor | None]) -> dict[str, float]:
    """What controllers read of a call, under the names of a run's metrics, over all processes."""
    record, all_sum = batch.record, batch.all_sum

    def total(x: Tensor | float) -> float:
        return float(all_sum(torch.as_tensor(x, dtype=torch.float64, device=record.pos_N.device)))

    out = {"loss": total(result.loss.detach())}
    for part in heard.parts:
        out[f"coef/{part.name}"] = part.coefficient
        out[f"term/{part.name}/loss"] = total(result.terms[part.name])
    tokens, there_B = total(record.n_tokens), record.length_B > 0
    sequences = max(total(there_B.sum()), 1.0)
    if result.observed:
        out["entropy"] = total(result.observed[0].double().sum()) / max(tokens, 1.0)
    out["length"] = tokens / sequences
    if fields["truncated"] is not None:
        out["truncated"] = total((record.truncated_B & there_B).sum()) / sequences
    if fields["reward"] is not None:
        reward_B = batch.ladder.up(record.reward_U, Rung.TURN, Rung.SEQUENCE, "sum")
        out["reward"] = total(reward_B[there_B].sum()) / sequences
    if fields["reward"] is not None or fields["correct"] is not None:
        out["accuracy"] = total((record.correct_B & there_B).sum()) / sequences
    return out


def objective(method: Method | Recipe | str) -> Objective:
    """The method's loss as a function of plain tensors; see ``Objective.__call__`` for its arguments.

    A registered name or its recipe stands for the method with its defaults.
    """
    return Objective(as_method(method))


@dataclass
class _Rows:
    """Where the kept tokens of a ``[B, T]`` batch lie, in the order of the record."""

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

    def carrier(self, c: Any) -> Any:
        """A carrier on the scored tokens from one on ``[B, T]``."""
        if isinstance(c, Dense):
            return Dense(self.pick(c.logits_NV))
        if isinstance(c, Hidden):
            return Hidden(self.pick(c.hidden_NH), c.head)
        if isinstance(c, TopK):
            return TopK(self.pick(c.ids_NK), self.pick(c.logp_NK))
        return Sampled(self.pick(c.logp_N))

    def view(self, c: Carrier) -> View:
        """The same, detached."""
        return View(_detached(self.carrier(c)))

    def doubts(
        self,
        fields: Mapping[str, Tensor | None],
        batch: Batch,
        live: Carrier,
        given: set[str],
        slots: Mapping[str, Reader],
    ) -> dict[Key, list[Doubt]]:
        """What nothing may read, by what might: under the names of the arguments that hold it."""
        slot_of = {reader.key: slot for slot, reader in slots.items()}
        width = width_of(live)
        found: dict[Key, list[Doubt]] = {}
        for name, value in fields.items():
            held, called = (fields["reward"], "reward") if name == "correct" and value is None else (value, name)
            found["field", name] = list(doubts_of_field(called, None if held is None else held[self.order]))
        found["preference", "label"] = list(
            doubts_of_labels(None if fields["label"] is None else batch.record.label_B, batch.record.group_B)
        )
        found["token", "author"] = list(doubts_of_author(batch.record.author_N, UNKNOWN))
        own = old.role if not given & {"old_logp", "old_logits"} else student.role
        for role, view in batch.scores.items():
            called = f"{slot_of.get(role, role)}_{_FORMS[type(view.carrier)]}"
            if role == own:  # a trainer with a loss scaler skips a step of NaN on its own
                called = "student_logp"
                if not isinstance(view.carrier, Sampled):
                    continue
            found["role", role] = list(doubts_of_carrier(called, view.carrier, width))
            found["sampled", role] = list(doubts_of_sampled(called, view.carrier, batch.record.token_N))
        if isinstance(live, Sampled):
            found["role", student.role] = list(doubts_of_carrier("student_logp", _detached(live), width))
        if given & {"old_logp", _WROTE}:  # else it is the student itself
            called = _WROTE if _WROTE in given else "old_logp"
            found["role", writer.role] = list(doubts_of_field(called, batch.record.writer_logp_N))
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
        writer_logp: Tensor | None,
        dtype: torch.dtype,
    ) -> Rollout:
        """The record of the batch; each sequence opens with one token that nobody scores."""
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
        told = {k: nan_B if v is None else v[self.order].to(dtype) for k, v in fields.items()}
        correct = fields["correct"]
        logp, (turn_N, seq_U) = writer_logp, turns
        return Rollout(
            ids_L=ids,
            start_B1=start_B1,
            root_B=torch.ones_like(count_B),
            pos_N=pos_N,
            turn_N=turn_N,
            seq_U=seq_U,
            group_B=self.group_B,
            author_N=self.pick(author_BT),
            writer_logp_N=torch.full(self.seq_N.shape, torch.nan, device=device) if logp is None else self.pick(logp),
            origin_B=torch.tensor(origin, dtype=torch.int64, device=device),
            reward_U=_at_the_end(told["reward"], seq_U) if reward_U is None else reward_U.to(dtype),
            correct_B=told["correct"].bool() if correct is not None else told["reward"] > 0,
            truncated_B=told["truncated"].nan_to_num(0.0).bool(),
            label_B=told["label"],
            sources=names,
            columns_B={k: v[self.order] for k, v in columns.items() if v.dim() == 1},
            columns_N={k: self.pick(v) for k, v in columns.items() if v.dim() == 2},
        )


def _at_the_end(reward_B: Tensor, seq_U: Tensor) -> Tensor:
    """A whole sequence's reward falls to its last turn, and the others get 0."""
    last_U = torch.ones_like(seq_U, dtype=torch.bool)
    last_U[:-1] = seq_U.diff() != 0
    return torch.where(last_U, reward_B[seq_U], torch.zeros_like(reward_B[seq_U]))


def _detached(c: Carrier) -> Carrier:
    if isinstance(c, Dense):
        return Dense(c.logits_NV.detach())
    if isinstance(c, Hidden):
        bias = c.head.bias_V
        head = Head(c.head.weight_VH.detach(), None if bias is None else bias.detach(), c.head.scale, c.head.softcap)
        return Hidden(c.hidden_NH.detach(), head)
    if isinstance(c, TopK):
        return TopK(c.ids_NK, c.logp_NK.detach())
    return Sampled(c.logp_N.detach())


def _own_clocks(
    record: Rollout, scores: dict[str, View], method: Method, live: Carrier, written: bool
) -> tuple[Rollout, dict[str, View]]:
    """Where the student's other clocks were not given, they are the student itself, detached."""
    now = {old.role: View(_detached(live))}
    if method.reads(old.role) and old.role not in scores:
        scores = {**scores, **now}
    if method.reads(writer.role) and not written:
        record = replace(record, writer_logp_N=Batch(record, now).read(old, LogProb(), None))
    return record, scores
