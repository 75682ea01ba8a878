"""Published coincidences of self-distillation with privileged text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from case_helpers import (
    agreeing,
    case,
    changed,
    differ,
    equal,
    identical,
    judged,
    kl,
    laws,
    prepared,
    spoken,
    term,
    told_everything,
)
from torch import Tensor

import limbeck as lb
from laws.cases import VOCABULARY, Case
from limbeck.axes import (
    clip,
    correct,
    divergence_loss,
    ema,
    feedback,
    group_advantage,
    has,
    init,
    log_ratio,
    outcome_hint,
    own_reply,
    reinforce,
    sample,
    sequence_mean,
    sequence_sum,
    sibling_or_feedback,
    skill,
    solution,
    step_feedback,
    student,
    synced,
    token_mean,
    turn,
    verdict_phrase,
)
from limbeck.math.divergence import as_divergence, rkl
from limbeck.space.method import Method
from limbeck.space.term import Sum, Term

m = lb.methods
GRPO = Term(group_advantage(), clip(0.2, 0.28))
GUIDE = "sibling_or_feedback"


def seen_by(c: Case, slot: str, logits: str = "teacher_logits") -> Case:
    """The view's rows are another's."""
    return changed(c, **{f"{slot}_logits": c.given[logits]})


def by_token(method: Method) -> Method:
    """The same terms, averaged over tokens."""
    return replace(method, reduction=token_mean)


def zero(pair: tuple[Tensor, Tensor]) -> None:
    """Neither loss nor gradient."""
    assert pair[0].abs() < 1e-12
    assert pair[1].abs().max() < 1e-12


# ---------------------------------------------------------------- OPSD


@pytest.mark.parametrize("row", ["fkl", "rkl", "jsd(0.5)", "jsd(0.1)"])
def test_opsd_without_a_clip_is_gkd_with_an_informed_teacher(row: str) -> None:
    """tau = infinity is GKD(lambda = 1, beta); an outside teacher without text is GKD's OPD."""
    c = case()
    want = c.value_and_grad(m.gkd(lam=1, divergence=row))
    equal(seen_by(c, "init_given").value_and_grad(by_token(m.opsd(divergence=row))), want)
    differ(c.value_and_grad(by_token(m.opsd(divergence=row)))[1], want[1])


def test_opsd_averages_inside_each_response_first() -> None:
    """The mean of 1/|y| per response; the released scripts' token mean is another number on unequal lengths."""
    c = case()
    q, p = laws(c, "student"), laws(c, "init_given")
    rows = torch.arange(8)[:, None].expand_as(c.mask)[c.mask]
    want = torch.stack([kl(p, q)[rows == b].mean() for b in range(8)]).mean()
    equal(c.loss(m.opsd()).detach(), want)
    differ(c.loss(m.opsd()).detach(), kl(p, q).mean())


def test_opsd_with_a_high_cap_is_uncapped() -> None:
    """The per-token cap is above the largest KL, the entry cap above the largest entry."""
    c = case()
    q, p = laws(c, "student"), laws(c, "init_given")
    above = float(kl(p, q).max()) + 0.1
    identical(c.value_and_grad(m.opsd(token_clip=above)), c.value_and_grad(m.opsd()))
    cells = float((p * (p / q).log()).max()) + 0.1
    identical(c.value_and_grad(m.opsd(entry_clip=cells)), c.value_and_grad(m.opsd()))
    differ(c.value_and_grad(m.opsd(token_clip=above / 3))[1], c.value_and_grad(m.opsd())[1])


def test_token_clip_keeps_or_removes_a_tokens_whole_gradient() -> None:
    """The gradient of a token is the unclipped one or 0, so it never reverses."""
    c = case()
    cap = 0.6
    kls = torch.zeros(c.mask.shape, dtype=torch.float64)
    kls[c.mask] = kl(laws(c, "init_given"), laws(c, "student"))
    value, got = c.value_and_grad(by_token(m.opsd(token_clip=cap)))
    free = c.value_and_grad(by_token(m.opsd()))[1]
    over = c.mask & (kls > cap)
    assert over.any()
    assert (c.mask & ~over).any()
    assert (got[over] == 0).all()
    assert torch.equal(got[~over], free[~over])
    equal(value, kls[c.mask].clamp(max=cap).mean())


