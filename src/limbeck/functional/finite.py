"""Reject NaN, infinity and other impossible numbers, but only in values that the method uses.

The reward of a sequence that no term reads may be anything, and so may a teacher's log-prob of a token that the mask of
a term drops. So an impossible value is only a *doubt* at first. If there is one, the expressions are followed down to
the arguments, with the units whose values count, and the doubt becomes an error where it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..axes.expression import Expr
from ..axes.leaves import readers_of
from ..axes.levels import Level, Levels
from ..axes.reader import student
from ..errors import LimbeckError
from ..loss.terms import Batch, Prepared
from ..space.term import Term
from ..types import Dense, Hidden, Sampled, Scores, TopK

Key = tuple[str, str]
"""The kind of a value, and its name.

``role``: a reader; ``sampled``: its log-prob of the token; ``field``: a number of each sequence, ``token``: of each
token; ``preference``: the numbers of a group, as what is preferred."""


@dataclass(frozen=True)
class Doubt:
    """An argument that holds values which no term may read.

    Attributes:
        name: of the argument.
        bad: bool, per scored token for a role, per sequence of the record for a field.
        what: the fault in words, where the value itself does not show it.
        values: of the same shape as ``bad``, or None.
        remedy: the remedy for the message, if it is not the usual one.
    """

    name: str
    bad: Tensor
    what: str = ""
    values: Tensor | None = None
    remedy: str = ""


def doubts_of_field(name: str, values: Tensor | None) -> Iterator[Doubt]:
    """Doubts about one number per sequence."""
    if values is not None and values.is_floating_point():
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            yield Doubt(name, bad, values=values)


def doubts_of_labels(labels: Tensor | None, group_B: Tensor) -> Iterator[Doubt]:
    """Doubts about preference labels: a group of one, labels that do not sum to 1, or labels that are all equal.

    Lists with soft targets are preferences as well, and so are smoothed pairs, whose labels may lie outside [0, 1].
    """
    if labels is None or not labels.numel():
        return
    x = labels.to(torch.float64)
    G = int(group_B[-1]) + 1
    zero_G = x.new_zeros(G)
    total_G = zero_G.index_add(0, group_B, x)
    count_G = zero_G.index_add(0, group_B, torch.ones_like(x))
    high_G, low_G = (zero_G.scatter_reduce(0, group_B, x, how, include_self=False) for how in ("amax", "amin"))
    remedy = "give 1 for the chosen and 0 for the rejected one of each pair, and one number of group= to both"
    yield Doubt("label", (count_G == 1)[group_B], "belongs to a group of one", remedy=remedy)
    yield Doubt("label", (high_G == low_G)[group_B], "is the same for its whole group", remedy=remedy)
    other = torch.isfinite(total_G) & ((total_G - 1).abs() > 1e-3)
    yield Doubt("label", other[group_B], "does not sum to 1 over its group", remedy=remedy)


def doubts_of_author(author_N: Tensor, unknown: int) -> Iterator[Doubt]:
    """Doubts about tokens whose author neither the method nor the caller gives."""
    remedy = "give author=, 'student', 'teacher' or 'data', for all or for each sequence"
    yield Doubt("author", author_N == unknown, "is not known from the method's source", remedy=remedy)


def doubts_of_scores(name: str, scores: Scores, vocabulary: int | None) -> Iterator[Doubt]:
    """Doubts about log-probs of the scored tokens, top-k lists, logits or hidden states."""
    if isinstance(scores, Sampled):
        yield from doubts_of_field(name, scores.logp_N)
    if isinstance(scores, Dense):
        # The largest entry shows all three cases, without a copy of the logits.
        broken = ~torch.isfinite(scores.logits_NV.amax(-1))
        yield Doubt(name, broken, "has logits that are NaN, +inf, or all -inf")
    if isinstance(scores, Hidden):
        yield Doubt(name, _broken_hidden(scores), "gives logits that are NaN or infinite")
    if isinstance(scores, TopK):
        top = scores.logp_NK.detach()
        # An entry of -inf is one that the distribution excludes, as in dense logits; a list of nothing else is padding.
        absent = torch.isnan(top).any(-1) | (top == torch.inf).any(-1) | (top == -torch.inf).all(-1)
        yield Doubt(name, absent, "has log-probs that are NaN, +inf, or all -inf")
        ids = scores.ids_NK.sort(-1).values
        yield Doubt(name, (ids.diff(dim=-1) == 0).any(-1), "has an id twice")
        outside = ids < 0 if vocabulary is None else (ids < 0) | (ids >= vocabulary)
        yield Doubt(name, outside.any(-1), f"has an id outside the student's {vocabulary}")


def doubts_of_sampled(name: str, scores: Scores, token_N: Tensor) -> Iterator[Doubt]:
    """Doubts about logits of minus infinity for the token whose log-prob is read."""
    if isinstance(scores, Dense):
        logit_N = scores.logits_NV.gather(-1, token_N.unsqueeze(-1)).squeeze(-1)
        yield Doubt(name, torch.isneginf(logit_N), "is -inf for the token")


def _broken_hidden(scores: Hidden) -> Tensor:
    """Rows whose logits are not finite; they are computed only where their size could overflow."""
    hidden, head = scores.hidden_NH.detach(), scores.head
    weight = head.weight_VH.detach()
    if not bool(torch.isfinite(weight.abs().amax())) or (
        head.bias_V is not None and not bool(torch.isfinite(head.bias_V.detach().abs().amax()))
    ):
        return torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    size = hidden.to(wide).abs().sum(-1)
    bound = size.log() + weight.to(wide).abs().amax().log() + math.log(abs(head.scale) or 1.0)
    broken = ~torch.isfinite(size)
    risky = (bound > math.log(torch.finfo(wide).max) - 1) & ~broken
    if bool(risky.any()):
        z = hidden[risky].to(wide) @ weight.to(wide).T
        z = (z if head.bias_V is None else z + head.bias_V.detach()) * head.scale
        broken[risky] = ~torch.isfinite(z).all(-1)
    return broken


class Places:
    """The places of a record's scored tokens and sequences in the ``[B, T]`` batch that was given."""

    def __init__(self, b_N: Tensor, t_N: Tensor, order: Tensor):
        self.b_N, self.t_N, self.order = b_N, t_N, order

    def refuse(self, doubt: Doubt, read: Tensor, token: bool) -> None:
        """Raise at the first unit that is read and in doubt."""
        bad = doubt.bad & read
        if not bool(bad.any()):
            return
        n = int(bad.nonzero()[0])
        what = doubt.what if doubt.values is None else f"is {float(doubt.values[n])}"
        where = f"sequence {int(self.b_N[n])}, token {int(self.t_N[n])}" if token else f"sequence {int(self.order[n])}"
        usual = "mask the token, or give what the reader reports" if token else "give finite numbers"
        remedy = doubt.remedy or usual
        raise LimbeckError(f"{doubt.name} {what} at {where}, which the method reads; {remedy}.")


