"""Published coincidences of the distillation family."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import VOCABULARY, Case, changed, make
from limbeck.axes import (
    behavior,
    clip,
    data,
    divergence_loss,
    log_ratio,
    logp,
    policy,
    ratio,
    reinforce,
    sample,
    student,
    teacher,
    to_go,
    token_mean,
    token_sum,
)
from limbeck.math.divergence import as_divergence, fkl, jsd, rkl
from limbeck.space.method import Method
from limbeck.space.term import Term
from tabular import (
    EXACT,
    STATE,
    TEACHER,
    THETA,
    expected_gradient,
    gradient,
    per_state,
    sequence_rkl,
    token_logp,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-13}
kd, gkd, opd, opd_full, sft, minillm = (
    getattr(lb.methods, n) for n in ["kd", "gkd", "opd", "opd_full", "sft", "minillm"]
)


def case(off_policy: bool = False, **given: Tensor) -> Case:
    return changed(make(seed=31, off_policy=off_policy), **given)


def equal(a: object, b: object) -> None:
    torch.testing.assert_close(a, b, **CLOSE)


def differ(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() > 1e-5


def laws(c: Case, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """q and p of the kept tokens."""
    return c.rows((c.logits / tau).softmax(-1)), c.rows((c.given["teacher_logits"] / tau).softmax(-1))


# ---------------------------------------------------------------- KD


def test_kd_of_weight_zero_is_cross_entropy() -> None:
    """b = 0 leaves CE; as a value, SFT."""
    assert kd(weight=0) == sft()
    nll = -case().logits.log_softmax(-1).gather(-1, case().tokens[..., None])[..., 0]
    equal(case().loss(sft()), nll[case().mask].mean())


def test_kd_is_gkds_supervised_corner() -> None:
    """lambda = 0 with forward KL is word-level supervised KD, as a value."""
    assert gkd(lam=0, divergence="fkl") == kd(weight=1, tau=1)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_kd_gradient_is_tau_times_q_minus_p(tau: float) -> None:
    """The gradient of tau^2 KL(p_tau || q_tau) is tau (q_tau - p_tau)."""
    q, p = laws(case(), tau)
    value, got = case().value_and_grad(kd(weight=1, tau=tau))
    equal(case().rows(got), tau * (q - p) / len(q))
    equal(value, tau**2 * (p * (p / q).log()).sum(-1).mean())


def test_kd_at_high_temperature_is_regression_of_logits() -> None:
    """tau -> infinity gives the gradient (z - z_T, both centred) / V."""
    c = case()
    got = c.rows(c.value_and_grad(kd(weight=1, tau=1e4))[1])
    gap = c.rows(c.logits - c.given["teacher_logits"]).detach()
    want = (gap - gap.mean(-1, keepdim=True)) / VOCABULARY / len(gap)
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-6)
    half_mse = 0.5 * (gap - gap.mean(-1, keepdim=True)).square().mean()
    torch.testing.assert_close(c.loss(kd(weight=1, tau=1e4)).detach(), half_mse, rtol=1e-3, atol=0)


def test_kd_mixes_linearly() -> None:
    """(1 - w) CE + w tau^2 KL."""
    c = case()
    equal(c.loss(kd(weight=0.3, tau=2)), 0.7 * c.loss(sft()) + 0.3 * c.loss(kd(weight=1, tau=2)))


def test_soft_ce_is_forward_kl_up_to_the_teachers_entropy() -> None:
    """The gradients are the same."""
    c = case()
    soft, hard = (Method(data(), Term(teacher, divergence_loss(as_divergence(d)))) for d in ("soft_ce", "fkl"))
    (a, da), (b, db) = c.value_and_grad(soft), c.value_and_grad(hard)
    _, p = laws(c)
    equal(da, db)
    equal(a - b, -(p * p.log()).sum(-1).mean())


def test_a_one_hot_teacher_is_cross_entropy() -> None:
    """One-hot q is SFT on the teacher's tokens."""
    one_hot = torch.full_like(case().logits, -torch.inf).scatter(-1, case().tokens[..., None], 0.0)
    c = case(teacher_logits=one_hot)
    equal(c.value_and_grad(kd(weight=1, tau=1)), c.value_and_grad(sft()))


# ---------------------------------------------------------------- GKD and OPD


def test_gkd_on_policy_with_reverse_kl_is_full_opd() -> None:
    """lambda = 1 and "beta = 1" is full-vocabulary reverse-KL OPD, as a value."""
    assert gkd(lam=1, divergence="rkl") == opd_full()
    assert gkd(lam=1, beta=0.3) == opd_full(divergence="jsd(0.3)")


