"""Per-token statistics in bounded memory: the full ``[N, V]`` logits never exist at once.

Two functions use one set of closed forms:

* ``statistics`` is general. It returns values, any objective may follow, and backward recomputes the tiles. It is
  needed where an objective depends on a whole sequence, pair or group.
* ``fused`` is for separable objectives: sums of per-token values over a denominator that is known beforehand. Loss and
  gradient are formed tile by tile in the forward pass, with four matrix products in all.

Rows that no request names are never read, so a NaN there has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..math.statistic import Statistic, Support, Target, flow_of, with_tail
from ..types import Dense, Hidden, Mixture, Scores, TopK

TILE_ELEMENTS = 1 << 22
"""Logits per tile: 16 MiB of float32. Ours; small enough for a laptop's cache, large enough for its matrix products."""


@dataclass(frozen=True)
class StatisticRequest:
    """A request for one statistic of the student on some rows.

    Attributes:
        statistic: of the student's distribution, and of a target's where it has one.
        rows: int64, sorted rows of the student's scores; None: all N.
        target: the scores of the other distribution, aligned with the student's rows, or None.
        tau: temperature that divides the student's logits.
        target_tau: temperature that divides the target's; None takes ``tau``.
        support: entries of the vocabulary that the student chooses, row by row; entries that the target chooses are in
            its scores.
    """

    statistic: Statistic
    rows: Tensor | None = None
    target: Scores | Mixture | None = None
    tau: float = 1.0
    support: Support | None = None
    target_tau: float | None = None

    @property
    def temperature_of_target(self) -> float:
        """The target's temperature, in addition to those of a mixture's parts."""
        return self.tau if self.target_tau is None else self.target_tau


RowObjective = Callable[[list[Tensor], list[slice]], Tensor]
"""From the values of one tile (a vector for each request) and their rows in the request to a normalised scalar."""


def statistics(
    student: Dense | Hidden, label_N: Tensor, requests: Sequence[StatisticRequest], tile: int | None = None
) -> list[Tensor]:
    """One vector for each request, differentiable with respect to the student's scores.

    Args:
        student: logits, or hidden states with a head.
        label_N: int64, the token each row predicts.
        requests: one for each answer, ``[len(rows)]`` in the accumulation dtype (float64 for float64 scores, else
            float32).
        tile: rows a tile; derived from the vocabulary by default.
    """
    x, weight, bias, plan = _plan(student, label_N, requests, tile)
    with torch.autocast(x.device.type, enabled=False):  # a mixed-precision forward must not round the logits
        return list(_Statistics.apply(x, weight, bias, plan))


def fused(
    student: Dense | Hidden,
    label_N: Tensor,
    requests: Sequence[StatisticRequest],
    objective: RowObjective,
    tile: int | None = None,
) -> Tensor:
    """The sum of ``objective`` over tiles, a scalar whose gradient is formed in this forward pass."""
    x, weight, bias, plan = _plan(student, label_N, requests, tile)
    with torch.autocast(x.device.type, enabled=False):
        loss: Tensor = _Fused.apply(x, weight, bias, plan, objective)
    return loss


# ---------------------------------------------------------------- the tile


@dataclass
class _Plan:
    label_N: Tensor
    requests: Sequence[StatisticRequest]
    rows: list[Tensor]  # of each request, sorted
    wanted: Tensor  # union of the requests' rows, sorted
    tile: int
    vocabulary: int
    scale: float = 1.0
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    def spans(self) -> list[Tensor]:
        """The rows of each tile."""
        return list(self.wanted.split(self.tile))


