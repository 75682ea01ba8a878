"""Published identities of KDRL (arXiv:2506.02208), and where related methods differ from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import Case, changed, make
from limbeck.axes import (
    clip,
    group_advantage,
    log_ratio,
    logp,
    ratio,
    sampled,
    sequence_mean,
    student,
    teacher,
    token_mean,
)
from limbeck.axes.source import sample
from limbeck.methods.joint import ANNEALED
from limbeck.space.method import Method
from limbeck.space.registry import Recipe
from limbeck.space.term import Term

CLOSE = {"rtol": 1e-10, "atol": 1e-13}
kdrl, shaping, kdrl_reward, grpo = lb.methods.kdrl, lb.methods.kdrl_shaping, lb.methods.kdrl_reward, lb.methods.grpo
S = sample(student, 8)
K2, K3 = Term(logp(teacher), sampled("k2")), Term(logp(teacher), sampled("k3"))
PG = Term(log_ratio(teacher), ratio)


def case(off_policy: bool = False, **given: Tensor) -> Case:
    return changed(make(seed=11, off_policy=off_policy), **given)


def grad(c: Case, m: Method, step: int = 0) -> Tensor:
    return c.value_and_grad(m, step=step)[1]


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, **CLOSE)


def differ(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() > 1e-5


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("form", [kdrl, shaping], ids=["joint", "shaping"])
def test_kdrl_with_beta_zero_is_grpo(form: Recipe, reduction: str) -> None:
    """They are the same value, so loss, gradient and needs are the same."""
    assert form(coef=0, reduction=reduction) == grpo(ref_coef=0, reduction=reduction)
    assert kdrl_reward(coef=0) == grpo(ref_coef=0, reduction="token_mean")


@pytest.mark.parametrize("off_policy", [False, True])
def test_kdrl_with_equal_rewards_is_distillation_alone(off_policy: bool) -> None:
    """A = 0 leaves beta times KD-RKL: k2's gradient, which is the policy gradient's of -log u."""
    c = case(off_policy, reward=torch.ones(8).double())
    equal(grad(c, kdrl(coef=0.3)), 0.3 * grad(c, Method(S, K2)))
    if not off_policy:
        equal(grad(c, kdrl(coef=0.3)), 0.3 * grad(c, Method(S, PG)))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kdrl_with_the_student_as_its_teacher_is_grpo(estimator: str) -> None:
    """k2 = k3 = 0 with zero gradient."""
    c = case()
    c = changed(c, teacher_logits=c.logits.clone())
    value, gradient = c.value_and_grad(Method(S, Term(logp(teacher), sampled(estimator))))
    equal(value, torch.zeros_like(value))
    equal(gradient, torch.zeros_like(gradient))
    equal(grad(c, kdrl(coef=5.0, estimator=estimator)), grad(c, grpo(ref_coef=0, reduction="token_mean")))


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("step", [0, 40, 80, 280])
def test_kdrl_equals_reward_shaping_on_policy(reduction: str, step: int) -> None:
    """Token by token, if both terms have the same reduction."""
    equal(grad(case(), kdrl(reduction=reduction), step), grad(case(), shaping(reduction=reduction), step))


def test_kdrl_differs_from_reward_shaping_off_policy() -> None:
    """They differ where the ratio is not 1, and where a clip is active."""
    differ(grad(case(True), kdrl(coef=0.3)), grad(case(True), shaping(coef=0.3)))
    now = case().logits.log_softmax(-1).gather(-1, case().tokens[..., None])[..., 0]
    slightly = case(True, old_logp=now + 1e-2)
    differ(grad(slightly, kdrl(coef=0.3)), grad(slightly, shaping(coef=0.3)))
    unclipped, clipped = shaping(coef=0.3, clip_range=1e9), shaping(coef=0.3)
    differ(grad(case(True), clipped), grad(case(True), unclipped))


def test_kdrl_with_two_reductions_differs_from_reward_shaping() -> None:
    """The paper's identity holds "if both terms share the aggregation"."""
    mixed = Method(S, Term(group_advantage(), clip(0.2)) + 0.3 * Term(K2.signal, K2.surrogate, reduction=sequence_mean))
    differ(grad(case(), mixed), grad(case(), shaping(coef=0.3)))


@pytest.mark.parametrize("gate", ["response", "group"])
def test_kdrl_with_masking_equals_shaping_only_over_all_tokens(gate: str) -> None:
    """The mask changes the denominator of ``kept``, so the masked forms agree with ``all`` only."""
    shaped = grad(case(), shaping(coef=0.3, gate=gate))
    equal(grad(case(), kdrl(coef=0.3, gate=gate, denominator="all")), shaped)
    differ(grad(case(), kdrl(coef=0.3, gate=gate, denominator="kept")), shaped)


