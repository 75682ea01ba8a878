"""From a method and a batch to a loss: ``prepare``, ``Prepared.micro``, ``loss``.

A ``Batch`` holds a rollout and its readers' scores, without gradient. ``prepare`` evaluates on the whole batch every
expression that does not depend on the live student, and counts the denominators. ``micro`` cuts groups out of that.
Only ``loss`` uses the live student's scores, which carry the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..axes.expression import Expr, as_numbers, evaluate_rows
from ..axes.leaves import Read
from ..axes.levels import Level, Levels
from ..axes.reader import TargetReader
from ..axes.surrogate import Question, Rows
from ..errors import LimbeckError
from ..kernels.tiles import StatisticRequest, fused, statistics
from ..math.statistic import LogProb, Support
from ..space.method import Method
from ..space.term import Term
from ..types import Dense, Hidden, Mixture, Rollout, Sampled, Scores
from .batch import Batch, entries_of, target_of

# ---------------------------------------------------------------- prepared without the live student


@dataclass
class PreparedTerm:
    """One term of a method on one batch or micro-batch, as far as it does not depend on the live student.

    Attributes:
        name: number of the term in the method, from 1.
        term: the signal, the surrogate, the mask and the weight.
        coefficient: at this step.
        kept_N: bool, the scored tokens that the term's mask keeps.
        share: weight of each unit of the surrogate's ``loss_level`` in the mean.
        total: the denominator Z, of the global batch.
    """

    name: str
    term: Term
    coefficient: float
    kept_N: Tensor
    share: Tensor
    total: float


@dataclass
class Prepared:
    """A batch or micro-batch with its evaluated signals and counted denominators.

    Attributes:
        record: the rollout.
        scores: of each reader, by its key.
        parts: the terms of the method.
        known: values of the expressions that do not depend on the live student, one a unit of the expression's level.
    """

    record: Rollout
    scores: Mapping[str, Scores]
    parts: list[PreparedTerm]
    known: dict[Expr, Tensor]

    def micro(self, first: int, last: int) -> Prepared:
        """Groups ``first <= g < last``; the denominators stay those of the whole batch.

        Raises:
            LimbeckError: for fewer than all groups, where a surrogate needs the whole batch at once.
        """
        if (first, last) != (0, self.record.n_groups):
            for part in self.parts:
                refuse_cut(part.term, self.record.ids_L.numel())
        record, cut = self.record.groups(first, last)
        spans = {
            Level.TOKEN: cut["N"],
            Level.TURN: cut["U"],
            Level.SEQUENCE: cut["B"],
            Level.GROUP: slice(first, last),
            Level.BATCH: slice(None),
        }
        return Prepared(
            record=record,
            scores={role: s.rows(cut["N"]) for role, s in self.scores.items()},
            parts=[
                replace(p, kept_N=p.kept_N[cut["N"]], share=p.share[spans[p.term.surrogate.loss_level]])
                for p in self.parts
            ],
            known={v: x[spans[v.level]] for v, x in self.known.items()},
        )

    def micros(self, tokens: int) -> Iterator[Prepared]:
        """Micro-batches of whole groups with at most ``tokens`` tokens each (a larger group stays whole)."""
        for first, last in self.record.cuts(tokens):
            yield self.micro(first, last)


def refuse_shared(method: Method, processes: int) -> None:
    """Raise where a surrogate needs the whole batch at once and several processes share it."""
    for _, term in method.parts:
        if processes > 1 and term.surrogate.scope > Level.GROUP:
            raise LimbeckError(
                f"{term.surrogate} needs the whole batch at once, but each of the {processes} processes holds a part; "
                "run one process, or use a surrogate that needs no more than a group."
            )


def refuse_cut(term: Term, tokens: int) -> None:
    """Raise where a batch of ``tokens`` tokens is cut although a surrogate needs the whole batch at once."""
    if term.surrogate.scope > Level.GROUP:
        raise LimbeckError(
            f"{term.surrogate} needs the whole batch at once, but this one has {tokens} tokens and is cut into "
            f"micro-batches; raise micro_tokens to {tokens} or more (--set micro_tokens={tokens}), or lower prompts."
        )


def prepare(method: Method, batch: Batch) -> Prepared:
    """Evaluate every expression that does not depend on the live student, and count every denominator."""
    if any(term.surrogate.scope > Level.GROUP for _, term in method.parts):
        refuse_shared(method, int(batch.all_sum(torch.ones(1, dtype=torch.int64, device=batch.record.pos_N.device))))
    known: dict[Expr, Tensor] = {}
    parts = []
    for i, (coefficient, term) in enumerate(method.parts):
        for v in term.exprs:
            _evaluate_detached(v, batch, known)
        loss_level = term.surrogate.loss_level
        kept_N = batch.levels.down(known[term.where], term.where.level, Level.TOKEN).bool()
        kept = batch.levels.up(kept_N, Level.TOKEN, loss_level, "any") if loss_level != Level.TOKEN else kept_N
        ones = torch.ones(kept.shape, dtype=batch.record.reward_U.dtype, device=kept.device)
        weight = _unit_weight(term, batch, known, ones)
        reduction = term.reduction or method.reduction
        share, total = reduction.shares(kept, weight, loss_level, term.per, batch.levels)
        c = coefficient.now(batch.step, batch.memory)
        parts.append(PreparedTerm(f"{i + 1}", term, c, kept_N, share, float(total)))
    return Prepared(batch.record, batch.scores, parts, known)


def _evaluate_detached(v: Expr, batch: Batch, known: dict[Expr, Tensor]) -> None:
    """Evaluate the largest parts of an expression that do not depend on the live student."""
    if v in known:
        return
    if not v.live:
        known[v] = v.evaluate(batch)
        return
    for child in v.children:
        _evaluate_detached(child, batch, known)


def _unit_weight(term: Term, batch: Batch, known: dict[Expr, Tensor], ones: Tensor) -> Tensor:
    """The weight of each unit of the surrogate's ``loss_level``, where the denominator sums weights; else 1."""
    if term.per != "weight":
        return ones
    weight = batch.levels.down(known[term.weight], term.weight.level, Level.TOKEN)
    loss_level = term.surrogate.loss_level
    return weight if loss_level == Level.TOKEN else batch.levels.up(weight, Level.TOKEN, loss_level, "mean")