def _plan(
    student: Dense | Hidden, label_N: Tensor, requests: Sequence[StatisticRequest], tile: int | None
) -> tuple[Tensor, Tensor | None, Tensor | None, _Plan]:
    x = student.values
    head = student.head if isinstance(student, Hidden) else None
    everything = torch.arange(x.shape[0], device=x.device)
    rows = [everything if a.rows is None else a.rows for a in requests]
    vocabulary = student.width
    plan = _Plan(
        label_N=label_N,
        requests=requests,
        rows=rows,
        wanted=torch.unique(torch.cat(rows)) if rows else everything[:0],
        tile=tile or max(1, TILE_ELEMENTS // vocabulary),
        vocabulary=vocabulary,
        dtype=torch.float64 if x.dtype == torch.float64 else torch.float32,
    )
    if head is None:
        return x, None, None, plan
    plan.scale, plan.softcap = head.scale, head.softcap
    return x, head.weight_VH, head.bias_V, plan


def _matmul(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b with a ``dtype`` result; with bfloat16 logits the gradient would be wrong by 3 % (measured)."""
    if a.dtype == dtype and b.dtype == dtype:
        return a @ b
    if a.is_cuda and a.dtype == b.dtype and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def _logits(
    x_nH: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, cap: float | None, dtype: Any
) -> Tensor:
    """Rows of logits in the accumulation dtype."""
    if weight is None:
        return x_nH.to(dtype)
    z = _matmul(x_nH, weight.t(), dtype)
    if bias is not None:
        z = z + bias.to(dtype)
    z = z * scale if scale != 1.0 else z
    return z if cap is None else cap * torch.tanh(z / cap)


_Answer = tuple[slice, Tensor | None, tuple[Tensor, Tensor, Target | None]]


@dataclass
class _Tile:
    """The logits of some rows, with log-probs and answers that are computed at first use."""

    plan: _Plan
    rows: Tensor
    z_nV: Tensor
    logq: dict[float, Tensor] = field(default_factory=dict)
    answers: dict[int, _Answer] = field(default_factory=dict)
    targets: dict[tuple[int, float, int, Support | None], Target] = field(default_factory=dict)

    def answer(self, i: int) -> _Answer:
        """For request i: the slice of its answer, the rows in this tile (None: all), and the statistic's arguments."""
        if i not in self.answers:
            self.answers[i] = self._answer(i)
        return self.answers[i]

    def _answer(self, i: int) -> _Answer:
        request, rows = self.plan.requests[i], self.plan.rows[i]
        edges = torch.searchsorted(rows, torch.stack([self.rows[0], self.rows[-1] + 1]))
        span = slice(int(edges[0]), int(edges[1]))
        mine = rows[span]
        local = None if mine.numel() == self.rows.numel() else torch.searchsorted(self.rows, mine)
        logq = self._logq(request.tau)
        target = None if request.target is None else self._target_on_tile(request, rows, mine)
        return span, local, (logq if local is None else logq[local], self.plan.label_N[mine], target)

    def _target_on_tile(self, request: StatisticRequest, rows: Tensor, mine: Tensor) -> Target:
        """The target's distribution on this tile; requests with one target on the same rows share it."""
        key = (id(request.target), request.temperature_of_target, id(rows), request.support)
        if key not in self.targets:
            assert request.target is not None
            target = _target(request.target, mine, request.temperature_of_target, self.plan)
            self.targets[key] = (
                target if request.support is None else self._supported(target, request.support, request.tau, mine)
            )
        return self.targets[key]

    def _supported(self, target: Target, support: Support, tau: float, mine: Tensor) -> Target:
        """The target on the student's likeliest entries, or on those that its scores hold already."""
        if target.ids_nK is not None:
            ids, logp = target.ids_nK, target.logp[:, : target.ids_nK.shape[-1]]
        else:
            logq = self._logq(tau)
            local = logq if mine.numel() == self.rows.numel() else logq[torch.searchsorted(self.rows, mine)]
            ids = local.topk(min(support.k, self.plan.vocabulary), dim=-1).indices
            logp = target.logp.gather(-1, ids)
        return Target(with_tail(logp, self.plan.vocabulary) if support.tail else logp.log_softmax(-1), ids)

    def _logq(self, tau: float) -> Tensor:
        if tau not in self.logq:
            self.logq[tau] = (self.z_nV / tau if tau != 1.0 else self.z_nV).log_softmax(-1)
        return self.logq[tau]

    def pullback(self, cotangents: Sequence[Tensor | None]) -> Tensor:
        """dz ``[n, V]``: the sum over requests of this tile's cotangent times the statistic's closed form."""
        dz = torch.zeros_like(self.z_nV)
        for i, request in enumerate(self.plan.requests):
            cotangent = cotangents[i]
            if cotangent is None:
                continue
            _, local, arguments = self.answer(i)
            flow = flow_of(request.statistic, *arguments)
            grad = flow - arguments[0].exp() * flow.sum(-1, keepdim=True)
            grad = grad * (cotangent.to(grad.dtype) / request.tau).unsqueeze(-1)
            if local is None:
                dz += grad
            else:
                dz.index_add_(0, local, grad)
        return dz


def _target(scores: Scores | Mixture, rows: Tensor, tau: float, plan: _Plan) -> Target:
    """The target distribution on the given rows, in the accumulation dtype."""
    if isinstance(scores, Mixture):
        return _mixed(scores, rows, tau, plan)
    if isinstance(scores, TopK):
        return Target(with_tail(scores.logp_NK[rows].to(plan.dtype), plan.vocabulary), scores.ids_NK[rows])
    if isinstance(scores, Dense):
        z = scores.logits_NV[rows].to(plan.dtype)
    else:
        assert isinstance(scores, Hidden)
        head = scores.head
        z = _logits(scores.hidden_NH[rows], head.weight_VH, head.bias_V, head.scale, head.softcap, plan.dtype)
    return Target((z / tau).log_softmax(-1))


def _mixed(mixture: Mixture, rows: Tensor, tau: float, plan: _Plan) -> Target:
    """A distribution mixed from others: probabilities are added, or log-probs are added and normalised."""
    targets = [(_target(part, rows, tau * own, plan).logp, weight) for part, weight, own in mixture.parts]
    if mixture.space == "prob":
        return Target(torch.stack([logp + math.log(weight) for logp, weight in targets if weight > 0]).logsumexp(0))
    # An entry that one part excludes stays excluded: 0 times -inf is NaN.
    terms = [torch.where(logp.isinf(), logp, weight * logp) for logp, weight in targets if weight != 0]
    return Target(torch.stack(terms).sum(0).log_softmax(-1))


def _open_tile(plan: _Plan, rows: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> _Tile:
    return _Tile(plan, rows, _logits(x[rows], weight, bias, plan.scale, plan.softcap, plan.dtype))


def _narrow(dz_nV: Tensor, dtype: torch.dtype) -> Tensor:
    """dz in bfloat16 for a product with a bfloat16 matrix, which has float32's range; in float16 it would underflow."""
    return dz_nV.to(dtype) if dtype == torch.bfloat16 else dz_nV


class _Gradients:
    """Gradients of the student's scores, accumulated over tiles.

    They are rounded to float16 only in ``result``, after the multiplication with the upstream gradient, which holds the
    loss scaler.
    """

    def __init__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: Sequence[bool], plan: _Plan):
        self.x, self.weight, self.plan = x, weight, plan
        held = plan.dtype if x.dtype == torch.float16 else x.dtype
        self.dx = torch.zeros_like(x, dtype=held) if needed[0] else None
        self.dw = weight.new_zeros(weight.shape, dtype=plan.dtype) if weight is not None and needed[1] else None
        self.db = bias.new_zeros(bias.shape, dtype=plan.dtype) if bias is not None and needed[2] else None

    def add(self, tile: _Tile, dz_nV: Tensor) -> None:
        """Add one tile's dz to the gradients of the hidden states and the head."""
        plan = self.plan
        if self.weight is None:
            if self.dx is not None:
                self.dx[tile.rows] = dz_nV.to(self.dx.dtype)
            return
        if plan.softcap is not None:
            dz_nV = dz_nV * (1 - (tile.z_nV / plan.softcap).square())
        dz_nV = dz_nV * plan.scale if plan.scale != 1.0 else dz_nV
        if self.dx is not None:
            self.dx[tile.rows] = _matmul(_narrow(dz_nV, self.weight.dtype), self.weight, plan.dtype).to(self.dx.dtype)
        if self.dw is not None:
            self.dw += _matmul(_narrow(dz_nV, self.x.dtype).t(), self.x[tile.rows], plan.dtype)
        if self.db is not None:
            self.db += dz_nV.sum(0)

    def result(self, scale: Tensor | float = 1.0) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients in the dtypes of their inputs, times ``scale``."""
        dw = None if self.dw is None or self.weight is None else (self.dw * scale).to(self.weight.dtype)
        dx = None if self.dx is None else (self.dx * scale).to(self.x.dtype)
        return dx, dw, None if self.db is None else self.db * scale


class _Statistics(torch.autograd.Function):
    """Values in forward; backward recomputes the tiles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: _Plan) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight, bias)
        ctx.set_materialize_grads(False)  # an answer that is only observed needs no work in backward
        ctx.plan = plan
        answers = [x.new_zeros(r.shape, dtype=plan.dtype) for r in plan.rows]
        for rows in plan.spans():
            if not rows.numel():
                continue
            tile = _open_tile(plan, rows, x, weight, bias)
            for i, request in enumerate(plan.requests):
                span, _, arguments = tile.answer(i)
                answers[i][span] = request.statistic.value(*arguments)
        return tuple(answers)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        gradients = _Gradients(x, weight, bias, ctx.needs_input_grad, ctx.plan)
        for rows in ctx.plan.spans():
            if not rows.numel():
                continue
            tile = _open_tile(ctx.plan, rows, x, weight, bias)
            spans = [tile.answer(i)[0] for i in range(len(cotangents))]
            gradients.add(
                tile, tile.pullback([None if c is None else c[s] for c, s in zip(cotangents, spans, strict=True)])
            )
        return *gradients.result(), None