@pytest.mark.parametrize("row", ["fkl", "rkl", "jsd(0.3)", "skew_rkl(0.1)", "chi2", "hellinger", "tv", "soft_ce"])
def test_entry_clip_has_the_gradient_of_the_entries_below_the_cap(row: str) -> None:
    """Constants of f' cancel over a whole row, and not over the entries below the cap."""
    c, cap = case(), 0.05
    method = by_token(m.opsd(divergence=row, entry_clip=cap))
    z = c.logits.detach().clone().requires_grad_()
    logq, logp = z.log_softmax(-1)[c.mask], laws(c, "init_given").log()
    cells = as_divergence(row).cells(logq, logp)
    assert (cells > cap).any()
    assert (cells < cap).any()
    loss = cells.clamp(max=cap).sum(-1).mean()
    equal(c.value_and_grad(method), (loss.detach(), torch.autograd.grad(loss, z)[0]))


P = torch.tensor([0.90, 0.05, 0.03, 0.02], dtype=torch.float64)  # the teacher
Q = torch.tensor([0.40, 0.20, 0.20, 0.20], dtype=torch.float64)  # the student


@pytest.mark.parametrize("cap", [0.05, 1e-3, 1e-6])
def test_entry_clip_can_reverse_the_gradient(cap: float) -> None:
    """A hazard of the entry clip, asserted so that nobody swaps the two clips unnoticed.

    The entry that the teacher most wants raised drops out; those it wants lowered go on being pushed *up*.
    """

    def step(method: Method) -> tuple[Tensor, float]:
        z = Q.log()[None, None].clone().requires_grad_()
        loss = lb.objective(method)(z, torch.zeros(1, 1, dtype=torch.int64), init_given_logits=P.log()[None, None]).loss
        grad = torch.autograd.grad(loss, z)[0][0, 0]
        return grad, float(kl(P, (Q.log() - 0.01 * grad).softmax(-1)))

    free, after = step(m.opsd())
    literal, worse = step(m.opsd(entry_clip=cap))
    assert torch.nn.functional.cosine_similarity(free, literal, dim=0) < -0.5
    assert after < float(kl(P, Q)) < worse
    assert literal[0] > 0 > free[0]
    tokenwise, _ = step(m.opsd(token_clip=cap))
    assert (tokenwise == 0).all()


def test_opsd_sampled_is_a_log_ratio_times_the_log_prob() -> None:
    """A = sg(log q - log p)(y), L = -mean(A log p)."""
    c = case()
    A = c.rows(spoken(c, "init_given") - spoken(c, "student"))
    equal(c.loss(m.opsd_sampled()).detach(), -(A * c.rows(spoken(c, "student"))).mean())


def test_stepwise_feedback_changes_only_opsds_context() -> None:
    """With the reference solution it is OPSD with forward KL; StepAlignFB puts another text in its place."""
    assert m.opsd(context="solution") == m.opsd()
    aligned = m.opsd(context="step_feedback")
    assert aligned != m.opsd()
    assert term(aligned).signal == init.given(step_feedback)
    assert term(m.opsd()).signal == init.given(solution)
    assert term(aligned).surrogate == term(m.opsd()).surrogate
    c = case()
    identical(c.value_and_grad(aligned), c.value_and_grad(m.opsd()))


# ---------------------------------------------------------------- nothing to see, weights in step

SYNCED = {
    "opsd": m.opsd(),
    "opsd_sampled": m.opsd_sampled(),
    "sdpo": m.sdpo(),
    "sdpo(top 3)": m.sdpo(top_k=3),
    "sdpo_trust_region": m.sdpo_trust_region(),
    "skill_sd": m.skill_sd(),
    "opsd_rl": m.opsd_rl(),
    "vpd": m.vpd(e_every=None),
    "tt_opd": m.tt_opd(),
    "sd_zero": m.sd_zero(),
    "distil": m.distil(future=False),
}