# ---------------------------------------------------------------- the live student


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch.

    Attributes:
        loss: scalar; micro-batches and processes add up to the objective.
        terms: the same by term, without gradient and without coefficients.
        observed: one vector ``[N]`` for each observed question, without gradient.
    """

    loss: Tensor
    terms: dict[str, float]
    observed: list[Tensor]


def loss(
    method: Method,
    prepared: Prepared,
    live: Sampled | Dense | Hidden,
    observe: Sequence[Question] = (),
    tile: int | None = None,
) -> Loss:
    """The objective on one micro-batch, differentiable with respect to the live student's scores.

    Args:
        method: already ``on_policy()`` where there are no scores of ``old``.
        prepared: a batch or a micro-batch.
        live: the student's present scores, one row a scored token.
        observe: statistics to report for every scored token, without gradient.
        tile: rows a tile; derived from the vocabulary by default.
    """
    needed = _StatisticRequests(prepared, live)
    term_losses = [_TermLoss(part, prepared, needed) for part in prepared.parts]
    watched = [needed.number(question, None) for question in observe]
    tally = {part.name: 0.0 for part in prepared.parts}
    if method.separable and not isinstance(live, Sampled):
        observed: list[list[Tensor]] = [[] for _ in observe]

        def objective(values: list[Tensor], spans: list[slice]) -> Tensor:
            for store, i in zip(observed, watched, strict=True):
                store.append(values[i].detach())
            return _add(term_losses, values, spans, tally)

        total = fused(live, prepared.record.token_N, needed.requests, objective, tile)
        return Loss(total, tally, [torch.cat(x) if x else total.new_zeros(0) for x in observed])
    values = needed.answers(tile)
    spans = [slice(0, v.numel()) for v in values]
    total = _add(term_losses, values, spans, tally)
    return Loss(total, tally, [values[i].detach() for i in watched])


def _add(term_losses: list[_TermLoss], values: list[Tensor], spans: list[slice], tally: dict[str, float]) -> Tensor:
    total = values[0].new_zeros(()) if values else torch.zeros(())
    for part_loss in term_losses:
        value = part_loss.value(values, spans)
        tally[part_loss.part.name] += float(value.detach())
        total = total + part_loss.part.coefficient * value
    return total


class _StatisticRequests:
    """The statistics of the live student that all terms need, each requested once."""

    def __init__(self, prepared: Prepared, live: Sampled | Dense | Hidden):
        self.prepared, self.live = prepared, live
        self.requests: list[StatisticRequest] = []
        self._numbers: dict[tuple[Question, int | None], int] = {}
        self._targets: dict[tuple[TargetReader, Support | None], Scores | Mixture] = {}

    def number(self, question: Question, rows: Tensor | None) -> int:
        """The index of a question's answer among ``answers``."""
        key = (question, None if rows is None else id(rows))
        if key not in self._numbers:
            self._numbers[key] = len(self.requests)
            target = None if question.target is None else self._target(question)
            support = entries_of(question.support)
            self.requests.append(
                StatisticRequest(question.statistic, rows, target, question.tau, support, question.target_tau)
            )
        return self._numbers[key]

    def _target(self, question: Question) -> Scores | Mixture:
        """The scores of a question's target. Questions with one target share them, so that a tile forms it once."""
        assert question.target is not None
        key = (question.target, question.support)
        if key not in self._targets:
            self._targets[key] = target_of(self.prepared.scores, question.target, question.support, question.statistic)
        return self._targets[key]

    def answers(self, tile: int | None) -> list[Tensor]:
        """One differentiable vector for each request, by the general kernel."""
        if not isinstance(self.live, Sampled):
            return statistics(self.live, self.prepared.record.token_N, self.requests, tile)
        for request in self.requests:
            if not isinstance(request.statistic, LogProb) or request.tau != 1.0:
                raise LimbeckError(
                    f"student_logp holds only the log-probs of the sampled tokens, but the method needs "
                    f"{request.statistic} of the student; give student_logits, or student_hidden with student_head."
                )
        logp_N = self.live.logp_N
        return [logp_N if a.rows is None else logp_N[a.rows] for a in self.requests]