class _Fused(torch.autograd.Function):
    """Loss and gradients are formed in the forward pass; backward only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: _Plan, objective: RowObjective
    ) -> Tensor:
        gradients = _Gradients(x, weight, bias, ctx.needs_input_grad, plan)
        total = x.new_zeros((), dtype=plan.dtype)
        for rows in plan.spans():
            if not rows.numel():
                continue
            tile = _open_tile(plan, rows, x, weight, bias)
            spans, values = [], []
            for i, request in enumerate(plan.requests):
                span, _, arguments = tile.answer(i)
                spans.append(span)
                values.append(request.statistic.value(*arguments))
            with torch.enable_grad():
                leaves = [v.detach().requires_grad_() for v in values]
                loss = objective(leaves, spans)
                cotangents = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else ()
            total += loss.detach().to(total.dtype)
            if cotangents and any(ctx.needs_input_grad[:3]):
                gradients.add(tile, tile.pullback(cotangents))
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.gradients.result(upstream[0]), None, None


def drawn_rows(scores: Dense | Hidden, tile: int | None = None, tau: float = 1.0) -> Tensor:
    """One id of each row, sampled from its distribution at a temperature, int64 ``[N, 1]``."""
    x, weight, bias, plan = _plan(scores, torch.zeros(0, dtype=torch.int64), [], tile)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows = torch.arange(x.shape[0], device=x.device).split(plan.tile)
        probs = (_logits(x[r], weight, bias, plan.scale, plan.softcap, plan.dtype).div(tau).softmax(-1) for r in rows)
        ids = [torch.multinomial(p, 1) for p in probs if p.numel()]
    return torch.cat(ids) if ids else torch.zeros(0, 1, dtype=torch.int64, device=x.device)


def top_k_rows(scores: Dense | Hidden, k: int, tile: int | None = None, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k likeliest ids of each row and their log-probs over the full vocabulary, without gradient.

    The log-probs are those of ``softmax(logits / tau)``.

    Returns:
        ``ids_NK`` int64 and ``logp_NK`` in the accumulation dtype, likeliest first.
    """
    x, weight, bias, plan = _plan(scores, torch.zeros(0, dtype=torch.int64), [], tile)
    ids, logps = [], []
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for rows in torch.arange(x.shape[0], device=x.device).split(plan.tile):
            logq = _logits(x[rows], weight, bias, plan.scale, plan.softcap, plan.dtype).div(tau).log_softmax(-1)
            top = logq.topk(min(k, plan.vocabulary), dim=-1)
            ids.append(top.indices)
            logps.append(top.values)
    return torch.cat(ids), torch.cat(logps)