def test_k2_and_k3_have_their_known_gradients_per_token() -> None:
    """k2 gives -R, k3 gives 1 - e^R, rho k3 gives -R; all times grad log pi."""
    c = case()
    now = c.logits.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    R = c.given["teacher_logits"].log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0] - now
    q = c.logits.softmax(-1)
    direction = (torch.nn.functional.one_hot(c.tokens, q.shape[-1]) - q) * c.mask[..., None] / c.mask.sum()
    for surrogate, factor in (
        (sampled("k2"), -R),
        (sampled("k3"), 1 - R.exp()),
        (sampled("k3", ratio=True), -R),
    ):
        equal(grad(c, Method(S, Term(logp(teacher), surrogate))), factor[..., None] * direction)


@pytest.mark.parametrize("gate", ["response", "group"])
def test_kdrl_with_masking_is_grpo_if_all_are_right_and_kdrl_if_all_are_wrong(gate: str) -> None:
    """It is finite in both cases."""
    ones = torch.ones(8).bool()
    for denominator in ("kept", "all"):
        gated = kdrl(coef=0.3, gate=gate, denominator=denominator)
        equal(grad(case(correct=ones), gated), grad(case(correct=ones), grpo(ref_coef=0, reduction="token_mean")))
        equal(grad(case(correct=~ones), gated), grad(case(correct=~ones), kdrl(coef=0.3)))
    equal(grad(case(correct=~ones), shaping(coef=0.3, gate=gate)), grad(case(correct=~ones), shaping(coef=0.3)))


def test_the_group_gate_keeps_less_than_the_response_gate() -> None:
    """Both depend on correctness, not on the shaped reward."""
    c = case()

    def kept(gate: str, c: Case) -> Tensor:
        return c.prepared(kdrl(gate=gate))[1].parts[1].kept_N

    assert (kept("group", c) <= kept("response", c)).all()
    assert kept("group", c).any()
    assert (kept("group", c) != kept("response", c)).any()
    assert torch.equal(kept("response", c), ~c.given["correct"][torch.arange(8).repeat_interleave(c.mask.sum(-1))])
    assert torch.equal(kept("response", c), kept("response", changed(c, reward=-c.given["reward"])))


def test_kdrl_anneals_its_coefficient_as_in_the_paper() -> None:
    """5e-3 at step 0, 3e-3 at 40, 1e-3 at 80 and after, by default."""
    assert [ANNEALED.at(s) for s in (0, 40, 80, 280)] == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3], abs=1e-15)
    assert kdrl() == kdrl(coef="anneal(5e-3, 1e-3, 5e-5)")
    equal(grad(case(), kdrl(), 40), grad(case(), kdrl(coef=3e-3)))
    assert [lb.linear(1.0, 0.0, 20).at(s) for s in (0, 5, 20, 99)] == [1.0, 0.75, 0.0, 0.0]


def test_k3_equals_k2_to_third_order() -> None:
    """As R -> 0, k3 = k2 + O(R^3)."""
    R = torch.tensor([1e-1, 1e-2], dtype=torch.float64)
    gap = (sampled("k3").row.potential(-R) - sampled("k2").row.potential(-R)).abs()
    assert (gap < R**3 / 5).all()
    assert (gap > R**3 / 7).all()


def test_the_teacher_in_the_reward_is_a_third_method() -> None:
    """Another reading of the paper: the signal is divided by the group's std and is no longer per token."""
    c = case(group=torch.arange(8) // 4)  # standardising a pair leaves only its order
    for other in (kdrl(coef=0.3), shaping(coef=0.3), grpo(ref_coef=0, reduction="token_mean")):
        differ(grad(c, kdrl_reward(coef=0.3)), grad(c, other))


def test_the_teacher_in_the_reward_by_hand() -> None:
    """A_i = standardise(r_i + beta sum_t (log pi_T - log pi_old)), one number a sequence."""
    c = case(True)
    logs = c.given["teacher_logits"].log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0] - c.given["old_logp"]
    shaped = c.given["reward"] + 0.3 * (logs * c.mask).sum(-1)
    equal(grad(c, kdrl_reward(coef=0.3)), grad(changed(c, reward=shaped), grpo(ref_coef=0, reduction="token_mean")))


def test_one_clip_around_both_signals_is_reward_shaping() -> None:
    """GRPO has the signal A, OPD has d, and KDRL's shaping form A + beta d, all inside one clip."""
    c = case(True)
    told = group_advantage() + 0.3 * log_ratio(teacher)
    equal(grad(c, Method(S, Term(told, clip(0.2)), token_mean)), grad(c, shaping(coef=0.3)))