class _TermLoss:
    """One term with the live student: its rows, its detached inputs there, and the indices of its statistics."""

    def __init__(self, part: PreparedTerm, prepared: Prepared, needed: _StatisticRequests):
        self.part, self.prepared = part, prepared
        term = part.term
        levels = Levels(prepared.record)
        everything = bool(part.kept_N.all())
        self.rows = None if everything else part.kept_N.nonzero().squeeze(-1)
        self.seq_n = prepared.record.seq_N if self.rows is None else prepared.record.seq_N[self.rows]
        self.live = [needed.number(q, self.rows) for q in term.surrogate.questions(term.signal)]
        self.leaves: dict[Expr, int] = {}
        for v in term.exprs:
            for leaf in v.walk():
                if isinstance(leaf, Read) and leaf.live:
                    question = Question(leaf.statistic, leaf.target, leaf.reader.tau, leaf.support, 1.0)
                    self.leaves[leaf] = needed.number(question, self.rows)
        self.known_n: dict[Expr, Tensor] = {}
        for v, x in prepared.known.items():
            token = levels.down(x, v.level, Level.TOKEN)
            self.known_n[v] = token if self.rows is None else token[self.rows]

    def value(self, values: list[Tensor], spans: list[slice]) -> Tensor:
        """The term on a slice of its rows, divided by its denominator, without its coefficient."""
        term = self.part.term
        span = spans[self.live[0]]
        live = [values[i] for i in self.live]

        def lookup(v: Expr) -> Tensor | None:
            if v in self.known_n:
                return self.known_n[v][span]
            return values[self.leaves[v]].detach() if v in self.leaves else None

        surrogate = term.surrogate
        signal = None
        if isinstance(term.signal, Expr):
            signal = as_numbers(
                evaluate_rows(term.signal, lookup) if surrogate.signal_level == Level.TOKEN else self._unit_signal()
            )
        base = None if surrogate.base is None else evaluate_rows(surrogate.base, lookup)
        losses = surrogate.loss(live, signal, base, Rows(self.seq_n[span], self.prepared.record.group_B))
        if surrogate.loss_level != Level.TOKEN:  # units that are not kept may be NaN, and NaN times 0 is NaN
            losses = torch.where(self._kept(), losses, torch.zeros_like(losses))
        weight = self._weight(lookup, span)
        return (losses * weight).sum() / self.part.total

    def _kept(self) -> Tensor:
        """Units of the surrogate's ``loss_level`` with at least one kept token."""
        return Levels(self.prepared.record).up(
            self.part.kept_N, Level.TOKEN, self.part.term.surrogate.loss_level, "any"
        )

    def _unit_signal(self) -> Tensor:
        signal = self.part.term.signal
        assert isinstance(signal, Expr)
        levels = Levels(self.prepared.record)
        return levels.down(self.prepared.known[signal], signal.level, self.part.term.surrogate.signal_level)

    def _weight(self, lookup: Callable[[Expr], Tensor | None], span: slice) -> Tensor:
        """share * weight of each unit of the surrogate's ``loss_level``; 0 for units that are not kept."""
        term, loss_level = self.part.term, self.part.term.surrogate.loss_level
        if loss_level == Level.TOKEN:
            share = self.part.share if self.rows is None else self.part.share[self.rows]
            return share[span] * evaluate_rows(term.weight, lookup)
        levels = Levels(self.prepared.record)
        kept = self._kept()
        weight = self.prepared.known[term.weight]
        down = levels.down(weight, term.weight.level, loss_level)
        return torch.where(kept, self.part.share * down, torch.zeros_like(self.part.share))
