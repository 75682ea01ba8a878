"""Published coincidences of on-policy distillation from an outside teacher."""

from __future__ import annotations

import math

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
    one_turn,
    prepared,
    spoken,
    term,
)
from torch import Tensor

import limbeck as lb
from laws.cases import VOCABULARY, Case
from limbeck.axes import (
    clip,
    divergence,
    divergence_loss,
    draw,
    entropy,
    group_advantage,
    init,
    log_ratio,
    logp,
    minmax,
    old,
    ratio,
    ref,
    reinforce,
    sample,
    soft_or,
    step_drift,
    student,
    teacher,
    token_mean,
    top,
)
from limbeck.loss.batch import Batch
from limbeck.math.divergence import rkl
from limbeck.math.statistic import Support
from limbeck.space.method import Method
from limbeck.space.term import Term

m = lb.methods
GRPO = Term(group_advantage(), clip(0.2, 0.28))


def drift(c: Case, ceiling: float) -> Tensor:
    """SOD's weight of each turn, as the library has it, ``[U]``."""
    weight = step_drift(teacher, ceiling)
    return prepared(c, Method(sample(student), Term(log_ratio(teacher), clip(0.2), weight=weight)), weight)


def gaps(c: Case) -> list[list[float]]:
    """d_k of every turn of every sequence."""
    gap = (c.given["old_logp"] - spoken(c, "teacher")).abs()
    out = []
    for row, turns, kept in zip(gap, c.given["turn"], c.mask, strict=True):
        names = sorted(set(turns[kept].tolist()))
        out.append([float(row[kept & (turns == k)].mean()) for k in names])
    return out


# ---------------------------------------------------------------- SOD


def test_sod_of_one_turn_is_grpo_plus_opd_bit_for_bit() -> None:
    """The weight of the first turn is 1, so there is nothing else in SOD's loss."""
    c = one_turn(case(True))
    plain = Method(sample(student), Term(group_advantage() + 0.7 * log_ratio(teacher), clip(0.2, 0.28)), token_mean)
    identical(c.value_and_grad(m.sod(coef=0.7)), c.value_and_grad(plain))
    differ(case(True).value_and_grad(m.sod(coef=0.7))[1], case(True).value_and_grad(plain)[1])


def test_sod_with_equal_drift_is_grpo_plus_opd() -> None:
    """If all turns drift equally, every weight is 1."""
    c = case(True)
    sign = torch.where(torch.arange(4) % 2 == 0, 0.5, -0.5).double()
    given = {"teacher_logp": c.given["old_logp"] + sign}
    objective = lb.objective(m.sod())
    args = {k: v for k, v in c.arguments(m.sod()).items() if k != "teacher_logits"}
    plain = Method(sample(student), Term(group_advantage() + log_ratio(teacher), clip(0.2, 0.28)), token_mean)
    got = objective(c.logits, c.tokens, c.mask, **args, **given).loss
    equal(got, lb.objective(plain)(c.logits, c.tokens, c.mask, **args, **given).loss)


def test_sod_without_a_coefficient_is_grpo() -> None:
    """Both are the same value, and no teacher is needed."""
    assert m.sod(coef=0, group=8, turns=1) == Method(sample(student, 8), GRPO, token_mean)
    assert m.sod(coef=0).roles == {}


def test_sod_without_rewards_is_clipped_opd() -> None:
    """With A_GRPO = 0 and w = 1, what is left is OPD with PPO's clip."""
    c = one_turn(judged(case(True)))
    opd = Method(sample(student), Term(log_ratio(teacher), clip(0.2, 0.28)), token_mean)
    equal(c.value_and_grad(m.sod()), c.value_and_grad(opd))


@pytest.mark.parametrize("ceiling", [0.2, 0.5, 10.0])
def test_sod_weights_are_capped_products_of_drift_ratios(ceiling: float) -> None:
    """The cap applies to the weight; the running product itself is not clipped."""
    want = []
    for d in gaps(case(True)):
        product = 1.0
        for k in range(len(d)):
            product *= 1.0 if k == 0 else (d[k - 1] + 1e-6) / (d[k] + 1e-6)
            want.append(min(product, 1 + ceiling))
    got = drift(case(True), ceiling)
    equal(got, torch.tensor(want, dtype=torch.float64))
    assert (got == 1 + ceiling).any() or ceiling == 10.0
    assert (got < 0.9).any()


