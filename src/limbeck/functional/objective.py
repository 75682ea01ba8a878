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

from ..axes.levels import Level
from ..axes.reader import old, student, writer
from ..axes.scalar import move
from ..axes.surrogate import Question
from ..errors import whole
from ..loss.terms import Batch, Loss, Prepared, loss, prepare
from ..math.statistic import Entropy, LogProb
from ..space.method import Method
from ..space.registry import Recipe, as_method
from ..types import Head, Rollout, Sampled, Scores
from .arguments import (
    accumulation_dtype,
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
from .carriers import read_scores, read_student
from .finite import Places, refuse_doubts
from .rows import WROTE, PlainRows


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
        rows = PlainRows(keep, read_groups(group, shape[0], self.method, keep.device))
        per_turn = read_turn_rewards(turn_reward, reward, shape[0], keep.device)
        turn = read_turns(turn, shape, keep.device)
        turns = rows.turns(turn)
        reward_U = None if per_turn is None else rows.rewards(per_turn, turn, turns)
        if reward_U is not None:  # NaN stays NaN: it is refused where a term reads it
            reward = reward_U.new_zeros(shape[0]).index_add_(0, rows.order[turns[1]], reward_U)
        told = {"reward": reward, "correct": correct, "truncated": truncated, "label": label}
        fields = read_fields(told, shape[0], keep.device)
        refuse_missing(self.method, fields)
        said = read_scores(readers, shape, self.method, live)
        refuse_vocabulary({student.key: live, **said}, rows.pick(tokens))
        clocks = {name: read_logp(name, x, shape, live) for name, x in (("old_logp", old_logp), (WROTE, writer_logp))}
        wrote = clocks[WROTE] if writer_logp is not None else clocks["old_logp"]
        record = rows.record(
            tokens,
            fields,
            turns,
            reward_U,
            read_columns(columns, shape, self.method, keep.device),
            source,
            read_author(author, source, self.method, shape, keep.device),
            wrote,
            accumulation_dtype(live),
        )
        scores = {key: rows.scores(s).detach() for key, s in said.items()}
        if clocks["old_logp"] is not None:
            scores.setdefault(old.key, rows.scores(Sampled(clocks["old_logp"])).detach())
        method = self.method if old.key in scores else self.method.on_policy()
        kept = rows.scores(live)
        record, scores = _own_clocks(record, scores, method, kept, wrote is not None)
        batch = Batch(record, scores, step, add, dict(self.memory))
        prepared = prepare(method, batch)
        given = {name for name, x in clocks.items() if x is not None}
        given |= {"old_logits"} if old.key in said else set()
        doubts = rows.doubts(fields, batch, kept, given, method.slots)
        refuse_doubts(prepared, batch, doubts, Places(rows.b_N, rows.t_N, rows.order))
        moved = self.method.controllers
        seen = (Question(Entropy()),) if moved and not isinstance(kept, Sampled) else ()
        result: Loss = loss(method, prepared, kept, seen)
        self.memory.update(batch.memory)  # only now: a batch that was refused leaves no trace
        if moved:
            move(moved, self.memory, step, _measured(prepared, result, batch, fields))
        metrics = {f"term/{name}": value for name, value in result.terms.items()}
        return Outcome(result.loss, {"loss": float(result.loss.detach()), **metrics})


def _measured(prepared: Prepared, result: Loss, batch: Batch, fields: Mapping[str, Tensor | None]) -> dict[str, float]:
    """What controllers read of a call, under the names of a run's metrics, over all processes."""
    record, all_sum = batch.record, batch.all_sum

    def total(x: Tensor | float) -> float:
        return float(all_sum(torch.as_tensor(x, dtype=torch.float64, device=record.pos_N.device)))

    out = {"loss": total(result.loss.detach())}
    for part in prepared.parts:
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
        reward_B = batch.levels.up(record.reward_U, Level.TURN, Level.SEQUENCE, "sum")
        out["reward"] = total(reward_B[there_B].sum()) / sequences
    if fields["reward"] is not None or fields["correct"] is not None:
        out["accuracy"] = total((record.correct_B & there_B).sum()) / sequences
    return out


def objective(method: Method | Recipe | str) -> Objective:
    """The method's loss as a function of plain tensors; see ``Objective.__call__`` for its arguments.

    A registered name or its recipe stands for the method with its defaults.
    """
    return Objective(as_method(method))


def _own_clocks(
    record: Rollout, scores: dict[str, Scores], method: Method, live: Scores, written: bool
) -> tuple[Rollout, dict[str, Scores]]:
    """Where the student's other clocks were not given, they are the student itself, detached."""
    now = {old.role: live.detach()}
    if method.reads(old.role) and old.role not in scores:
        scores = {**scores, **now}
    if method.reads(writer.role) and not written:
        record = replace(record, writer_logp_N=Batch(record, now).read(old, LogProb(), None))
    return record, scores