@pytest.mark.parametrize("name", SYNCED)
def test_a_teacher_equal_to_the_student_gives_no_gradient(name: str) -> None:
    """The same rows on both sides give no loss and no gradient.

    (SD-Zero with its answer and its phrase dropped. DistIL's cost is an entropy: only its gradient vanishes.)
    """
    method = SYNCED[name]
    slots = [s for s in method.slots if s != "old"]
    c = agreeing(judged(case()), *slots)  # rewards agree, so there is no reinforcement beside it
    value, grad = c.value_and_grad(method)
    assert grad.abs().max() < 1e-12
    if name not in ("distil", "opsd_sampled"):
        assert value.abs() < 1e-12
    apart = judged(case())
    assert apart.value_and_grad(method)[1].abs().max() > 1e-7


def test_the_student_in_its_own_prompt_is_refused_as_a_teacher() -> None:
    """With no context and the live weights the gradient is zero, so building the method raises an error."""
    for own in (student, student.given(), synced(1)):
        with pytest.raises(lb.LimbeckError, match="the student itself"):
            Method(sample(), Term(own, divergence_loss(rkl)))


# ---------------------------------------------------------------- SDPO


@pytest.mark.parametrize("row", ["jsd(0.5)", "fkl", "rkl"])
def test_sdpo_with_k_of_the_whole_vocabulary_has_no_tail(row: str) -> None:
    """K = V equals the full divergence."""
    for off_policy in (False, True):
        c = case(off_policy)
        full = c.value_and_grad(m.sdpo(divergence=row, top_k=None))
        equal(c.value_and_grad(m.sdpo(divergence=row, top_k=VOCABULARY)), full)
        equal(c.value_and_grad(m.sdpo(divergence=row, top_k=100)), full)
        differ(c.value_and_grad(m.sdpo(divergence=row, top_k=2))[0], full[0])


def test_sdpo_leaves_samples_without_information_out() -> None:
    """z_i = 0 leaves numerator and denominator, whatever its rows hold."""
    c = case(True)
    told = c.given[f"has {GUIDE}"]
    assert not told.all()
    value, grad = c.value_and_grad(m.sdpo())
    fewer = changed(told_everything(c), mask=c.mask & told[:, None])
    equal(fewer.value_and_grad(m.sdpo()), (value, grad))
    assert (grad[~told] == 0).all()
    poisoned = c.given["ema_given_logits"].clone()
    poisoned[~told] = torch.nan
    identical(changed(c, ema_given_logits=poisoned).value_and_grad(m.sdpo()), (value, grad))


def test_sdpo_with_a_frozen_teacher_and_the_solution_is_opsd() -> None:
    """Frozen teacher, c = y*, K = V, alpha = 0.5 is OPSD's shipped setting (token mean); outside q is GKD."""
    c = told_everything(case())
    same = seen_by(seen_by(c, "ema_given"), "init_given")
    want = same.value_and_grad(by_token(m.opsd(divergence="jsd(0.5)")))
    equal(same.value_and_grad(m.sdpo(top_k=None)), want)
    equal(c.value_and_grad(m.gkd(lam=1, divergence="jsd(0.5)")), want)


def test_sdpos_importance_weights_are_capped_each() -> None:
    """omega = min(pi / pi_old, cap) times the same for the sampling policy, detached."""
    c = told_everything(case(True))
    rho = c.rows((spoken(c, "student") - c.given["old_logp"]).exp().clamp(max=1.1))
    rho = rho * c.rows((c.given["old_logp"] - c.given["rollout_logp"]).exp().clamp(max=1.1))
    q, p = laws(c, "student"), laws(c, "ema_given")
    equal(c.loss(m.sdpo(divergence="rkl", top_k=None, is_cap=1.1)).detach(), (rho * kl(q, p)).mean())
    assert (rho < 1.1).any()


