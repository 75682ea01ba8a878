"""The algebra of terms: what adds inside a surrogate, what adds outside, and what a route shares."""

from __future__ import annotations

import pytest
import torch

import limbeck as lb
from laws.cases import changed, make
from limbeck.axes import (
    anneal,
    cispo,
    clip,
    column,
    contrast,
    correct,
    divergence_loss,
    entropy,
    fixed,
    group_advantage,
    group_mean,
    label,
    linear,
    log_ratio,
    logp,
    pairs,
    policy,
    position,
    ratio,
    ref,
    reinforce,
    sample,
    sampled,
    sequence_mean,
    sequence_sum,
    teacher,
    token_mean,
    token_sum,
    where,
)
from limbeck.axes.reduction import Reduction
from limbeck.axes.surrogate import Surrogate
from limbeck.math.divergence import rkl
from limbeck.space.method import Method
from limbeck.space.term import Sum, Term, routed

CLOSE = {"rtol": 1e-11, "atol": 1e-13}
CASE = make(seed=3)
S = sample(n=2)
A = group_advantage()
REDUCTIONS = [token_mean, sequence_mean, sequence_sum, token_sum, fixed(9)]


def of(terms: Term | Sum, reduction: Reduction = token_mean, source: object = S) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of terms on the common off-policy batch."""
    return CASE.value_and_grad(Method(source, terms, reduction))


def equal(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.testing.assert_close(a, b, **CLOSE)


def differ(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert (a[1] - b[1]).abs().max() > 1e-4


# ---------------------------------------------------------------- routes and gates

TERMS = {
    "policy": Term(A, clip(0.2)),
    "distil": Term(teacher, divergence_loss(rkl)),
    "sampled": Term(logp(teacher), sampled("k2")),
    "gated": Term(logp(teacher), sampled("k3"), where=position > 1),
    "weighed": Term(log_ratio(teacher), ratio, weight=entropy(teacher)),
    "by sequence": Term(A, clip(3e-4, pool="sequence")),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_routing_a_term_to_itself_is_the_term(name: str, reduction: Reduction) -> None:
    """``routed(z, t, t) == t``; both halves share one denominator, that of all tokens."""
    t = TERMS[name]
    whole = Term(t.signal, t.surrogate, t.where, t.weight, per="all")
    equal(of(routed(correct, t, t), reduction), of(whole, reduction))
    if name != "gated":
        equal(of(routed(correct, t, t), reduction), of(t, reduction))


@pytest.mark.parametrize("reduction", [token_mean, sequence_mean], ids=str)
def test_two_gates_with_their_own_denominators_are_no_route(reduction: Reduction) -> None:
    """False for two ``kept`` gates."""
    t = Term(logp(teacher), sampled("k2"))
    halves = Term(t.signal, t.surrogate, correct) + Term(t.signal, t.surrogate, ~correct)
    differ(of(halves, reduction), of(t, reduction))


def test_a_gate_removes_rows_and_a_weight_does_not() -> None:
    """``where`` leaves the denominator of a kept term, ``weight`` stays in it."""
    gate = where(correct, 1.0, 0.0)
    k2 = logp(teacher), sampled("k2")
    differ(of(Term(*k2, where=correct)), of(Term(*k2, weight=gate)))
    equal(of(Term(*k2, where=correct, per="all")), of(Term(*k2, weight=gate)))
    equal(of(Term(*k2, where=correct)), of(Term(*k2, weight=gate, per="weight")))


def test_a_scaled_weight_that_counts_cancels() -> None:
    """``per="weight"`` divides by the sum of weights."""
    k2 = logp(teacher), sampled("k2")
    equal(
        of(Term(*k2, weight=7.0 * entropy(teacher), per="weight")), of(Term(*k2, weight=entropy(teacher), per="weight"))
    )


def test_coefficients_scale_after_division_and_distribute() -> None:
    """``c * (Term + Term)`` distributes; a scaled sum is the sum of the scaled."""
    a, b = TERMS["policy"], TERMS["sampled"]
    equal(of(0.3 * (a + b)), of(0.3 * a + 0.3 * b))
    assert Method(S, 0.5 * (a + 2 * b)) == Method(S, 0.5 * a + 1.0 * b)
    assert Method(S, a + 0 * b) == Method(S, a)
    la, lb_ = of(a), of(b)
    equal(of(2 * a + 3 * b), (2 * la[0] + 3 * lb_[0], 2 * la[1] + 3 * lb_[1]))


def test_schedules_scale_a_term_at_their_step() -> None:
    """A time gate changes c only, never Z."""
    t = TERMS["sampled"]
    for schedule in (anneal(5e-3, 1e-3, 5e-5), linear(1.0, 0.0, 10), 0.5 * 1.0):
        for step in (0, 7, 80):
            m = Method(S, schedule * t)
            c = schedule if isinstance(schedule, float) else schedule.at(step)
            value, unit = CASE.loss(m, step=step), CASE.loss(Method(S, t))
            torch.testing.assert_close(value, c * unit, **CLOSE)


# ---------------------------------------------------------------- inside and outside

SURROGATES: dict[str, Surrogate] = {
    "reinforce": reinforce,
    "ratio": ratio,
    "cispo": cispo(0.2, 0.2),
    "ratio by sequence": policy("ratio", pool="sequence"),
    "clip": clip(0.2),
    "gspo": clip(0.1, pool="sequence"),
}


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_inside_equals_outside_where_a_surrogate_says_it_is_linear(name: str, reduction: Reduction) -> None:
    """Signals add before a linear surrogate as losses add after; not so for a clip."""
    s, beta = SURROGATES[name], 0.7
    inside = of(Term(A + beta * log_ratio(teacher), s), reduction)
    outside = of(Term(A, s) + beta * Term(log_ratio(teacher), s), reduction)
    (equal if s.linear else differ)(inside, outside)


@pytest.mark.parametrize("name", ["clip", "gspo"])
def test_clip_is_positively_homogeneous(name: str) -> None:
    """``c * Term(A, clip) = Term(c * A, clip)`` for c > 0, not for c < 0."""
    s = SURROGATES[name]
    equal(of(2.5 * Term(A, s)), of(Term(2.5 * A, s)))
    differ(of(-1.0 * Term(A, s)), of(Term(-1.0 * A, s)))


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_contrast_is_linear_in_its_distribution(margin: float) -> None:
    """Linear in q unless a margin moves with it."""
    s = contrast(2.0, ref, margin)
    inside = of(Term(label + column("told"), s), group_mean, pairs())
    outside = of(Term(label, s) + Term(column("told"), s), group_mean, pairs())
    assert s.linear == (margin == 0)
    (equal if s.linear else differ)(inside, outside)


def test_sampled_losses_are_not_linear() -> None:
    """Neither is a signal times a log-prob, so signals inside do not add like losses outside."""
    assert not sampled("k2").linear
    assert not divergence_loss(rkl).linear


def test_every_policy_kind_has_the_gradient_of_a_detached_coefficient() -> None:
    """In gradient each kind is ``reinforce`` told rho A [not clipped].

    PPO drops a clipped token, CISPO keeps it with the capped weight.
    """
    now = CASE.logits.log_softmax(-1).gather(-1, CASE.tokens[..., None])[..., 0]
    case = changed(CASE, old_logp=now + 3 * (CASE.given["old_logp"] - now))
    rho = (now - case.given["old_logp"]).exp()
    pairs_of_rewards = case.given["reward"].view(-1, 2)
    centred = pairs_of_rewards - pairs_of_rewards.mean(1, keepdim=True)
    told = (centred / (pairs_of_rewards.std(1, keepdim=True) + 1e-6)).view(-1, 1).expand_as(rho)
    kept = torch.where(told > 0, rho <= 1.28, rho >= 0.8)
    below = (told > 0) | (rho <= 1.5)
    assert {True, False} <= set(kept[case.mask].tolist())
    assert {True, False} <= set(below[case.mask].tolist())
    coefficients = {
        ratio: rho * told,
        clip(0.2, 0.28): rho * told * kept,
        cispo(0.2, 0.28): rho.clamp(0.8, 1.28) * told,
        clip(0.2, 0.28, dual=1.5): rho * told * kept * below,
        clip(0.2, 0.28, cap=1.5): rho * told * kept * below,
    }
    for surrogate, coefficient in coefficients.items():
        prepared = Method(S, Term(column("told", "token"), reinforce))
        want = case.value_and_grad(prepared, columns={"told": coefficient})[1]
        got = case.value_and_grad(Method(S, Term(A, surrogate)))[1]
        torch.testing.assert_close(got, want, **CLOSE)


def test_gspo_is_a_detached_coefficient_too() -> None:
    """s_i A_i times the mean of the sequence's grad log pi, while s_i is inside."""
    now = CASE.logits.log_softmax(-1).gather(-1, CASE.tokens[..., None])[..., 0]
    gap = torch.where(CASE.mask, now - CASE.given["old_logp"], torch.zeros_like(now))
    s = (gap.sum(-1) / CASE.mask.sum(-1)).exp()
    A_B = torch.linspace(-1, 1, len(s), dtype=torch.float64)
    kept = torch.where(A_B > 0, s <= 1.05, s >= 0.95)
    assert {True, False} == set(kept.tolist())
    m = Method(S, Term(column("told"), clip(0.05, pool="sequence")), sequence_mean)
    want = Method(S, Term(column("told"), reinforce), sequence_mean)
    got = CASE.value_and_grad(m, columns={"told": A_B})[1]
    torch.testing.assert_close(got, CASE.value_and_grad(want, columns={"told": s * A_B * kept})[1], **CLOSE)


# ---------------------------------------------------------------- reductions


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_reductions_are_what_they_say(reduction: Reduction) -> None:
    """Compared with a loop over sequences."""
    nll = -CASE.logits.log_softmax(-1).gather(-1, CASE.tokens[..., None])[..., 0]
    losses = [row[keep] for row, keep in zip(nll, CASE.mask, strict=True)]
    want = {
        "token_mean": torch.cat(losses).mean(),
        "sequence_mean": torch.stack([x.mean() for x in losses]).mean(),
        "sequence_sum": torch.stack([x.sum() for x in losses]).mean(),
        "token_sum": torch.cat(losses).sum(),
        "fixed(9)": torch.stack([x.sum() for x in losses]).mean() / 9,
    }[str(reduction)]
    torch.testing.assert_close(of(Term(lb.axes.everywhere, reinforce), reduction)[0], want, **CLOSE)
