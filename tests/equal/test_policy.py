"""Published coincidences of the policy-gradient family."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import Case, changed, make
from limbeck.axes import (
    cispo,
    clip,
    column,
    everywhere,
    fixed,
    group_advantage,
    importance,
    old,
    policy,
    ratio,
    reinforce,
    reward,
    sample,
    score,
    sequence_mean,
    sequence_sum,
    standardise,
    student,
    token_mean,
)
from limbeck.axes.surrogate import Surrogate
from limbeck.methods.reward import overlong
from limbeck.space.method import Method
from limbeck.space.term import Term

CLOSE = {"rtol": 1e-10, "atol": 1e-13}
S, A = sample(n=8), group_advantage()
grpo, gspo, dr_grpo, dapo = lb.methods.grpo, lb.methods.gspo, lb.methods.dr_grpo, lb.methods.dapo


def case(off_policy: bool = False, **given: Tensor) -> Case:
    return changed(make(seed=21, off_policy=off_policy), **given)


def grad(c: Case, m: Method) -> Tensor:
    return c.value_and_grad(m)[1]


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, **CLOSE)


def differ(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() > 1e-5


def told(surrogate: Surrogate) -> Method:
    return Method(S, Term(A, surrogate), sequence_mean)


# ---------------------------------------------------------------- one gradient, many names


@pytest.mark.parametrize(
    "m",
    [told(clip(0.2)), told(ratio), told(cispo()), told(cispo(0.2, 0.2)), told(clip(0.2, dual=3.0)), gspo()],
    ids=["ppo", "ratio", "cispo", "cispo two-sided", "dual clip", "gspo"],
)
def test_on_policy_all_are_reinforce(m: Method) -> None:
    """rho = 1 gives -A grad log pi for all of them; GSPO's is GRPO's with a sequence mean."""
    equal(grad(case(), m), grad(case(), told(reinforce)))
    equal(grad(case(), m), grad(case(), grpo(ref_coef=0)))


def test_off_policy_unclipped_all_coincide() -> None:
    """rho A grad log pi while no clip is active."""
    want = grad(case(True), told(ratio))
    for surrogate in (clip(50.0), cispo(hi=1e9), clip(50.0, dual=1e9)):
        equal(grad(case(True), told(surrogate)), want)
    weighed = Method(S, Term(A, reinforce, weight=importance(student, old)), sequence_mean)
    equal(grad(case(True), weighed), want)


def test_off_policy_clipped_they_differ() -> None:
    """PPO drops the clipped token's gradient, CISPO keeps it with the capped weight."""
    differ(grad(case(True), told(clip(0.1))), grad(case(True), told(cispo(0.1, 0.1))))
    differ(grad(case(True), told(clip(0.1))), grad(case(True), told(ratio)))
    differ(grad(case(True), told(reinforce)), grad(case(True), told(ratio)))


def test_gspo_differs_off_policy() -> None:
    """Its ratio is the sequence's geometric mean."""
    free = Method(S, Term(A, clip(50.0, pool="sequence")), sequence_mean)
    differ(grad(case(True), free), grad(case(True), told(ratio)))
    equal(grad(case(True), free), grad(case(True), Method(S, Term(A, policy("ratio", pool="sequence")), sequence_mean)))


def test_gspo_of_one_token_is_grpo_off_policy() -> None:
    """The mean over one token is that token."""
    first = torch.zeros_like(case().mask)
    first[:, 0] = True
    equal(
        grad(case(True, mask=first), gspo(clip_low=0.2, clip_high=0.2)), grad(case(True, mask=first), grpo(ref_coef=0))
    )


def test_policy_gradient_methods_equal_their_formulas() -> None:
    """Compared as values."""
    assert grpo(ref_coef=0) == told(clip(0.2))
    assert dr_grpo() == Method(S, Term(group_advantage(scale=False), clip(0.2)), fixed(3000))
    assert grpo(ref_coef=0, reduction="token_mean").parts == Method(S, Term(A, clip(0.2)), token_mean).parts
    assert gspo() == Method(S, Term(A, clip(3e-4, 4e-4, pool="sequence")), sequence_mean)
    assert dapo().parts == Method(S, Term(A, clip(0.2, 0.28)), token_mean).parts