def test_sdpo_hybrid_interpolates_between_grpo_and_the_log_ratio() -> None:
    """Share 0 is GRPO as a value, 1 the sampled log-ratio; it is linear between, before the clip."""
    assert m.sdpo_hybrid(share=0) == Method(sample(student, 8), Term(group_advantage(), clip(0.2)), token_mean)
    c = case()
    z = has(sibling_or_feedback)
    pure = Method(sample(student, 8), Term(log_ratio(ema(0.05).given(sibling_or_feedback)) * z, clip(0.2)), token_mean)
    grpo, whole = (c.value_and_grad(x)[1] for x in (m.sdpo_hybrid(share=0), pure))
    equal(c.value_and_grad(m.sdpo_hybrid(share=1))[1], whole)
    equal(c.value_and_grad(m.sdpo_hybrid(share=0.3))[1], 0.7 * grpo + 0.3 * whole)


def test_sdpo_hybrid_is_grpo_for_samples_without_information() -> None:
    """Their teacher rows may be anything, NaN too."""
    c = case()
    told = c.given[f"has {GUIDE}"]
    rows = c.given["ema_given_logits"].clone()
    rows[~told] = torch.nan
    identical(changed(c, ema_given_logits=rows).value_and_grad(m.sdpo_hybrid()), c.value_and_grad(m.sdpo_hybrid()))


def test_sdpo_trust_region_interpolates_logits() -> None:
    """The teacher is lerp(ref logits, student logits, mix); mix = 0 is the frozen student."""
    c = told_everything(case())
    mixed = 0.7 * c.given["init_given_logits"] + 0.3 * c.given["student_given_logits"]
    on_line = changed(c, teacher_logits=mixed)
    full = m.opd_full(divergence="jsd(0.5)")
    equal(c.value_and_grad(m.sdpo_trust_region(mix=0.3, top_k=None)), on_line.value_and_grad(full))
    frozen = seen_by(c, "teacher", "init_given_logits")
    equal(c.value_and_grad(m.sdpo_trust_region(mix=0, top_k=None)), frozen.value_and_grad(full))


# ---------------------------------------------------------------- SRPO


def routes(c: Case, method: Method) -> tuple[Tensor, Tensor]:
    """Which tokens are distilled and which reinforced."""
    distilled, reinforced = c.prepared(method)[1].parts
    return distilled.kept_N, reinforced.kept_N


def test_srpo_sends_each_token_to_exactly_one_term() -> None:
    """z^S + z^G = 1, and both terms are divided by all tokens."""
    c = case(True)
    a, b = routes(c, m.srpo())
    assert torch.equal(a, ~b)
    assert a.any()
    assert b.any()
    rows = torch.arange(8)[:, None].expand_as(c.mask)[c.mask]
    assert torch.equal(a, (~c.given["correct"] & c.given[f"has {GUIDE}"])[rows])
    assert {p.total for p in c.prepared(m.srpo())[1].parts} == {float(c.mask.sum())}


def test_srpo_with_all_correct_is_grpo_bit_for_bit() -> None:
    """Rewards still differ, so that there is something to compare."""
    for off_policy in (False, True):
        c = changed(told_everything(case(off_policy)), correct=torch.ones(8, dtype=torch.bool))
        got = c.value_and_grad(m.srpo())
        identical(got, c.value_and_grad(Method(sample(student, 8), GRPO, token_mean)))
        assert got[1].abs().max() > 1e-3


def test_srpo_without_information_is_grpo() -> None:
    """The gradient is zero if all are wrong and their rewards agree."""
    c = told_everything(case(), holds=False)
    identical(c.value_and_grad(m.srpo()), c.value_and_grad(Method(sample(student, 8), GRPO, token_mean)))
    zero(judged(c).value_and_grad(m.srpo()))