def test_gkd_is_on_policy_with_probability_lambda() -> None:
    """With lambda = 0 never, with 1 always; between them by chance. The chance does not change the loss."""
    assert gkd(lam=0).source == data()
    assert gkd(lam=1).source == sample(student, check=False)
    assert gkd(lam=0.5).source.chance.at(0) == 0.5
    assert gkd(lam=0).terms == gkd(lam=1).terms == gkd(lam=0.5).terms
    assert gkd(lam="linear(0, 1, 10)").source.chance.at(5) == 0.5


def test_jsd_has_its_limits_and_its_bound() -> None:
    """JSD/beta -> FKL, JSD/(1 - beta) -> RKL, JSD(1/2) <= log 2 and symmetric."""
    c = case()
    full = {name: c.loss(opd_full(divergence=name)) for name in ("fkl", "rkl")}
    for eps in (1e-3, 1e-5):
        torch.testing.assert_close(c.loss(gkd(beta=eps)) / eps, full["fkl"], rtol=20 * eps, atol=0)
        torch.testing.assert_close(c.loss(gkd(beta=1 - eps)) / eps, full["rkl"], rtol=20 * eps, atol=0)
    assert c.loss(gkd(beta=1e-2)) < 0.05 * full["fkl"]  # the jump of scale between beta = 0 and beta = 0.01
    wide = changed(c, logits=50 * c.logits.detach())
    assert c.loss(gkd(beta=0.5)) < wide.loss(gkd(beta=0.5)) <= math.log(2)
    swapped = changed(c, logits=c.given["teacher_logits"], teacher_logits=c.logits.detach())
    equal(swapped.loss(gkd(beta=0.5)), c.loss(gkd(beta=0.5)))
    equal(swapped.loss(gkd(beta=0.3)), c.loss(gkd(beta=0.7)))
    differ(swapped.loss(gkd(beta=0.3)), c.loss(gkd(beta=0.3)))


def test_beta_is_on_the_teacher() -> None:
    """m = beta p + (1 - beta) q, tested with asymmetric inputs."""
    q, p = laws(case())
    m = 0.9 * p + 0.1 * q
    want = 0.9 * (p * (p / m).log()).sum(-1) + 0.1 * (q * (q / m).log()).sum(-1)
    equal(case().loss(gkd(beta=0.9)), want.mean())


def test_temperature_divides_both_sides() -> None:
    """Student and teacher logits are both divided by tau."""
    c = case()
    cooled = changed(c, logits=c.logits.detach() / 3, teacher_logits=c.given["teacher_logits"] / 3)
    equal(c.loss(gkd(tau=3.0)), cooled.loss(gkd()))


def test_skew_identities() -> None:
    """DistiLLM: skew FKL(alpha) is FKL to the mixture, bounded by -log alpha; alpha -> 0 is unskewed."""
    c = case()
    q, p = laws(c)
    mixed = 0.1 * p + 0.9 * q
    equal(c.loss(opd_full(divergence="skew_fkl(0.1)")), (p * (p / mixed).log()).sum(-1).mean())
    mixed = 0.9 * p + 0.1 * q
    equal(c.loss(opd_full(divergence="skew_rkl(0.1)")), (q * (q / mixed).log()).sum(-1).mean())
    wide = changed(c, logits=200 * c.logits.detach())
    for skew, plain in (("skew_fkl", "fkl"), ("skew_rkl", "rkl")):
        near = c.loss(opd_full(divergence=f"{skew}(1e-7)"))
        torch.testing.assert_close(near, c.loss(opd_full(divergence=plain)), rtol=1e-5, atol=0)
        assert wide.loss(opd_full(divergence=f"{skew}(0.1)")) <= -math.log(0.1)
    swapped = changed(c, logits=c.given["teacher_logits"], teacher_logits=c.logits.detach())
    equal(swapped.loss(opd_full(divergence="skew_fkl(0.1)")), c.loss(opd_full(divergence="skew_rkl(0.1)")))


# ---------------------------------------------------------------- top-k