def test_sod_weights_ignore_the_scale_of_the_drifts() -> None:
    """All d_k times a constant give the same weights, up to epsilon."""
    c = case(True)
    far = c.given["old_logp"] + 3 * (spoken(c, "teacher") - c.given["old_logp"])
    weight = step_drift(teacher, 10.0)
    probe = Method(sample(student), Term(weight + 0.0 * log_ratio(teacher), reinforce))
    args = {k: v for k, v in c.arguments(probe).items() if k != "teacher_logits"}

    def total(logp: Tensor) -> Tensor:
        return lb.objective(probe)(c.logits, c.tokens, c.mask, teacher_logp=logp, **args).loss

    near, wide = total(spoken(c, "teacher")), total(far)
    torch.testing.assert_close(near, wide, rtol=1e-4, atol=0)


def test_legacy_sod_has_one_weight_per_response() -> None:
    """With beta_max = beta_min = 0 it is GRPO; the worse the response, the larger beta."""
    c = case(True)
    equal(c.value_and_grad(m.sod_per_sample(beta_max=0)), c.value_and_grad(Method(sample(student, 8), GRPO)))
    A = group_advantage()
    signal = term(m.sod_per_sample()).signal
    beta = 0.1 / (1 + prepared(c, Method(sample(student, 8), Term(A, reinforce)), A).exp())
    rows = torch.arange(8)[:, None].expand_as(c.mask)[c.mask]
    gap = c.rows(spoken(c, "teacher") - c.given["old_logp"])
    want = prepared(c, Method(sample(student, 8), Term(A, reinforce)), A)[rows] + beta[rows] * gap
    equal(prepared(c, m.sod_per_sample(), signal), want)


# ---------------------------------------------------------------- TIP


@pytest.mark.parametrize("method", [m.tip, m.tip_entropy, m.tip_q3])
def test_tip_with_all_tokens_is_opd_bit_for_bit(method: lb.registry.Recipe) -> None:
    """With rho = 1 every token is kept."""
    for off_policy in (False, True):
        c = case(off_policy)
        identical(c.value_and_grad(method(rho=1)), c.value_and_grad(m.opd_full()))


def test_soft_or_is_one_minus_the_product_of_complements() -> None:
    """s = 1 - (1 - h)(1 - d), between the larger of both and 1."""
    c = case(True)
    h, d = minmax(entropy(old)), minmax(divergence(rkl, teacher, old))
    probe = Method(sample(student), Term(soft_or(h, d), reinforce, weight=h * d))
    s, hd = prepared(c, probe, soft_or(h, d)), prepared(c, probe, h * d)
    hs, ds = (prepared(c, Method(sample(student), Term(x, reinforce)), x) for x in (h, d))
    equal(s, 1 - (1 - hs) * (1 - ds))
    equal(hd, hs * ds)
    assert (s >= torch.maximum(hs, ds) - 1e-12).all()
    for x in (hs, ds, s):
        assert 0 <= x.min() <= x.max() <= 1
    assert hs.min() == ds.min() == 0
    assert hs.max() == ds.max() == 1


def kept(c: Case, method: Method) -> Tensor:
    """Which of the batch's tokens count."""
    return c.prepared(method)[1].parts[0].kept_N


@pytest.mark.parametrize("rho", [0.1, 0.34, 0.5, 0.99])
def test_tip_keeps_the_given_share_of_the_batch(rho: float) -> None:
    """floor(rho N) tokens are kept, and the mean is over these."""
    c = case(True)
    N = int(c.mask.sum())
    for method in (m.tip(rho), m.tip_entropy(rho), m.tip_q3(rho)):
        chosen = kept(c, method)
        assert int(chosen.sum()) == max(1, int(rho * N))
        q, p = laws(c, "student"), laws(c, "teacher")
        equal(c.loss(method).detach(), kl(q, p)[chosen].mean())


