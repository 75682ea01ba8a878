"""Special cases and limits of the divergence table, on random distributions of seven entries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limbeck.math.divergence import (
    Divergence,
    alpha,
    as_divergence,
    chi2,
    fkl,
    hellinger,
    jsd,
    neyman_chi2,
    renyi,
    rkl,
    skew_fkl,
    skew_rkl,
    tv,
)
from tabular import DIVERGENCES

GEN = torch.Generator().manual_seed(51)
LOGQ, LOGP = torch.randn(2, 16, 7, dtype=torch.float64, generator=GEN).log_softmax(-1)
CLOSE = {"rtol": 1e-11, "atol": 1e-13}
EVERY = pytest.mark.parametrize("name", DIVERGENCES)
F_ROWS = pytest.mark.parametrize("name", [n for n in DIVERGENCES if not n.startswith("renyi")])


def value(row: Divergence, q: Tensor = LOGQ, p: Tensor = LOGP) -> Tensor:
    return row.value(q, p)


def equal(a: Tensor, b: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, **(tolerance or CLOSE))


@EVERY
def test_value_is_the_formula_in_probabilities(name: str) -> None:
    """Compared with ``tabular.DIVERGENCES``, which is written in plain probabilities."""
    equal(value(as_divergence(name)), DIVERGENCES[name](LOGQ.exp(), LOGP.exp()))


@EVERY
def test_flow_is_autograd(name: str) -> None:
    """d D / d z = flow - q sum(flow), against autograd of the plain formula."""
    z = LOGQ.clone().requires_grad_()
    want = torch.autograd.grad(DIVERGENCES[name](z.softmax(-1), LOGP.exp()).sum(), z)[0]
    flow = as_divergence(name).flow(LOGQ, LOGP)
    equal(flow - LOGQ.exp() * flow.sum(-1, keepdim=True), want)


@F_ROWS
def test_slope_is_the_derivative_of_the_generator(name: str) -> None:
    """f' of f, f(1) = 0, and D = sum p f(q/p)."""
    row = as_divergence(name)
    log_u = torch.tensor([-1.3, -0.2, 0.4, 1.1], dtype=torch.float64)
    u = log_u.exp().requires_grad_()
    equal(torch.autograd.grad(row.generator(u.log()).sum(), u)[0], row.slope(log_u))
    assert float(row.generator(torch.zeros((), dtype=torch.float64))) == pytest.approx(0, abs=1e-14)
    equal((LOGP.exp() * row.generator(LOGQ - LOGP)).sum(-1), value(row))


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if not n.startswith(("renyi", "jsd", "skew_rkl"))])
def test_potential_integrates_the_slope(name: str) -> None:
    """f'(u) = u h'(u), up to a constant without gradient."""
    row = as_divergence(name)
    log_u = torch.tensor([-1.3, -0.2, 0.4, 1.1], dtype=torch.float64, requires_grad=True)
    derivative = torch.autograd.grad(row.potential(log_u).sum(), log_u)[0]
    gap = derivative - row.slope(log_u.detach())
    equal(gap, gap[0].expand_as(gap))


@EVERY
def test_zero_at_the_teacher_and_positive_elsewhere(name: str) -> None:
    """q = p gives 0 with zero gradient for all."""
    row = as_divergence(name)
    equal(value(row, LOGP, LOGP), torch.zeros(16, dtype=torch.float64))
    flow = row.flow(LOGP, LOGP)
    equal(flow - LOGP.exp() * flow.sum(-1, keepdim=True), torch.zeros_like(LOGP))
    assert (value(row) > 0).all()


def test_alpha_family() -> None:
    """alpha -> 1 RKL, -> 0 FKL, 1/2 = 4 Hellinger^2, 2 = chi2/2, -1 = Neyman/2."""
    equal(value(alpha(1 - 1e-7)), value(rkl), rtol=1e-5, atol=0)
    equal(value(alpha(1e-7)), value(fkl), rtol=1e-5, atol=0)
    equal(value(alpha(0.5)), 4 * value(hellinger))
    equal(value(alpha(2.0)), value(chi2) / 2)
    equal(value(alpha(-1.0)), value(neyman_chi2) / 2)
    equal(value(alpha(0.3), LOGQ, LOGP), value(alpha(0.7), LOGP, LOGQ))


def test_renyi_family() -> None:
    """Order -> 1 is RKL; Renyi = log(1 + a(a-1) D_alpha) / (a-1)."""
    equal(value(renyi(1 + 1e-7)), value(rkl), rtol=1e-5, atol=0)
    for a in (0.5, 2.0, 3.0):
        equal(value(renyi(a)), (1 + a * (a - 1) * value(alpha(a))).log() / (a - 1))


def test_jsd_family() -> None:
    """JSD/beta -> FKL, JSD/(1-beta) -> RKL; JSD(1/2) symmetric and at most log 2."""
    eps = 1e-5
    equal(value(jsd(eps)) / eps, value(fkl), rtol=1e-3, atol=0)
    equal(value(jsd(1 - eps)) / eps, value(rkl), rtol=1e-3, atol=0)
    equal(value(jsd(0.5)), value(jsd(0.5), LOGP, LOGQ))
    assert (value(jsd(0.5), (60 * LOGQ).log_softmax(-1), (60 * LOGP).log_softmax(-1)) <= math.log(2) + 1e-12).all()
    equal(value(jsd(0.3)), value(jsd(0.7), LOGP, LOGQ))


def test_skew_family() -> None:
    """alpha -> 0 is unskewed; skew RKL is skew FKL with the roles exchanged."""
    equal(value(skew_fkl(1e-8)), value(fkl), rtol=1e-6, atol=0)
    equal(value(skew_rkl(1e-8)), value(rkl), rtol=1e-6, atol=0)
    equal(value(skew_fkl(0.2)), value(skew_rkl(0.2), LOGP, LOGQ))


@pytest.mark.parametrize(("there", "back"), [(rkl, fkl), (chi2, neyman_chi2), (tv, tv), (hellinger, hellinger)])
def test_pairs_that_exchange_the_roles(there: Divergence, back: Divergence) -> None:
    """Which side is which, tested with asymmetric inputs."""
    equal(value(there), value(back, LOGP, LOGQ))
    if there != back:
        assert (value(there) - value(there, LOGP, LOGQ)).abs().min() > 1e-6


def test_bounded_advantages_stay_in_their_range() -> None:
    """TV +-1/2; skew FKL in (0, (1-a)/a] before centring; JSD bounded below."""
    log_u = torch.linspace(-80, 80, 321, dtype=torch.float64)
    assert set(tv.advantage(log_u).tolist()) == {-0.5, 0.0, 0.5}
    skew = -skew_fkl(0.1).slope(log_u)
    assert ((skew > 0) & (skew <= 9 + 1e-9)).all()
    assert (-jsd(0.3).slope(log_u) >= -0.7 * math.log(1 / 0.7) - 1e-12).all()


@F_ROWS
def test_everything_is_finite_in_float32_at_any_log_ratio(name: str) -> None:
    """Log-ratios of +-1e4 (a token the other side excludes) give numbers."""
    row = as_divergence(name)
    log_u = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    faces = [row.slope, row.advantage, row.generator]
    faces += [] if name.startswith(("jsd", "skew_rkl")) else [row.potential]
    for face in faces:
        assert face(log_u).isfinite().all(), face
