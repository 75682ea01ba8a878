"""Policy-gradient losses, advantages, reference terms and reductions: TRL and verl."""

from __future__ import annotations

import pytest
import torch
from golden_files import Case, cases, hearing, live, tensor, told

import limbeck as lb
from limbeck.axes import (
    cispo,
    clip,
    column,
    everywhere,
    fixed,
    group_advantage,
    logp,
    policy,
    ref,
    reinforce,
    sample,
    sampled,
    sequence_mean,
    sequence_sum,
    student,
    token_mean,
    token_sum,
)
from limbeck.axes.reduction import Reduction
from limbeck.errors import LimbeckError
from limbeck.space.method import Method
from limbeck.space.term import Sum, Term


def rollouts(terms: Term | Sum, reduction: Reduction = token_mean) -> Method:
    return Method(sample(student), terms, reduction)


def trl(h: dict) -> Method:
    """The registered method where one has these settings, with the advantages of the file."""
    lo, hi, beta = h["eps_low"], h["eps_high"], h["beta"]
    if h["loss_type"] == "cispo":  # TRL caps the ratio at eps_high itself, ours at 1 + hi; neither clips below
        return rollouts(Term(column("advantage"), cispo(hi=hi - 1)))
    if h["delta"] is not None:
        return rollouts(Term(column("advantage"), clip(lo, hi, cap=h["delta"])))
    if h["importance_level"] == "sequence":
        return hearing(lb.methods.gspo(clip_low=lo, clip_high=hi))
    if h["bias_correction"]:
        kl = beta * Term(logp(ref), sampled("k3", ratio=True))
        return rollouts(Term(column("advantage"), clip(lo, hi)) + kl, sequence_mean)
    if h["loss_type"] == "dapo":
        return hearing(lb.methods.dapo(clip_low=lo, clip_high=hi))
    if h["loss_type"] == "dr_grpo":
        return hearing(lb.methods.dr_grpo(clip_range=lo, max_length=h["max_len"]))
    reduction = {"grpo": sequence_mean, "bnpo": token_mean}[h["loss_type"]]
    return hearing(lb.methods.grpo(clip_range=lo, ref_coef=beta, reduction=reduction))


@cases("trl_grpo_family")
def test_policy_losses_equal_trl(case: Case) -> None:
    h, mask, logps = case.hyper, case.completion_mask, live(case.token_logps)
    given = {"ref_logp": case.ref_logps} if h["beta"] else {}
    loss = lb.objective(trl(h))(
        student_logp=logps, mask=mask, old_logp=case.old_logps, columns={"advantage": case.advantages}, **given
    ).loss
    if h["loss_type"] in ("grpo", "dr_grpo"):  # TRL's mean over sequences counts an empty row as 0, ours leaves it out
        loss = loss * mask.any(-1).sum() / len(mask)
    case.agrees(loss, logps)


def verl(h: dict) -> Method:
    if h["kind"] == "gspo":
        return hearing(lb.methods.gspo(clip_low=h["low"], clip_high=h["high"]), at="token")
    reduction = {"token-mean": token_mean, "seq-mean-token-mean": sequence_mean}[h["agg"]]
    surrogate = clip(h["low"], h["high"], dual=h["clip_c"])
    if h["kind"] == "cispo":  # verl clips on both sides
        surrogate = policy("cispo", h["low"], h["high"])
    return rollouts(Term(column("advantage", "token"), surrogate), reduction)


@cases("verl_policy_losses")
def test_policy_losses_equal_verl(case: Case) -> None:
    logps = live(case.log_prob)
    given = {"old_logp": case.old_log_prob, "columns": {"advantage": case.advantages}}
    case.agrees(lb.objective(verl(case.hyper))(student_logp=logps, mask=case.mask, **given).loss, logps)


@cases("verl_aggregation")
def test_reductions_equal_verl(case: Case) -> None:
    # The loss of a token is minus its log-prob, so the matrix goes in with its sign turned, and so does the gradient.
    mode, losses = case.hyper["mode"], live(case.loss)
    reduction = {
        "token-mean": token_mean,
        "token-sum": token_sum,
        "seq-mean-token-sum": sequence_sum,
        "seq-mean-token-mean": sequence_mean,
        "seq-mean-token-sum-norm": fixed(case.hyper["scale"] or losses.shape[1]),
    }[mode]
    case.agrees(
        lb.objective(rollouts(Term(everywhere, reinforce), reduction))(student_logp=-losses, mask=case.mask).loss,
        losses,
    )


# verl adds 1e-6 to the std as we do; its mean is taken in another order of sums, hence no further guard.
@cases("verl_group_advantages", lambda h: h["kind"] in ("grpo", "grpo_no_std", "rloo"))
def test_group_advantages_equal_verl_but_for_singletons(case: Case) -> None:
    kind, group, mask = case.hyper["kind"], case.group, case.mask
    ours = told(group_advantage(scale=kind == "grpo"), mask, reward=case.rewards, group=group)
    size = (group[:, None] == group).sum(-1)
    if kind == "rloo":  # n / (n - 1) times Dr. GRPO's advantage
        ours = ours * (size / (size - 1).clamp(min=1))[:, None]
    single = size == 1
    assert single.any()
    theirs = case.outputs("advantages")
    case.close(ours[~single], theirs[~single])
    # A group of one has nothing to be compared with: 0 here; verl's grpo and rloo keep the raw reward.
    assert not ours[single].any()
    kept = mask[single].bool()
    raw = case.rewards[single][:, None].expand_as(kept)[kept]
    torch.testing.assert_close(theirs[single][kept], raw, rtol=2e-6, atol=0)


@cases("verl_kl_penalty", lambda h: h["kind"] in ("k2", "k3"))
def test_estimators_equal_verl(case: Case) -> None:
    # verl holds k3 at 10 (log-ratio at 20), which cuts the gradient of very wrong tokens; ours does neither.
    gap = case.ref_log_prob - case.log_prob
    held = (gap.abs() > 20) | (gap.exp() - gap - 1 > 10) if case.hyper["kind"] == "k3" else torch.zeros_like(gap).bool()
    logps = live(case.log_prob)
    objective = lb.objective(rollouts(Term(logp(ref), sampled(case.hyper["kind"])), token_sum))
    loss = objective(student_logp=logps, mask=~held, ref_logp=case.ref_log_prob).loss
    case.agrees(loss + 10.0 * held.sum(), logps)
    assert held.sum() == (2 if case.hyper["kind"] == "k3" else 0)
    wrong = objective(student_logp=logps, ref_logp=case.ref_log_prob).loss
    assert (torch.autograd.grad(wrong, logps)[0][held].abs() > 0.9).all()


@cases("verl_kl_penalty", lambda h: h["kind"] in ("k1+", "k3+"))
def test_k2_has_the_gradient_of_verls_straight_through_estimators(case: Case) -> None:
    logps = live(case.log_prob)
    loss = lb.objective(rollouts(Term(logp(ref), sampled("k2")), token_sum))(
        student_logp=logps, ref_logp=case.ref_log_prob
    ).loss
    case.close(torch.autograd.grad(loss, logps)[0], tensor(case.body["grad"]), "grad")


@cases("verl_kl_penalty", lambda h: h["kind"] == "k1")
def test_k1_as_a_loss_is_refused_because_its_gradient_holds_no_teacher(case: Case) -> None:
    assert (tensor(case.body["grad"]) == 1).all()
    with pytest.raises(LimbeckError, match="zero expected gradient"):
        sampled("k1")