def test_srpo_with_all_wrong_is_weighted_sdpo() -> None:
    """With beta = 0 the weights are uniform and it is SDPO itself."""
    c = judged(told_everything(case(True)))
    equal(c.value_and_grad(m.srpo(beta=0)), c.value_and_grad(m.sdpo()))
    p = laws(c, "ema_given")
    w = (-2.0 * -(p * p.log()).sum(-1)).exp()
    method = m.srpo(beta=2)
    rho = c.rows((spoken(c, "student") - c.given["old_logp"]).exp().clamp(max=2.0))
    rho = rho * c.rows((c.given["old_logp"] - c.given["rollout_logp"]).exp().clamp(max=2.0))
    q = laws(c, "student")
    mid = (p + q) / 2
    jsd = 0.5 * kl(p, mid) + 0.5 * kl(q, mid)
    equal(c.loss(method).detach(), (w / w.mean() * rho * jsd).mean())
    differ(c.loss(method).detach(), c.loss(m.sdpo()).detach())


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_srpos_weights_have_mean_one_over_the_distilled_tokens(beta: float) -> None:
    """They are all 1 with beta = 0."""
    c = case()  # on-policy: the importance weights beside it are 1
    method = m.srpo(beta=beta)
    w = prepared(c, method, term(method).weight)[routes(c, method)[0]]
    equal(w.mean(), torch.ones((), dtype=torch.float64))
    assert (w.std() < 1e-12) == (beta == 0)


def test_srpos_advantage_is_computed_before_routing() -> None:
    """A routed sample still counts in its group's mean."""
    c = case()
    method = m.srpo()
    A = group_advantage()
    assert term(method, 1).signal == A
    equal(prepared(c, method, A), prepared(c, Method(sample(student, 8), GRPO), A))


# ---------------------------------------------------------------- SD-Zero


def test_sd_zero_without_its_context_is_reverse_kl_to_the_initial_policy() -> None:
    """Without (y, P_r) the teacher is the anchor: reverse KL to pi_SRT, summed over the response."""
    c = case()
    anchor = Method(sample(student), Term(init, divergence_loss(rkl)), sequence_sum)
    same = changed(c, init_given_logits=c.given["init_logits"])
    identical(same.value_and_grad(m.sd_zero()), c.value_and_grad(anchor))
    q, p = laws(c, "student"), laws(c, "init_given")
    equal(c.loss(m.sd_zero()).detach(), kl(q, p).sum() / 8)
    assert term(m.sd_zero()).signal == init.given(own_reply, verdict_phrase)


def test_sd_zero_srt_is_the_likelihood_of_both_texts() -> None:
    """L_SRT is the sum of two NLLs, each over its own sequences; only correct revisions are kept."""
    c, method = case(), m.sd_zero_srt()
    source = c.arguments(method)["source"]
    nll = -spoken(c, "student") * c.mask
    for name in ("whole", "second"):
        assert method.sources[name].keep == correct & (turn.over("sequence", "max") > 1)  # there is a revision
    parts = [nll[[s == name for s in source]].sum() / sum(s == name for s in source) for name in ("whole", "second")]
    equal(c.loss(method).detach(), parts[0] + parts[1])
    assert method.sources["whole"].response == "{{ turn_0 }}\n{{ said_0 }}\n{{ turn_1 }}"  # what was really said
    assert method.sources["second"].question.endswith("{{ said_0 }}")
    assert method.sources["second"].response == "turn 1"


# ---------------------------------------------------------------- DistIL


def test_distil_without_its_future_is_forward_kl_on_student_prefixes() -> None:
    """So are OPSD with forward KL, and SDPO with alpha = 0 and K = V. The values differ by the expert's entropy."""
    c = told_everything(case())
    now, grad = c.value_and_grad(m.distil(future=False))
    dagger = replace(m.decoupled_kl(lam=0), reduction=sequence_sum)
    same = seen_by(c, "teacher", "ema_given_logits")
    value, want = same.value_and_grad(dagger)
    equal(grad, want)
    p = laws(c, "ema_given")
    equal(now - value, -(p * p.log()).sum() / 8)
    sdpo = replace(m.sdpo(divergence="fkl", top_k=None), reduction=sequence_sum)
    equal(c.value_and_grad(sdpo)[1], want)


def test_distil_on_one_token_has_no_future_term() -> None:
    """It is supervised forward KL then; with more tokens it is not."""
    c = told_everything(case())
    short = changed(c, mask=c.mask & (torch.arange(4) == 0))
    equal(short.value_and_grad(m.distil())[1], short.value_and_grad(m.distil(future=False))[1])
    differ(c.value_and_grad(m.distil())[1], c.value_and_grad(m.distil(future=False))[1])