def refuse_doubts(prepared: Prepared, batch: Batch, doubts: Mapping[Key, list[Doubt]], places: Places) -> None:
    """Raise if a term reads a value that is in doubt.

    Raises:
        LimbeckError: naming the argument, the value and its place.
    """
    real = {key: [d for d in some if bool(d.bad.any())] for key, some in doubts.items()}
    real = {key: some for key, some in real.items() if some}
    if real:
        # Without all_sum: processes that have no doubt do not come here, and a sum over processes would wait for them.
        uses = _Uses(Batch(batch.record, batch.scores, batch.step), real, places)
        for part in prepared.parts:
            uses.refuse(part.term, part.kept_N)


class _Uses:
    """Follows the expressions of a term down to the arguments, with the units whose values change its loss."""

    def __init__(self, batch: Batch, doubts: Mapping[Key, list[Doubt]], places: Places):
        self.batch, self.levels = batch, Levels(batch.record)
        self.doubts, self.places = doubts, places

    def refuse(self, term: Term, kept_N: Tensor) -> None:
        """Raise if a value that the term reads is in doubt."""
        self.follow(term.where, torch.ones_like(kept_N), Level.TOKEN)
        self.argument("role", student.role, kept_N)
        for v in (term.weight, term.surrogate.base):
            if v is not None:
                self.follow(v, kept_N, Level.TOKEN)
        if not isinstance(term.signal, Expr):
            for reader in readers_of(term.signal):
                self.argument("role", reader.key, kept_N)
            return
        if term.surrogate.scope >= Level.GROUP and "label" in term.signal.fields:
            group = self.levels.touched(kept_N, Level.TOKEN, Level.GROUP)
            self.argument("preference", "label", self.levels.touched(group, Level.GROUP, Level.SEQUENCE))
        # A member of a kept group takes its signal even where its own text is empty, so whole units count.
        level = Level.TOKEN if term.surrogate.signal_level == Level.TOKEN else term.surrogate.scope
        self.follow(term.signal, self.levels.touched(kept_N, Level.TOKEN, level), level)

    def follow(self, v: Expr, units: Tensor, level: Level) -> None:
        """Follow one expression; ``units`` says of which units of ``level`` its value is used."""
        self._follow(v, self.levels.touched(units, level, v.level))

    def _follow(self, v: Expr, units: Tensor) -> None:
        for kind, name in sorted(v.own_values):
            self.argument(kind, name, self.levels.touched(units, v.level, Level.SEQUENCE) if kind == "field" else units)
        for child, read in v.used(units, self.batch):
            self._follow(child, read)

    def argument(self, kind: str, name: str, read: Tensor) -> None:
        """Raise if a value of this argument is read and in doubt."""
        for doubt in self.doubts.get((kind, name), []):
            self.places.refuse(doubt, read, token=kind in ("role", "sampled", "token"))
