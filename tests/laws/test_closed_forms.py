"""Closed forms equal autograd of their values, for every question of every method; what has none falls back on it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from laws.cases import VARIANTS, make
from limbeck.errors import LimbeckError
from limbeck.kernels.tiles import StatisticRequest, _open_tile, _plan, fused, statistics
from limbeck.math.divergence import RKL, Divergence
from limbeck.math.statistic import Distance, LogProb
from limbeck.space.method import Method
from limbeck.types import Dense

core = importlib.import_module("limbeck.loss.terms")  # the attribute of that name is the function


def pulls(ask: StatisticRequest, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of an answer by the logits: through the kernel, and through autograd of the value alone."""
    weight = torch.linspace(0.5, 1.5, rows.shape[0] if ask.rows is None else ask.rows.numel(), dtype=rows.dtype)
    leaf = rows.detach().clone().requires_grad_()
    closed = torch.autograd.grad((statistics(Dense(leaf), labels, [ask])[0] * weight).sum(), leaf)[0]
    free = rows.detach().clone().requires_grad_()
    x, head, bias, plan = _plan(Dense(rows.detach()), labels, [ask], 10**6)
    _, local, (_, label, target) = _open_tile(plan, plan.wanted, x, head, bias).answer(0)
    logq = (free[plan.wanted] / ask.tau).log_softmax(-1)
    values = ask.statistic.value(logq if local is None else logq[local], label, target)
    if not values.requires_grad:
        return closed, torch.zeros_like(rows)
    return closed, torch.autograd.grad((values * weight).sum(), free)[0]


def questions(m: Method) -> tuple[list[StatisticRequest], Tensor, Tensor]:
    """Every question that a method's terms ask of the live student, with its rows and labels."""
    m, prepared, live = make().prepared(m)
    asks = core._StatisticRequests(prepared, live)
    for part in prepared.parts:
        core._TermLoss(part, prepared, asks)
    return asks.requests, live.logits_NV, prepared.record.token_N


@pytest.mark.parametrize("m", VARIANTS.values(), ids=VARIANTS)
def test_the_closed_form_of_every_question_is_autograd_of_its_value(m: Method) -> None:
    """A flow that is wrong by a factor would pass every law that compares the library with itself."""
    asks, rows, labels = questions(m)
    assert asks
    for ask in asks:
        closed, by_autograd = pulls(ask, rows, labels)
        torch.testing.assert_close(closed, by_autograd, rtol=1e-9, atol=1e-11)


def test_a_wrong_flow_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above fails where a flow is wrong by a factor of -3."""
    right = LogProb.flow
    monkeypatch.setattr(LogProb, "flow", lambda *a: -3 * right(*a))
    closed, by_autograd = pulls(StatisticRequest(LogProb()), *(x[:4] for x in questions(VARIANTS["sft"])[1:]))
    torch.testing.assert_close(closed, -3 * by_autograd)


@dataclass(frozen=True)
class Plain(Divergence):
    """Reverse KL as a user writes it: the cells alone."""

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return RKL().cells(logq, logp)


@dataclass(frozen=True)
class Bare:
    """The log-prob of the label, without a closed form."""

    def value(self, logq: Tensor, label: Tensor, target: Any) -> Tensor:
        return LogProb().value(logq, label, target)


@dataclass(frozen=True)
class Refusing(Bare):
    """The same, with a closed form that is not written."""

    def flow(self, logq: Tensor, label: Tensor, target: Any) -> Tensor:
        raise NotImplementedError


PAIRS = {
    "a divergence": (Distance(Plain()), Distance(RKL())),
    "a statistic": (Bare(), LogProb()),
    "a statistic that refuses": (Refusing(), LogProb()),
}


@pytest.mark.parametrize("way", ["general", "fused"])
@pytest.mark.parametrize("name", PAIRS)
def test_what_has_no_closed_form_falls_back_on_autograd(name: str, way: str) -> None:
    """Value and gradient of the closed form, at a temperature, in tiles, on some rows, with an excluded entry."""
    gen = torch.Generator().manual_seed(3)
    z, p = torch.randn(2, 6, 7, dtype=torch.float64, generator=gen)
    z[:, -1], p[:, -1] = -torch.inf, -torch.inf
    labels, rows = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 2, 3, 5])
    found = []
    for statistic in PAIRS[name]:
        ask = StatisticRequest(statistic, rows, Dense(p), 2.0)
        leaf = z.clone().requires_grad_()
        if way == "general":
            loss = statistics(Dense(leaf), labels, [ask], tile=2)[0].square().sum()
        else:
            loss = fused(Dense(leaf), labels, [ask], lambda values, spans: values[0].square().sum(), tile=2)
        found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1].abs().sum() > 0


def test_a_divergence_of_cells_alone_has_its_advantage_and_a_value_alone_says_what_it_lacks() -> None:
    """Reverse KL by its cells has the slope and the estimate of the one with closed forms."""
    log_u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    for of in ("slope", "advantage", "estimate"):
        torch.testing.assert_close(getattr(Plain(), of)(log_u), getattr(RKL(), of)(log_u))

    class Whole(Divergence):
        def value(self, logq: Tensor, logp: Tensor) -> Tensor:
            return (logq.exp() * (logq - logp)).sum(-1).square()

    with pytest.raises(LimbeckError, match=r"has no f\(u\), which its advantage needs"):
        Whole().advantage(log_u)
