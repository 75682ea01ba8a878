"""``lb.objective``: a method's loss on plain tensors, inside a trainer of your own.

Nothing here needs the engine. The objective shifts unshifted Hugging Face labels itself,
``objective(m)(model(input_ids).logits, labels=labels, ...)``. With ``tokens`` and ``mask`` the caller shifts, so that
row t of the logits scores token t: ``objective(m)(logits[:, :-1], tokens[:, 1:], mask[:, 1:], ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..axes.levels import Level
from ..axes.reader import behavior, old, student
from ..axes.surrogate import Question
from ..errors import LimbeckError, expect, shown, whole
from ..loss.terms import Batch, Loss, Prepared, loss, prepare
from ..math.statistic import Entropy, LogProb
from ..space.method import Method
from ..space.registry import Recipe, as_method
from ..types import Dense, Head, Hidden, Rollout, Sampled, Scores
from .arguments import (
    accumulation_dtype,
    read_all_sum,
    read_author,
    read_columns,
    read_fields,
    read_groups,
    read_items,
    read_logp,
    read_mask,
    read_sources,
    read_tokens,
    read_turn_rewards,
    read_turns,
    refuse_missing,
    refuse_other_denominators,
    refuse_vocabulary,
)
from .finite import Places, refuse_doubts
from .labels import read_form
from .memory import StepSoFar, read_memory, refuse_strange_states
from .rows import WROTE, PlainRows
from .scores import read_scores, read_student


@dataclass(frozen=True)
class Outcome:
    """The result of a call of an objective.

    Attributes:
        loss: scalar with gradient.
        metrics: plain numbers: ``loss``, and ``term/i`` for each term without its coefficient.
    """

    loss: Tensor
    metrics: dict[str, float]


class Objective:
    """A method as a function of tensors. Built by ``lb.objective``.

    Attributes:
        method: the method whose loss it computes.
        memory: numbers that outlive a call, by name: moving averages (``running``) and the states of controllers
            (``entropy_gate``). Empty for methods without either. Every call moves them, unless it says
            ``accumulate=True`` or ``update=False``. Save them with a checkpoint (``state_dict``); clear them to start
            over.
    """

    def __init__(self, method: Method, memory: MutableMapping[str, float] | None = None):
        self.method = method
        if memory is not None:
            read_memory("memory", memory)
        self.memory: MutableMapping[str, float] = {} if memory is None else memory
        self._step = StepSoFar()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the memory, ``{"memory": {name: number}}``: plain numbers that JSON and ``torch.save`` can hold.

        Micro-batches of a step that is not finished are not part of it; save between optimiser steps.
        """
        return {"memory": dict(self.memory)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put what ``state_dict`` returned in the place of the memory.

        Raises:
            LimbeckError: for anything else.
        """
        expect("the state of an objective", state, Mapping, "give what its state_dict() returned")
        if set(state) != {"memory"}:
            names = ", ".join(map(repr, state)) or "no name"
            raise LimbeckError(f"the state of an objective holds {names}; give what its state_dict() returned.")
        read_memory("memory", state["memory"])
        refuse_strange_states(self.method, state["memory"])
        saved = dict(state["memory"])
        self.memory.clear()
        self.memory.update(saved)
        self._step.clear()

    def __call__(
        self,
        student_logits: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        student_hidden: Tensor | None = None,
        student_head: Tensor | Head | None = None,
        student_logp: Tensor | None = None,
        old_logp: Tensor | None = None,
        rollout_logp: Tensor | None = None,
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
        accumulate: bool = False,
        update: bool = True,
        num_items_in_batch: Tensor | int | float | None = None,
        all_sum: Callable[[Tensor], Tensor] | None = None,
        **readers: Any,
    ) -> Outcome:
        """The loss of one batch.

        Arrays and nested lists are accepted like tensors; everything is brought to the student's device. Log-probs,
        rewards, preference labels and correctness must be finite where a term reads them, and may be anything
        elsewhere: under the mask, where a term's own ``where`` drops a token, on sequences of a source that no term
        reads. An entry of -inf in a top-k list has no mass; a list of nothing else is refused.

        The caller says in one of three ways which token a row of the logits scores:

        * ``labels`` ``[B, T]`` with logits ``[B, T, V]``, both unshifted, as a Hugging Face model and its collator give
          them. Row t scores the label at t + 1; -100 marks what is not scored. Everything with positions is unshifted
          too: logits, hidden states and top-k lists of readers at the positions of the input, like the student's;
          ``ROLE_logp``, ``student_logp``, ``old_logp``, ``rollout_logp``, ``turn``, ``author`` and columns ``[B, T]``
          at the positions of the labels, where entry t is about the token at t and the first entry is ignored.
        * ``tokens`` and ``mask``, ``[B, T]``, with rows that are shifted already: row t scores token t.
        * ``labels`` ``[B]`` with logits ``[B, C]`` of a classifier, which are not shifted: each row is a sequence of
          one token. Readers' logits are ``[B, C]``, log-probs ``[B]``.

        Args:
            student_logits: ``[B, T, V]``, or ``[B, C]`` of a classifier.
            student_hidden: ``[B, T, H]`` (or ``[B, H]``), in place of the logits, with ``student_head``.
            student_head: the ``[V, H]`` weight of the last linear map, an ``nn.Linear`` or a ``Head``.
            student_logp: ``[B, T]`` nats, in place of the logits: enough for methods that read only sampled log-probs.
            tokens: ``[B, T]`` int64; may be left out with ``student_logp``.
            mask: ``[B, T]``, non-zero where a token counts; default everywhere. What it hides is never touched.
            labels: ``[B, T]`` or ``[B]`` int64 in place of ``tokens`` and ``mask``, -100 where nothing is scored.
            old_logp: ``[B, T]`` the student at the start of the batch; left out, the batch is on-policy and it is the
                student itself, detached.
            rollout_logp: ``[B, T]`` as reported when written; left out, ``old_logp``, else the student itself.
            reward, correct, truncated, label: ``[B]``; ``correct`` defaults to ``reward > 0``. The labels of a group
                say what is preferred in it, 1 and 0 for a pair: they sum to 1 and are not all equal.
            group: ``[B]`` group of each sequence, equal numbers together; default one group (pairs: consecutive twos).
            turn: ``[B, T]`` whole numbers that rise along a sequence, the turn of each token; default one turn each.
            turn_reward: ``[B, K]`` in place of ``reward``: of turn 0, 1 ... of each sequence; NaN or 0 for turns that
                it does not have.
            source: name of the source of each sequence, for methods with several; one name holds for all.
            author: the author of the text, ``"student"``, ``"teacher"`` or ``"data"``: one name for all, one for each
                sequence, or ``[B, T]`` numbers (0 student, 1 teacher, -1 data); default: the author of the method's
                source. Refused where a term reads it and the source does not say.
            columns: further numbers by name, ``[B]`` or ``[B, T]``.
            step: the number of the optimiser step, from 0, for schedules and controllers.
            accumulate: True for every micro-batch of a step but its last. Moving averages and controllers then move
                once, at the last one, by what all micro-batches measured: sums and means over all of them; a moving
                average by the mean of the micro-batches weighted by their tokens.
            update: False leaves ``memory`` as it is, for evaluation.
            num_items_in_batch: the number of scored tokens of the whole batch, over all micro-batches and processes;
                it divides each term that would divide by the scored tokens of this call (``token_mean``), so that the
                losses of micro-batches add up to that of the batch. Terms over a constant (``budget``, ``token_sum``)
                keep it; other denominators are refused. None: the tokens of this call (and of ``all_sum``).
            all_sum: adds a tensor over processes, so that denominators are global.
            **readers: for each role the method reads, one of ``ROLE_logits`` ``[B, T, V]``, ``ROLE_hidden`` with
                ``ROLE_head``, ``ROLE_topk`` (ids, log-probs) ``[B, T, K]`` each, or ``ROLE_logp`` ``[B, T]``; for
                instance ``teacher_logits``. No gradient enters them. ``teacher_*``, ``ref_*`` and ``init_*`` may be
                given to any method and are ignored where it does not read them; other names are refused.

        Raises:
            LimbeckError: naming what is missing or misshapen, and the remedy.
        """
        whole("step", step, 0)
        expect("accumulate", accumulate, bool, "give True or False")
        expect("update", update, bool, "give True or False")
        if accumulate and not update:
            raise LimbeckError("accumulate=True with update=False does nothing; leave one of them out.")
        if update:
            self._step.refuse_unfinished(step)
        add = read_all_sum(all_sum)
        items = read_items(num_items_in_batch)
        if items is not None:
            refuse_other_denominators(self.method)
        given = {"student_logits": student_logits, "student_hidden": student_hidden, "student_logp": student_logp}
        form = read_form(labels, tokens, mask, given)
        live, shape = read_student(
            form.row("student_logits", student_logits),
            form.row("student_hidden", student_hidden),
            student_head,
            form.token("student_logp", student_logp),
        )
        readers = form.views(readers, self.method.slots)
        ids = read_tokens(form.ids, shape, live, readers, self.method)
        source = read_sources(source, shape[0], self.method)
        keep = read_mask(form.mask, shape, ids.device)
        rows = PlainRows(keep, read_groups(group, shape[0], self.method, keep.device))
        per_turn = read_turn_rewards(turn_reward, reward, shape[0], keep.device)
        turn = read_turns(form.token("turn", turn), shape, keep.device)
        turns = rows.turns(turn)
        reward_U = None if per_turn is None else rows.rewards(per_turn, turn, turns)
        if reward_U is not None:  # NaN stays NaN: it is refused where a term reads it
            reward = reward_U.new_zeros(shape[0]).index_add_(0, rows.order[turns[1]], reward_U)
        per_sequence = {"reward": reward, "correct": correct, "truncated": truncated, "label": label}
        fields = read_fields(per_sequence, shape[0], keep.device)
        refuse_missing(self.method, fields)
        scores = read_scores(readers, shape, self.method, live)
        refuse_vocabulary({student.key: live, **scores}, rows.pick(ids), form.name)
        own_logp = {
            name: read_logp(name, form.token(name, x), shape, live)
            for name, x in (("old_logp", old_logp), (WROTE, rollout_logp))
        }
        wrote = own_logp[WROTE] if rollout_logp is not None else own_logp["old_logp"]
        record = rows.record(
            ids,
            fields,
            turns,
            reward_U,
            read_columns(form.columns(columns), shape, self.method, keep.device),
            source,
            read_author(form.author(author), source, self.method, shape, keep.device),
            wrote,
            accumulation_dtype(live),
        )
        call = _Given(rows, record, scores, live, own_logp, fields, form.first)
        method, kept, batch = call.batch(self.method, step, add, self.memory)
        prepared = prepare(method, batch)
        call.refuse_doubts(method, prepared, batch, kept)
        if items is not None:
            prepared = _divided_by(items, method, prepared)
        moved = self.method.controllers
        seen = (Question(Entropy()),) if moved and not isinstance(kept, Sampled) else ()
        result: Loss = loss(method, prepared, kept, seen)
        if update:  # only now: a batch that was refused leaves no trace
            self._remember(batch, _measured(prepared, result, batch, fields) if moved else {}, accumulate)
        metrics = {f"term/{name}": value for name, value in result.terms.items()}
        return Outcome(result.loss, {"loss": float(result.loss.detach()), **metrics})

    def _remember(self, batch: Batch, measured: Mapping[str, float], accumulate: bool) -> None:
        """Add a micro-batch to its optimiser step, and move the memory where it is the last one."""
        # By identity: a batch that moves an average to the number it had has been counted, too.
        changed = {name: x for name, x in batch.memory.items() if x is not self.memory.get(name)}
        if changed or measured:
            self._step.add(batch.step, _total(batch, batch.record.n_tokens), changed, measured)
        if not accumulate:
            self._step.finish(batch.step, self.memory, self.method.controllers)


@dataclass(frozen=True)
class _Given:
    """The arguments of a call, read and brought to the aligned form.

    Attributes:
        first: the position in the caller's tensors that is position 0 here.
    """

    rows: PlainRows
    record: Rollout
    scores: Mapping[str, Scores]
    live: Dense | Hidden | Sampled
    own_logp: Mapping[str, Tensor | None]
    fields: Mapping[str, Tensor | None]
    first: int

    def batch(
        self, method: Method, step: int, all_sum: Callable[[Tensor], Tensor], memory: Mapping[str, float]
    ) -> tuple[Method, Sampled | Dense | Hidden, Batch]:
        """The method with ``old`` as it was given, the student's rows, and the batch that the loss is computed on."""
        scores = {key: self.rows.scores(c).detach() for key, c in self.scores.items()}
        old_logp, wrote = self.own_logp["old_logp"], any(x is not None for x in self.own_logp.values())
        if old_logp is not None:
            scores.setdefault(old.key, self.rows.scores(Sampled(old_logp)).detach())
        method = method if old.key in scores else method.on_policy()
        kept = self.rows.scores(self.live)
        record, scores = _fill_own_logp(self.record, scores, method, kept, wrote)
        return method, kept, Batch(record, scores, step, all_sum, dict(memory))

    def refuse_doubts(self, method: Method, prepared: Prepared, batch: Batch, kept: Scores) -> None:
        """Raise for numbers that are not finite where a term reads them, with their place in the caller's tensors."""
        given = {name for name, x in self.own_logp.items() if x is not None}
        given |= {"old_logits"} if old.key in self.scores else set()
        doubts = self.rows.doubts(self.fields, batch, kept, given, method.slots)
        refuse_doubts(prepared, batch, doubts, Places(self.rows.b_N, self.rows.t_N + self.first, self.rows.order))


def _divided_by(items: float, method: Method, prepared: Prepared) -> Prepared:
    """The same batch with the number of scored tokens of a larger one as the denominator of terms that count tokens."""
    if items == 0 and prepared.record.n_tokens:
        raise LimbeckError(
            f"num_items_in_batch is 0, but {prepared.record.n_tokens} tokens of this call are scored; give the number "
            "of scored tokens over all micro-batches and processes."
        )
    parts = [
        replace(part, total=items or 1.0) if (part.term.reduction or method.reduction).per_unit else part
        for part in prepared.parts
    ]
    return replace(prepared, parts=parts)


def _total(batch: Batch, x: Tensor | float) -> float:
    """A number added up over the processes."""
    return float(batch.all_sum(torch.as_tensor(x, dtype=torch.float64, device=batch.record.pos_N.device)))


def _measured(prepared: Prepared, result: Loss, batch: Batch, fields: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Sums over all processes of what controllers read; ``plain_memory.RATIOS`` names those that become means."""
    record = batch.record
    out = {"loss": _total(batch, result.loss.detach())}
    for part in prepared.parts:
        out[f"coef/{part.name}"] = part.coefficient
        out[f"term/{part.name}/loss"] = _total(batch, result.terms[part.name])
    there_B = record.length_B > 0
    out["tokens"] = out["length"] = _total(batch, record.n_tokens)
    out["sequences"] = _total(batch, there_B.sum())
    if result.observed:
        out["entropy"] = _total(batch, result.observed[0].double().sum())
    if fields["truncated"] is not None:
        out["truncated"] = _total(batch, (record.truncated_B & there_B).sum())
    if fields["reward"] is not None:
        reward_B = batch.levels.up(record.reward_U, Level.TURN, Level.SEQUENCE, "sum")
        out["reward"] = _total(batch, reward_B[there_B].sum())
    if fields["reward"] is not None or fields["correct"] is not None:
        out["accuracy"] = _total(batch, (record.correct_B & there_B).sum())
    return out


def objective(
    method: Method | Recipe | str, memory: MutableMapping[str, float] | None = None, **unknown: object
) -> Objective:
    """The method's loss as a function of plain tensors; see ``Objective.__call__`` for its arguments.

    Args:
        method: a method, or a registered name or its recipe, which stand for the method with its defaults.
        memory: a dictionary of numbers that the objective starts from, reads and changes in place, such as the
            ``memory`` of another objective; default: an empty one.
        **unknown: refused; arguments of a method are given to the method, ``lb.objective(lb.methods.kdrl(coef=1.0))``.

    Raises:
        LimbeckError: the method or an argument is unknown.
    """
    for name, value in unknown.items():
        called = method if isinstance(method, str) else getattr(method, "name", None) or "METHOD"
        raise LimbeckError(
            f"lb.objective has no argument {name!r}; give arguments of the method to the method, "
            f"lb.objective(lb.methods.{called}({name}={shown(value)})), and tensors to the objective that it returns."
        )
    return Objective(as_method(method), memory)


def _fill_own_logp(
    record: Rollout, scores: dict[str, Scores], method: Method, live: Scores, written: bool
) -> tuple[Rollout, dict[str, Scores]]:
    """Log-probs of the student at the start of the batch or when sampled, where not given: the student, detached."""
    now = {old.role: live.detach()}
    if method.reads(old.role) and old.role not in scores:
        scores = {**scores, **now}
    if method.reads(behavior.role) and not written:
        record = replace(record, rollout_logp_N=Batch(record, now).read(old, LogProb(), None))
    return record, scores