def test_tip_keeps_the_tokens_found_by_hand() -> None:
    """Soft-OR of entropy and reverse KL; Q3 is low entropy and forward KL. Both are those of the batch's start."""
    c = case(True)
    q, p = laws(c, "old"), laws(c, "teacher")
    h = -(q * q.log()).sum(-1)

    def scaled(x: Tensor) -> Tensor:
        return (x - x.min()) / (x.max() - x.min())

    for method, s in (
        (m.tip(0.5), scaled(h) + scaled(kl(q, p)) - scaled(h) * scaled(kl(q, p))),
        (m.tip_q3(0.5), scaled(kl(p, q)) * (1 - scaled(h))),
    ):
        want = torch.zeros_like(s, dtype=torch.bool)
        want[s.argsort(descending=True)[: len(s) // 2]] = True
        assert torch.equal(kept(c, method), want)
    assert not torch.equal(kept(c, m.tip(0.5)), kept(c, m.tip_q3(0.5)))


def test_tip_chooses_by_the_other_score_if_one_is_constant() -> None:
    """delta = 0 leaves the top by entropy; h = 0 (all entropies alike) the top by divergence."""
    c = agreeing(case(), "teacher")
    by_entropy = Method(sample(student), Term(teacher, divergence_loss(rkl), top(entropy(old), 0.5)))
    assert torch.equal(kept(c, m.tip(0.5)), kept(c, by_entropy))
    flat = torch.zeros(8, 4, VOCABULARY, dtype=torch.float64)
    flat[..., 0] = 2.0
    turned = flat.gather(
        -1, (torch.arange(VOCABULARY) + torch.arange(4)[:, None]).remainder(VOCABULARY).expand(8, 4, -1)
    )
    c = changed(case(), logits=turned)
    by_divergence = Method(
        sample(student), Term(teacher, divergence_loss(rkl), top(divergence(rkl, teacher, old), 0.5))
    )
    assert torch.equal(kept(c, m.tip(0.5)), kept(c, by_divergence))
    assert not torch.equal(kept(case(), m.tip(0.5)), kept(case(), by_entropy))


def test_tip_entropy_ignores_the_teacher() -> None:
    """Therefore it cannot find tokens on which the student is confidently wrong."""
    c = case(True)
    other = changed(c, teacher_logits=c.given["ref_logits"])
    assert torch.equal(kept(c, m.tip_entropy()), kept(other, m.tip_entropy()))
    assert not torch.equal(kept(c, m.tip()), kept(other, m.tip()))


def test_tips_choice_carries_no_gradient() -> None:
    """The gradient is that of the chosen tokens' loss with the choice held fixed."""
    c = case()
    chosen = torch.zeros_like(c.mask)
    chosen[c.mask] = kept(c, m.tip())
    got = c.value_and_grad(m.tip())
    equal(got, changed(c, mask=chosen).value_and_grad(m.opd_full()))


def test_tokens_are_drawn_in_proportion_to_their_entropy() -> None:
    """As in the released code, without replacement."""
    c = case(True)
    q = laws(c, "old")
    h = -(q * q.log()).sum(-1)
    one = draw(entropy(old), 1 / len(h))
    probe = Method(sample(student), Term(teacher, divergence_loss(rkl), one))
    _, told, _ = c.prepared(probe)
    count, draws = torch.zeros_like(h), 1500
    batch = Batch(told.record, told.scores)
    for step in range(draws):
        batch.step = step
        count += one.evaluate(batch)
    expected = draws * h / h.sum()
    chi2 = ((count - expected) ** 2 / expected).sum()
    assert chi2 < len(h) + 4 * math.sqrt(2 * len(h))  # four standard deviations of chi-square
    assert ((count - draws / len(h)) ** 2 / (draws / len(h))).sum() > len(h) + 4 * math.sqrt(2 * len(h))


# ---------------------------------------------------------------- G-OPD


def test_exopd_with_lambda_one_is_opd_for_every_reference() -> None:
    """The value does not contain a reference, so it is equal exactly."""
    assert "ref" not in m.exopd(lam=1).roles
    assert term(m.exopd(lam=1)).signal == log_ratio(teacher)
    assert m.exopd_full(lam=1) == m.opd_full()


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.25, 2.0])
def test_both_forms_of_exopds_advantage_are_equal(lam: float) -> None:
    """(lt - mu) + (lam - 1)(lt - lr) = lam (lt - lr) - (mu - lr)."""
    c = case(True)
    method = m.exopd(lam=lam)
    lt, lr, mu = (c.rows(x) for x in (spoken(c, "teacher"), spoken(c, "ref"), c.given["old_logp"]))
    got = prepared(c, method, term(method).signal)
    equal(got, lam * (lt - lr) - (mu - lr))
    if lam == 0:
        equal(got, -(mu - lr))