# ---------------------------------------------------------------- baselines


def advantages(c: Case, of: object = A) -> Tensor:
    """The signal of each sequence."""
    _, prepared, _ = c.prepared(Method(S, Term(of, reinforce)))
    return prepared.known[of]


def test_a_group_of_two_pins_the_unbiased_std() -> None:
    """G = 2, rewards {0, 1}: A = -/+ 0.7071; the population std would give 1."""
    c = case(reward=torch.tensor([0.0, 1.0] * 4).double())
    want = torch.tensor([-1.0, 1.0] * 4).double() / math.sqrt(2)
    torch.testing.assert_close(advantages(c), want, rtol=0, atol=2e-6)


def test_leave_one_out_is_a_multiple_of_dr_grpo() -> None:
    """r_i - mean of the others = n/(n-1) (r_i - mean), with groups of four."""
    c = case(group=torch.arange(8) // 4)
    r = c.given["reward"]
    loo = torch.stack([r[i] - r[[j for j in range(8) if j // 4 == i // 4 and j != i]].mean() for i in range(8)])
    equal(4 / 3 * advantages(c, group_advantage(scale=False)), loo)


def test_shift_and_scale_of_rewards() -> None:
    """Every group baseline ignores a shift; only the standardised one ignores a scale (up to eps)."""
    c = case()
    shifted = changed(c, reward=c.given["reward"] + 5)
    scaled = changed(c, reward=3 * c.given["reward"])
    for m in (grpo(ref_coef=0), dr_grpo(), gspo(), dapo(group=8)):
        torch.testing.assert_close(grad(shifted, m), grad(c, m), rtol=1e-8, atol=1e-12)
    exact = Method(S, Term(group_advantage(eps=0.0), clip(0.2)))
    equal(grad(scaled, exact), grad(c, exact))
    torch.testing.assert_close(grad(scaled, grpo(ref_coef=0)), grad(c, grpo(ref_coef=0)), rtol=1e-3, atol=1e-9)
    equal(grad(scaled, dr_grpo()), 3 * grad(c, dr_grpo()))


@pytest.mark.parametrize("reward_of_all", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_have_no_advantage(reward_of_all: float) -> None:
    """All-equal rewards give A = 0, also for numbers that do not add up exactly, in groups of four."""
    for dtype in (torch.float64, torch.float32):
        c = case(reward=torch.full((8,), reward_of_all, dtype=dtype), group=torch.arange(8) // 4)
        for scale in (True, False):
            assert (advantages(c, group_advantage(scale=scale)) == 0).all()


def test_a_group_of_one_has_no_advantage() -> None:
    """The std of a single value is 0 (verl: mean 0, std 1)."""
    assert (advantages(case(group=torch.arange(8))) == 0).all()


def test_reward_is_summed_over_turns() -> None:
    """``score`` is the total of turn rewards; one turn each here."""
    equal(advantages(case(), score), case().given["reward"])
    assert score == reward.total


def test_batch_standardisation_spans_groups() -> None:
    """Whitened over the global batch."""
    r = case().given["reward"]
    want = (r - r.mean()) / (r.std() + 1e-8)
    equal(advantages(case(), standardise(score, "batch")), want)
    right = case().given["correct"].double()
    only = standardise(score, "batch", where=lb.axes.correct)
    kept = r[right.bool()]
    equal(advantages(case(), only), (r - kept.mean()) / (kept.std() + 1e-8))


# ---------------------------------------------------------------- aggregation


def test_equal_lengths_make_all_reductions_one() -> None:
    """Token mean = sequence mean = sequence sum / L = (L_max / L) * fixed(L_max)."""
    c = case(True, mask=torch.ones_like(case().mask))
    L, L_max = 4, 10
    t = Term(A, clip(0.2))
    mean = grad(c, Method(S, t, token_mean))
    equal(grad(c, Method(S, t, sequence_mean)), mean)
    equal(grad(c, Method(S, t, sequence_sum)) / L, mean)
    equal(grad(c, Method(S, t, fixed(L_max))) * L_max / L, mean)
    equal(grad(c, Method(S, t, lb.axes.budget(32))), mean)
    equal(grad(c, Method(S, t, lb.axes.token_sum)) / 32, mean)


def test_unequal_lengths_make_the_reductions_differ() -> None:
    """Otherwise the test of equal lengths could not fail."""
    t = Term(A, clip(0.2))
    by = [grad(case(), Method(S, t, r)) for r in (token_mean, sequence_mean, fixed(4))]
    for i in range(3):
        differ(by[i], by[i - 1])


def test_short_right_answers_weigh_more_in_a_sequence_mean() -> None:
    """Dr. GRPO's remark: a sequence mean divides by the length, a constant does not."""
    c = case()
    per_sequence = {r: grad(c, Method(S, Term(everywhere, reinforce), r)).abs() for r in (sequence_mean, fixed(1))}
    norm = per_sequence[fixed(1)].sum((1, 2)) / per_sequence[sequence_mean].sum((1, 2))
    equal(norm, c.mask.sum(-1).double())


# ---------------------------------------------------------------- DAPO


def test_overlong_penalty_is_piecewise_linear() -> None:
    """0 up to L_max - L_c, linear inside, -1 beyond L_max."""
    penalty = overlong(20480, 4096)
    for n, want in ((1, 0.0), (16384, 0.0), (17408, -0.25), (18432, -0.5), (20480, -1.0), (30000, -1.0)):
        assert _penalty(penalty, n) == pytest.approx(want, abs=1e-12)


def _penalty(penalty: object, n: int) -> float:
    """Evaluate on one sequence of n tokens."""
    m = Method(sample(), Term(penalty, reinforce), lb.axes.token_sum)
    logp = torch.full((1, n), -1.0, dtype=torch.float64, requires_grad=True)
    lb.objective(m)(student_logp=logp, reward=torch.zeros(1).double()).loss.backward()
    return -float(logp.grad[0, 0])  # reinforce: d loss / d logp = -A


def test_overlong_penalty_joins_the_reward_before_the_group() -> None:
    """Shaped score, then standardised."""
    c = case()
    lengths = c.mask.sum(-1).double()
    shaped = changed(c, reward=c.given["reward"] + ((4 - 2 - lengths) / 2).clamp(-1, 0))
    equal(grad(c, dapo(max_length=4, buffer=2)), grad(shaped, dapo()))
    differ(grad(c, dapo(max_length=4, buffer=2)), grad(c, dapo()))
    equal(grad(c, dapo(max_length=100, buffer=2)), grad(c, dapo()))


def test_dapo_is_grpo_with_its_own_switches() -> None:
    """Token mean, a higher upper clip, no reference."""
    m = dapo(clip_high=0.2)
    equal(grad(case(True), m), grad(case(True), grpo(ref_coef=0, reduction="token_mean")))


def test_dapo_drops_groups_that_agree() -> None:
    """This is its dynamic sampling; the condition belongs to the source."""
    until = dapo().sources["main"].until
    correct = torch.tensor([1, 1, 0, 0, 1, 0, 0, 1]).bool()
    _, prepared, _ = case(correct=correct).prepared(Method(S, Term(A, clip(0.2), where=until)))
    kept = prepared.known[until]
    assert kept.tolist() == [False, False, True, True]


def test_dr_grpo_is_centred_grpo_over_a_constant() -> None:
    """Neither the group's std nor the response length divides anything."""
    c = case(True)
    r = c.given["reward"].view(-1, 2)
    centred = (r - r.mean(1, keepdim=True)).flatten()
    m = Method(S, Term(column("told"), clip(0.2)), sequence_sum)
    want = c.value_and_grad(m, columns={"told": centred})[1] / 3000
    equal(grad(c, dr_grpo()), want)


def test_reference_term_is_k3() -> None:
    """e^D - D - 1 with D = log pi_ref - log pi, times beta."""
    c = case(reward=torch.zeros(8).double())
    D = (c.given["ref_logits"].log_softmax(-1) - c.logits.log_softmax(-1)).gather(-1, c.tokens[..., None])[..., 0]
    k3 = D.exp() - D - 1
    rows = [(k * m).sum() / m.sum() for k, m in zip(k3, c.mask, strict=True)]
    equal(c.loss(grpo(ref_coef=0.5)), 0.5 * torch.stack(rows).mean())