@pytest.mark.parametrize("name", ["rkl", "fkl", "jsd(0.3)", "tv", "chi2", "skew_fkl(0.1)", "hellinger", "alpha(0.7)"])
def test_top_k_is_a_lower_bound_and_exact_at_v(name: str) -> None:
    """By the data-processing inequality; more entries are tighter, and k = V is equal in value and gradient."""
    c = case()
    full, full_grad = c.value_and_grad(opd_full(divergence=name))
    bounds = [c.loss(opd_full(divergence=name, top_k=k)).detach() for k in range(1, VOCABULARY + 1)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(bounds))
    assert bounds[0] < full
    equal(c.value_and_grad(opd_full(divergence=name, top_k=VOCABULARY)), (full, full_grad))
    equal(bounds[VOCABULARY - 2], full)  # a tail bucket of one entry loses nothing


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ["rkl", "fkl", "jsd(0.3)"])
def test_top_k_is_the_divergence_of_the_coarser_laws(name: str, k: int) -> None:
    """k entries of the teacher's and one bucket for the rest; by hand, value and gradient."""
    c = case()
    ids = c.given["teacher_logits"].topk(k, -1).indices

    def coarse(z: Tensor) -> Tensor:
        head = z.softmax(-1).gather(-1, ids)
        return c.rows(torch.cat([head, 1 - head.sum(-1, keepdim=True)], -1))

    z = c.logits.detach().clone().requires_grad_()
    q, p = coarse(z), coarse(c.given["teacher_logits"])
    m = 0.3 * p + 0.7 * q
    parts = {
        "rkl": q * (q / p).log(),
        "fkl": p * (p / q).log(),
        "jsd(0.3)": 0.3 * p * (p / m).log() + 0.7 * q * (q / m).log(),
    }
    want = parts[name].sum(-1).mean()
    value, got = c.value_and_grad(opd_full(divergence=name, top_k=k))
    torch.testing.assert_close(value, want.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got, torch.autograd.grad(want, z)[0], rtol=1e-8, atol=1e-12)


def test_top_k_comes_as_ids_or_from_logits() -> None:
    """The same numbers from a server's top log-probs as from the teacher's logits; longer lists are cut."""
    c, m = case(), opd_full(top_k=3)
    served = c.given["teacher_logits"].log_softmax(-1).topk(5, -1)
    got = lb.objective(m)(c.logits, c.tokens, c.mask, teacher_topk=(served.indices, served.values)).loss
    equal(got, c.loss(m))


# ---------------------------------------------------------------- OPD

TEACHER_LOGP = {"teacher_logp": token_logp(TEACHER)}


def test_opd_is_opd_full_in_expectation() -> None:
    """gamma = 0 has the expected gradient of full-vocabulary reverse KL."""
    full = Method(sample(student, check=False), opd_full().terms, token_sum)
    got = expected_gradient(opd(), **TEACHER_LOGP)
    torch.testing.assert_close(got, expected_gradient(full, teacher_logits=TEACHER[STATE]), **EXACT)
    torch.testing.assert_close(got, gradient(per_state("rkl")), **EXACT)


def test_opd_with_gamma_one_is_the_sequences_kl() -> None:
    """gamma = 1 sums the log-ratios of the rest of the sequence."""
    torch.testing.assert_close(expected_gradient(opd(gamma=1), **TEACHER_LOGP), gradient(sequence_rkl), **EXACT)


def test_opd_coefficient_scales() -> None:
    """Loss and gradient are proportional to it."""
    c = case(True)
    equal(c.value_and_grad(opd(coef=2.5))[1], 2.5 * c.value_and_grad(opd())[1])


def test_opd_is_measured_against_the_writer() -> None:
    """A = log pi_T - log mu and the ratio is to mu as reported when written, not to old."""
    c = case(True)
    only_writer = changed(c, old_logp=torch.zeros_like(c.given["old_logp"]))
    equal(c.value_and_grad(opd()), only_writer.value_and_grad(opd()))
    mu = c.given["rollout_logp"]
    now = c.logits.detach().requires_grad_()
    log_pi = now.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    log_t = c.given["teacher_logits"].log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    want = -((log_pi - mu).exp() * (log_t - mu))[c.mask].sum()
    equal(c.value_and_grad(opd()), (want.detach(), torch.autograd.grad(want, now)[0]))


# ---------------------------------------------------------------- MiniLLM


def test_minillm_without_its_extras_is_opd() -> None:
    """gamma = 0, alpha = 0, terms 2-3, whitening and 1/remaining off: the gradient of OPD."""
    c = case()
    first = minillm(mix=0, gamma=0, lm_coef=0).parts[0][1]
    raw = Method({"roll": sample(check=False)}, replace(first, signal=log_ratio(teacher, behavior)), token_sum)
    equal(c.value_and_grad(raw, source=["roll"] * 8)[1], c.value_and_grad(opd())[1])