def test_distils_future_term_is_the_cost_of_later_tokens() -> None:
    """Per sequence: the sum over t of grad log pi(y_t) sg[sum_{s > t} H_s]."""
    c = told_everything(case())
    q, p = laws(c, "student"), laws(c, "ema_given")
    cost = torch.zeros(c.mask.shape, dtype=torch.float64)
    cost[c.mask] = -(p * q.log()).sum(-1)
    later = cost.flip(-1).cumsum(-1).flip(-1) - cost
    z = c.logits.detach().clone().requires_grad_()
    logp = z.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    want = torch.autograd.grad((later * logp)[c.mask].sum() / 8, z)[0]
    equal(c.value_and_grad(m.distil())[1] - c.value_and_grad(m.distil(future=False))[1], want)


def test_distil_trains_only_on_samples_with_feedback() -> None:
    """The feedback is the expert's context; without it there is no expert."""
    c = case()
    told = c.given["has feedback"]
    assert not told.all()
    assert (c.value_and_grad(m.distil())[1][~told] == 0).all()
    assert term(m.distil()).where == has(feedback)


# ---------------------------------------------------------------- Skill-SD and TT-OPD


def test_skill_sd_without_a_coefficient_is_grpo() -> None:
    """With lambda = 0 it is the same value, and no bank of skills is kept."""
    bare = m.skill_sd(lam=0, turns=1)
    assert bare == Method(sample(student, 4), GRPO, token_mean)
    assert skill in m.skill_sd().contexts
    assert bare.contexts == frozenset()


def test_skill_sds_distance_is_rho_k3_over_all_tokens() -> None:
    """L_GRPO + lambda (1/N) sum rho k3, its gradient rho l grad log pi."""
    c = case(True)
    logp, seen, before = (c.rows(x) for x in (spoken(c, "student"), spoken(c, "synced_given"), c.given["old_logp"]))
    gap = logp - seen
    rho = (logp - before).exp()
    (a, da), (b, db) = (c.value_and_grad(m.skill_sd(lam=lam)) for lam in (0.0, 0.5))
    equal(b - a, 0.5 * (rho * ((-gap).exp() - 1 + gap)).mean())
    coefficient = torch.zeros(c.mask.shape, dtype=torch.float64)
    coefficient[c.mask] = 0.5 * rho * gap / len(gap)
    z = c.logits.detach().clone().requires_grad_()
    (coefficient * z.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]).sum().backward()
    equal(db - da, z.grad)


def test_tt_opd_without_a_coefficient_is_grpo() -> None:
    """lambda_d = 0 (without length shaping here); the two terms are separate losses."""
    bare = m.tt_opd(lam=0, turns=1)
    assert bare == Method(sample(student, 3), Term(group_advantage(), clip(0.2)), token_mean)
    c = case(True)
    gap = c.rows(spoken(c, "student") - spoken(c, "ema_given"))
    equal(c.loss(m.tt_opd(lam=4.0)).detach() - c.loss(bare).detach(), 4.0 * 0.5 * gap.square().mean())


def test_tt_opd_follows_the_student_at_the_given_rate_and_reset() -> None:
    """Without a hint and with a copy at every step the KL would be 0; rate and reset belong to the teacher's view."""
    view = m.tt_opd(every=1, reset=1, rate=1.0).views
    assert {r.follow.rate for r in view if r.follow} == {1.0}
    assert {r.follow.reset for r in view if r.follow} == {1}
    (average,) = [r for r in m.tt_opd().views if r.follow]
    assert average == ema(0.005, 5, 30).given(outcome_hint)


def test_coefficients_distribute() -> None:
    """Twice the coefficient is twice the second term."""
    c = case(True)
    for method in (m.skill_sd, m.tt_opd):
        zero_, one, two = (c.loss(method(lam=x)).detach() for x in (0, 0.5, 1.0))
        equal(two - zero_, 2 * (one - zero_))
    assert isinstance(m.skill_sd().terms, Sum)
    assert term(m.opsd_sampled()).surrogate == reinforce
    assert m.opsd().reduction == sequence_mean