def geometric(c: Case, lam: float) -> Tensor:
    """log of pi_T^lam pi_ref^(1 - lam) / Z, ``[B, T, V]``."""
    t, r = (c.given[f"{s}_logits"].log_softmax(-1) for s in ("teacher", "ref"))
    return (lam * t + (1 - lam) * r).log_softmax(-1)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.25, 3.0])
def test_exopd_is_minimal_at_the_geometric_mixture(lam: float) -> None:
    """Value and gradient are 0 at pi_T^lam pi_ref^(1 - lam) / Z, and nowhere near it."""
    c = case()
    at = changed(c, logits=geometric(c, lam))
    value, grad = at.value_and_grad(m.exopd_full(lam=lam))
    assert value.abs() < 1e-12
    assert grad.abs().max() < 1e-12
    differ(c.value_and_grad(m.exopd_full(lam=lam))[1], torch.zeros_like(grad))
    signal = term(m.exopd(lam=lam)).signal  # the sampled signal is a constant of the state there
    told = [
        prepared(changed(at, tokens=torch.full_like(c.tokens, token)), m.exopd(lam=lam), signal)
        for token in range(VOCABULARY)
    ]
    for x in told[1:]:
        torch.testing.assert_close(x, told[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("lam", [0.0, 0.5, 4.0])
def test_exopd_with_the_teacher_as_reference_is_opd(lam: float) -> None:
    """With pi_ref = pi_T the mixture is the teacher for every lambda."""
    c = case()
    c = changed(c, ref_logits=c.given["teacher_logits"])
    equal(c.value_and_grad(m.exopd_full(lam=lam)), c.value_and_grad(m.opd_full()))


def test_exopd_takes_the_teacher_of_each_samples_domain() -> None:
    """All samples share one denominator."""
    c = case(True)
    both = m.exopd(domains={"easy": "first", "hard": "second"})
    easy = c.given["domain=easy"][:, None, None]
    mixed = torch.where(easy, c.given["first_logits"], c.given["second_logits"])
    equal(c.value_and_grad(both), changed(c, teacher_logits=mixed).value_and_grad(m.exopd()))
    differ(c.loss(both), changed(c, teacher_logits=c.given["first_logits"]).loss(m.exopd()))


# ---------------------------------------------------------------- vOPD


def advantages(c: Case, method: Method) -> Tensor:
    """The signal at every entry of the vocabulary, ``[N, V]``."""
    signal = term(method).signal
    rows = [prepared(changed(c, tokens=torch.full_like(c.tokens, v)), method, signal) for v in range(VOCABULARY)]
    return torch.stack(rows, dim=-1)


def test_vopds_baseline_makes_the_mean_advantage_zero() -> None:
    """E A = 0 at k = V, and not at k < V."""
    c = case()
    q = laws(c, "student")
    mean = (q * advantages(c, m.vopd(top_k=VOCABULARY))).sum(-1)
    equal(mean, torch.zeros_like(mean))
    differ((q * advantages(c, m.vopd(top_k=2))).sum(-1), torch.zeros_like(mean))
    differ((q * advantages(c, m.opd())).sum(-1), torch.zeros_like(mean))


def test_vopd_with_k_above_the_vocabulary_takes_all_of_it() -> None:
    """k above V is the same as k = V."""
    c = case()
    identical(c.value_and_grad(m.vopd(top_k=VOCABULARY)), c.value_and_grad(m.vopd(top_k=100)))


def test_vopd_without_its_baseline_is_opd() -> None:
    """Per token, not summed over the rest of the sequence."""
    c = case()
    bare = Method(sample(student), Term(log_ratio(teacher, student), ratio), token_mean)
    opd = Method(sample(student), term(m.opd()), token_mean)
    equal(c.value_and_grad(bare), c.value_and_grad(opd))
    q, p = laws(c, "student"), laws(c, "teacher")
    gap = c.value_and_grad(bare)[0] - c.value_and_grad(m.vopd(top_k=VOCABULARY))[0]
    equal(gap, kl(q, p).mean())


def test_vopds_baseline_is_normalised_within_the_students_top_k() -> None:
    """It is the KL of both distributions restricted to the student's k entries and normalised there."""
    c = case()
    q, p = laws(c, "student"), laws(c, "teacher")
    ids = q.topk(3, -1).indices
    qk, pk = (x.gather(-1, ids) for x in (q, p))
    want = kl(qk / qk.sum(-1, keepdim=True), pk / pk.sum(-1, keepdim=True))
    v = divergence(rkl, teacher, student, Support(3, "student", tail=False))
    equal(prepared(c, Method(sample(student), Term(v, reinforce)), v), want)


def test_vopd_with_a_reward_adds_grpos_advantage() -> None:
    """The loss is the sum of both."""
    c = case(True)
    both = c.value_and_grad(m.vopd(top_k=3, reward=True))
    parts = [c.value_and_grad(x) for x in (m.vopd(top_k=3), Method(sample(student), Term(group_advantage(), ratio)))]
    equal(both, (parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))


def test_vopds_floor_is_a_log_odds() -> None:
    """r >= log(lambda / (1 - lambda)); the release's (log lambda) / (1 - lambda) is pinned in tests/golden."""
    c = case(True)
    floored = m.vopd(top_k=3, floor=0.2)
    gap = c.rows(spoken(c, "teacher") - spoken(c, "student"))
    low = math.log(0.2 / 0.8)
    assert (gap < low).any()
    loss, free = c.loss(floored), c.loss(m.vopd(top_k=3))
    rho = c.rows((spoken(c, "student") - c.given["old_logp"]).exp())
    equal(loss - free, -(rho * (gap.clamp(min=low) - gap)).mean())


# ---------------------------------------------------------------- Lightning


def stored_at(c: Case) -> Case:
    """The teacher's log-probs as the stored column."""
    return changed(c, **{"log π_teacher": spoken(c, "teacher")})


def test_lightning_has_the_gradient_of_online_opd_at_the_start() -> None:
    """At pi_theta = pi_ref the gradient equals OPD's, sample by sample."""
    c = stored_at(case())
    online = Method(sample(student), Term(log_ratio(teacher), ratio), token_mean)
    equal(c.value_and_grad(m.lightning_opd())[1], c.value_and_grad(online)[1])


def test_lightning_ignores_the_sampling_log_probs() -> None:
    """The importance weight is 1: it reads neither old nor sampling log-probs, and no teacher either."""
    c = stored_at(case(True))
    other = changed(c, old_logp=c.given["old_logp"] - 1, rollout_logp=c.given["rollout_logp"] + 1)
    identical(c.value_and_grad(m.lightning_opd()), other.value_and_grad(m.lightning_opd()))
    assert m.lightning_opd().views.keys() == {student}
    assert m.lightning_opd().roles == {"init": {"text"}, "teacher": {"sampled"}}
    assert m.lightning_opd().source.source == sample(init, check=False)


def test_lightning_has_no_gradient_at_the_teacher() -> None:
    """Checked for every token of the vocabulary at pi_theta = pi_T."""
    c = agreeing(case(), "teacher")
    for token in range(VOCABULARY):
        said = stored_at(changed(c, tokens=torch.full_like(c.tokens, token)))
        assert said.value_and_grad(m.lightning_opd())[1].abs().max() < 1e-12


def test_lightning_clips_its_advantage_to_tau() -> None:
    """As in the paper's Algorithm 1."""
    c = stored_at(case())
    gap = c.rows(spoken(c, "teacher") - spoken(c, "student"))
    assert (gap.abs() > 0.5).any()
    equal(
        c.loss(m.lightning_opd(advantage_clip=0.5)).detach(),
        -(gap.clamp(-0.5, 0.5) * c.rows(spoken(c, "student"))).mean(),
    )
    identical(c.value_and_grad(m.lightning_opd(advantage_clip=99.0)), c.value_and_grad(m.lightning_opd()))


def test_exopd_reads_only_sampled_log_probs_of_its_reference() -> None:
    """The reference enters by its sampled log-prob only; the weight is capped at 5."""
    assert m.exopd().reads("ref") == {"sampled"}
    assert logp(ref) in set(term(m.exopd()).signal.walk())
    assert "5" in str(term(m.exopd()).weight)