def test_minillm_term_two_alone_is_gkd() -> None:
    """Term 2 alone with alpha = 0 (w = 1 on-policy) is GKD(lambda = 1, beta = 1)."""
    c = case()
    single = minillm(mix=0, lm_coef=0).parts[1][1]
    got = c.value_and_grad(Method({"roll": sample(check=False)}, single), source=["roll"] * 8)
    equal(got, c.value_and_grad(gkd(lam=1, divergence="rkl")))


def test_minillm_weight_is_the_importance_of_the_mixture() -> None:
    """w_t = sg(pi / p~) where the writer is the mixture."""
    c = case(True)
    single = minillm(lm_coef=0).parts[1][1]
    q, p = laws(c)
    now = c.logits.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    w = c.rows((now - c.given["rollout_logp"]).exp())
    got = c.loss(Method({"roll": sample(check=False)}, single), source=["roll"] * 8)
    equal(got, (w * (q * (q / p).log()).sum(-1)).mean())


def test_minillm_return_by_hand() -> None:
    """Clipped reward over 0.5, discounted by gamma^(i-t), over the remaining tokens, whitened."""
    c = case(True)
    m = minillm(lm_coef=0, reward_clip=1.0)
    returns = m.parts[0][1].signal
    _, prepared, _ = c.prepared(m)
    log_t = c.given["teacher_logits"].log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    r = ((log_t - c.given["old_logp"]) / 0.5).clamp(-1, 1)
    assert (r[c.mask].abs() == 1).any()
    out = []
    for row, n in zip(r, c.mask.sum(-1).tolist(), strict=True):
        out += [sum(0.95 ** (i - t) * row[i] for i in range(t, n)) / (n - t) for t in range(n)]
    R = torch.stack(out)
    equal(prepared.known[returns], (R - R.mean()) / (R.std() + 1e-8))


def test_minillms_third_term_is_half_ce_and_half_soft_ce() -> None:
    """Half CE and half soft CE, on the pretrain rows only, times its coefficient."""
    c, m = case(True), minillm(lm_coef=2.0)
    sources = c.arguments(m)["source"]
    lm = torch.tensor([s == "lm" for s in sources])
    rest = Method(m.source, minillm(lm_coef=0).terms)
    keep = c.mask & lm[:, None]
    q, p = c.logits.log_softmax(-1)[keep], c.given["teacher_logits"].softmax(-1)[keep]
    ce = -q.gather(-1, c.tokens[keep][:, None]).mean()
    equal(c.loss(m), c.loss(rest) + 2.0 * (0.5 * ce + 0.5 * -(p * q).sum(-1).mean()))


def test_to_go_by_hand() -> None:
    """Sums over the rest of its own sequence only, never into the next."""
    c = case(True)
    returns = to_go(log_ratio(teacher, behavior), 0.5)
    m = Method(sample(check=False), Term(returns, policy("ratio", base=logp(behavior))))
    signal = m.parts[0][1].signal
    log_t = c.given["teacher_logits"].log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    r = log_t - c.given["rollout_logp"]
    want = [
        sum(0.5 ** (i - t) * row[i] for i in range(t, n))
        for row, n in zip(r, c.mask.sum(-1).tolist(), strict=True)
        for t in range(n)
    ]
    equal(c.prepared(m)[1].known[signal], torch.stack(want))


def test_primitives_share_their_gradient_on_policy() -> None:
    """Clip, importance-sampling and REINFORCE variants at mu = pi."""
    c = case()
    want = c.value_and_grad(Method(sample(), Term(log_ratio(teacher), reinforce), token_mean))[1]
    for surrogate in (ratio, clip(0.2), policy("ratio", base=logp(behavior))):
        equal(c.value_and_grad(Method(sample(), Term(log_ratio(teacher), surrogate), token_mean))[1], want)


def test_closed_form_of_full_divergences() -> None:
    """Against logits: forward KL q - p; reverse KL q (log q/p - KL)."""
    c = case()
    q, p = laws(c)
    for row, want in ((fkl, q - p), (rkl, q * ((q / p).log() - (q * (q / p).log()).sum(-1, keepdim=True)))):
        got = c.value_and_grad(Method(data(), Term(teacher, divergence_loss(row))))[1]
        equal(c.rows(got), want / len(q))
    assert jsd(0.5) == as_divergence("jsd(0.5)")


def test_the_start_is_the_teacher() -> None:
    """Every divergence is 0 with zero gradient where the student is the teacher (THETA against itself)."""
    for name in ("rkl", "fkl", "jsd(0.5)"):
        m = Method(sample(), Term(teacher, divergence_loss(as_divergence(name))), token_sum)
        got = expected_gradient(m, teacher_logits=THETA[STATE])
        torch.testing.assert_close(got, torch.zeros_like(THETA), **EXACT)
