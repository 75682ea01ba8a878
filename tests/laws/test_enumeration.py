"""Laws by enumeration: the expected gradient of every estimator is the exact gradient of what it claims.

Everything is float64 and exact to 1e-10.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

import limbeck as lb
from limbeck.axes import (
    cispo,
    clip,
    column,
    divergence_advantage,
    divergence_loss,
    everywhere,
    group_advantage,
    log_ratio,
    logp,
    old,
    ratio,
    ref,
    reinforce,
    sample,
    sampled,
    score,
    student,
    teacher,
    to_go,
    token_sum,
)
from limbeck.axes.policy_gradient import SampledLoss
from limbeck.axes.surrogate import Surrogate
from limbeck.math.divergence import Divergence, as_divergence
from limbeck.space.method import Method
from limbeck.space.term import Term
from tabular import (
    BEHAVIOUR,
    DIVERGENCES,
    EXACT,
    REF,
    REWARD,
    STATE,
    TEACHER,
    THETA,
    Y,
    expected_gradient,
    expected_reward,
    gradient,
    law,
    per_state,
    sequence_rkl,
    token_logp,
    visits,
)

TEACHER_LOGP = {"teacher_logp": token_logp(TEACHER)}
TEACHER_ROWS = {"teacher_logits": TEACHER[STATE]}
SAME, DIFFERENT = 1e-10, 1e-3


def one(signal: object, surrogate: Surrogate, **more: object) -> Method:
    """A single term on the student's own samples, divided by nothing."""
    return Method(sample(), Term(signal, surrogate, **more), token_sum)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, **EXACT)


def far(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() > DIFFERENT


# ---------------------------------------------------------------- reverse and forward KL from sampled tokens

REVERSE_KL = {
    "log_ratio, reinforce": one(log_ratio(teacher), reinforce),
    "log_ratio, ratio": one(log_ratio(teacher), ratio),
    "log_ratio, clip": one(log_ratio(teacher), clip(0.2)),
    "log_ratio, cispo": one(log_ratio(teacher), cispo()),
    "opd": lb.methods.opd(),
    "k2": one(logp(teacher), sampled("k2")),
    "ρ·k3": one(logp(teacher), sampled("k3", ratio=True)),
}


@pytest.mark.parametrize("name", REVERSE_KL)
def test_sampled_opd_is_reverse_kl_of_visited_states(name: str) -> None:
    """At the states that the student visits; whichever unbiased estimator is used."""
    close(expected_gradient(REVERSE_KL[name], **TEACHER_LOGP), gradient(per_state("rkl")))


def test_k3_without_a_ratio_is_forward_kl() -> None:
    """Back-propagating k3 on its own is therefore not reverse-KL distillation."""
    k3 = expected_gradient(one(logp(teacher), sampled("k3")), **TEACHER_LOGP)
    close(k3, gradient(per_state("fkl")))
    far(k3, gradient(per_state("rkl")))


@dataclass(frozen=True)
class _LogU(Divergence):
    """h(u) = log u: k1 as a live loss, which the library itself refuses."""

    def potential(self, log_u: torch.Tensor) -> torch.Tensor:
        return log_u


def test_k1_as_a_loss_has_zero_expected_gradient() -> None:
    """The teacher cancels out of the expected gradient."""
    k1 = one(logp(teacher), SampledLoss("k1", _LogU(), False, logp(old)))
    close(expected_gradient(k1, **TEACHER_LOGP), torch.zeros_like(THETA))
    with pytest.raises(lb.LimbeckError, match=r"zero expected gradient.*'k2'"):
        sampled("k1")


@pytest.mark.parametrize("surrogate", [ratio, clip(50.0), cispo(hi=1e9)], ids=str)
def test_off_policy_ratio_corrects_the_law_of_tokens(surrogate: Surrogate) -> None:
    """The expectation is exact per state, at the states that mu visits."""
    m = one(log_ratio(teacher, student), surrogate)
    got = expected_gradient(m, BEHAVIOUR, **TEACHER_LOGP)
    close(got, gradient(per_state("rkl", visits(BEHAVIOUR))))


def test_off_policy_k3_with_its_ratio_is_reverse_kl() -> None:
    """E_mu[rho k3], differentiating both."""
    got = expected_gradient(one(logp(teacher), sampled("k3", ratio=True)), BEHAVIOUR, **TEACHER_LOGP)
    close(got, gradient(per_state("rkl", visits(BEHAVIOUR))))


def test_off_policy_without_a_ratio_is_another_objective() -> None:
    """Reused off-policy, the k2 term needs a ratio."""
    got = expected_gradient(one(logp(teacher), sampled("k2")), BEHAVIOUR, **TEACHER_LOGP)
    far(got, gradient(per_state("rkl", visits(BEHAVIOUR))))


def test_opd_off_policy_is_the_gradient_against_the_writer() -> None:
    """A_t = log pi_T - log mu, so off-policy it descends E_pi[log mu - log pi_T]."""
    mu, p = BEHAVIOUR.log_softmax(-1), TEACHER.log_softmax(-1)
    exact = gradient(lambda theta: (visits(BEHAVIOUR) * (theta.softmax(-1) * (mu - p)).sum(-1)).sum())
    close(expected_gradient(lb.methods.opd(), BEHAVIOUR, **TEACHER_LOGP), exact)


# ---------------------------------------------------------------- token level and sequence level


@pytest.mark.parametrize(
    "m",
    [one(to_go(log_ratio(teacher), 1.0), reinforce), one(log_ratio(teacher).total, ratio), lb.methods.opd(gamma=1.0)],
    ids=["to_go", "total", "opd"],
)
def test_reward_to_go_is_the_whole_sequence_kl(m: Method) -> None:
    """gamma = 1 restores the full gradient."""
    close(expected_gradient(m, **TEACHER_LOGP), gradient(sequence_rkl))


def test_token_level_misses_the_known_future_term() -> None:
    """The sequence gradient - token gradient = grad log pi(y_1) * sg[KL of the second state]."""
    second = DIVERGENCES["rkl"](THETA.softmax(-1), TEACHER.softmax(-1))[1:]
    future = gradient(lambda theta: (theta[0].softmax(-1) * second).sum())
    token = expected_gradient(one(log_ratio(teacher), reinforce), **TEACHER_LOGP)
    close(token + future, gradient(sequence_rkl))
    far(token, gradient(sequence_rkl))


def test_strict_to_go_is_the_future_term_alone() -> None:
    """It is the sequence gradient less the token gradient."""
    strict = expected_gradient(one(to_go(log_ratio(teacher), 1.0, strict=True), reinforce), **TEACHER_LOGP)
    close(strict, gradient(sequence_rkl) - gradient(per_state("rkl")))


def test_discount_interpolates() -> None:
    """The gradient is affine in gamma on two tokens."""
    token, sequence = gradient(per_state("rkl")), gradient(sequence_rkl)
    got = expected_gradient(lb.methods.opd(gamma=0.3), **TEACHER_LOGP)
    close(got, 0.7 * token + 0.3 * sequence)


# ---------------------------------------------------------------- the divergence table

RENYI = [name for name in DIVERGENCES if name.startswith("renyi")]
F_ROWS = [name for name in DIVERGENCES if name not in RENYI]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_policy_gradient_of_a_divergence(name: str) -> None:
    """Advantage -f'(u), y ~ q, has the gradient of the full divergence. Renyi's needs dense rows."""
    m = one(divergence_advantage(as_divergence(name), teacher), reinforce)
    close(expected_gradient(m, **TEACHER_ROWS), gradient(per_state(name)))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_policy_gradient_of_a_divergence_off_policy(name: str) -> None:
    """Off-policy, multiply by rho (u read from the student as it is now)."""
    m = one(divergence_advantage(as_divergence(name), teacher, student), ratio)
    close(expected_gradient(m, BEHAVIOUR, **TEACHER_ROWS), gradient(per_state(name, visits(BEHAVIOUR))))


@pytest.mark.parametrize("name", F_ROWS)
def test_advantage_is_zero_where_the_laws_agree(name: str) -> None:
    """-f'(u) + f'(1)."""
    m = one(divergence_advantage(as_divergence(name), teacher), reinforce)
    close(expected_gradient(m, teacher_logp=token_logp(THETA)), torch.zeros_like(THETA))
    row = as_divergence(name)
    close(row.advantage(torch.zeros(1, dtype=torch.float64)), torch.zeros(1, dtype=torch.float64))


HAVE_A_LOSS_FORM = [n for n in F_ROWS if not n.startswith(("jsd", "skew_rkl"))]


@pytest.mark.parametrize("name", HAVE_A_LOSS_FORM)
def test_loss_form_of_a_divergence(name: str) -> None:
    """h with h' = f'/u, back-propagated."""
    m = one(logp(teacher), sampled(as_divergence(name)))
    close(expected_gradient(m, **TEACHER_LOGP), gradient(per_state(name)))


@pytest.mark.parametrize("name", ["jsd(0.3)", "skew_rkl(0.1)", "renyi(0.5)"])
def test_divergence_without_a_loss_form_is_refused(name: str) -> None:
    """The error names the policy-gradient form, which exists for all of them."""
    with pytest.raises(lb.LimbeckError, match=r"no closed loss form.*divergence_advantage"):
        sampled(as_divergence(name))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_pathwise_is_autograd_of_the_plain_formula(name: str) -> None:
    """Both value and gradient."""
    m = one(teacher, divergence_loss(as_divergence(name)))
    close(expected_gradient(m, **TEACHER_ROWS), gradient(per_state(name)))
    value = lb.objective(m)(THETA[STATE], Y, **TEACHER_ROWS).loss
    rows = DIVERGENCES[name](THETA.softmax(-1), TEACHER.softmax(-1))
    close(value, rows[STATE].sum())


def test_soft_cross_entropy_has_forward_kls_gradient() -> None:
    """They differ by the teacher's entropy, which is constant."""
    got = expected_gradient(one(teacher, divergence_loss(as_divergence("soft_ce"))), **TEACHER_ROWS)
    close(got, gradient(per_state("fkl")))


def test_closed_form_gradients_of_both_kls() -> None:
    """With respect to logits: q - p for forward KL, q (log q/p - KL) for reverse KL."""
    q, p = THETA.softmax(-1), TEACHER.softmax(-1)
    w = visits(THETA)[:, None]
    close(expected_gradient(one(teacher, divergence_loss(as_divergence("fkl"))), **TEACHER_ROWS), w * (q - p))
    kl = DIVERGENCES["rkl"](q, p)[:, None]
    close(
        expected_gradient(one(teacher, divergence_loss(as_divergence("rkl"))), **TEACHER_ROWS),
        w * q * ((q / p).log() - kl),
    )


@pytest.mark.parametrize("name", F_ROWS)
def test_value_estimator_is_unbiased_and_never_negative(name: str) -> None:
    """[f(u) - f'(1)(u - 1)] / u with y ~ q."""
    q, p = THETA.softmax(-1), TEACHER.softmax(-1)
    estimate = as_divergence(name).estimate((q / p).log())
    close((q * estimate).sum(-1), DIVERGENCES[name](q, p))
    assert (estimate > -1e-12).all()


@pytest.mark.parametrize("name", [n for n in F_ROWS if n != "rkl"])
def test_value_as_reward_is_the_wrong_surrogate(name: str) -> None:
    """Advantage -f(u)/u is right only for reverse KL, so the tests above can fail."""

    def wrong(row: Divergence) -> torch.Tensor:
        log_u = token_logp(THETA) - token_logp(TEACHER)
        return -row.generator(log_u) / log_u.exp()

    m = one(column("told", "token"), reinforce)
    columns = wrong(as_divergence(name))
    got = torch.zeros_like(THETA)
    mu = law(THETA)
    for i in range(len(Y)):
        theta = THETA.clone().requires_grad_()
        loss = lb.objective(m)(theta[STATE[i]][None], Y[i : i + 1], columns={"told": columns[i : i + 1]}).loss
        got += mu[i] * torch.autograd.grad(loss, theta)[0]
    far(got, gradient(per_state(name)))


# ---------------------------------------------------------------- rewards


def test_reinforce_is_the_gradient_of_expected_reward() -> None:
    """L = -r log pi."""
    close(expected_gradient(one(score, reinforce), reward=REWARD), -gradient(expected_reward))


def test_ratio_is_the_gradient_of_expected_reward() -> None:
    """On-policy here: off-policy, only the product of the ratios of all tokens would be exact."""
    close(expected_gradient(one(score, ratio), reward=REWARD), -gradient(expected_reward))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_reward_with_the_teacher_to_go_is_j_minus_beta_kl(beta: float) -> None:
    """Inside one surrogate: -grad (J - beta KL of sequences)."""
    signal = score if beta == 0 else score + beta * to_go(log_ratio(teacher), 1.0)
    more = {} if beta == 0 else TEACHER_LOGP
    exact = -gradient(expected_reward) + beta * gradient(sequence_rkl)
    close(expected_gradient(one(signal, reinforce), reward=REWARD, **more), exact)


def test_reward_shaping_in_expectation() -> None:
    """A + beta sg[R], tokens: -grad J + beta grad RKL of visited states."""
    m = one(score + 0.4 * log_ratio(teacher), clip(0.2))
    exact = -gradient(expected_reward) + 0.4 * gradient(per_state("rkl"))
    close(expected_gradient(m, reward=REWARD, **TEACHER_LOGP), exact)


# ---------------------------------------------------------------- whole groups

PAIRS = torch.tensor(list(itertools.product(range(len(Y)), repeat=2)))


def expected_over_pairs(method: Method, **given: torch.Tensor) -> torch.Tensor:
    """Expected gradient over all groups of two sequences, in one call: 81 groups, each weighed by its probability."""
    theta = THETA.clone().requires_grad_()
    mu = law(THETA)
    members = PAIRS.flatten()
    chance = mu[PAIRS].prod(-1).repeat_interleave(2)
    loss = lb.objective(method)(
        theta[STATE[members]],
        Y[members],
        group=torch.arange(len(PAIRS)).repeat_interleave(2),
        columns={"chance": chance},
        **{k: v[members] for k, v in given.items()},
    ).loss
    return torch.autograd.grad(loss, theta)[0]


def test_group_baseline_scales_expected_reward_by_n_minus_one() -> None:
    """r - mean of its own group; summed over n = 2 members its expectation is (n - 1) grad J."""
    m = one(group_advantage(scale=False), clip(0.2), weight=column("chance"))
    close(expected_over_pairs(m, reward=REWARD), -gradient(expected_reward))


def test_leave_one_out_baseline_is_unbiased() -> None:
    """RLOO = n/(n-1) (r - mean), the gradient of J for each member."""
    m = one(2.0 * group_advantage(scale=False), reinforce, weight=column("chance"))
    close(expected_over_pairs(m, reward=REWARD), -2 * gradient(expected_reward))


def test_standardised_groups_are_biased() -> None:
    """Dividing by the group's std is another objective, so the two tests above can fail."""
    m = one(group_advantage(), clip(0.2), weight=column("chance"))
    got, exact = expected_over_pairs(m, reward=REWARD), -gradient(expected_reward)
    scale = (got * exact).sum() / exact.square().sum()
    far(got, scale * exact)


@pytest.mark.parametrize(("estimator", "kl"), [("k2", "rkl"), ("k3", "fkl")])
def test_joint_kdrl_in_expectation(estimator: str, kl: str) -> None:
    """Expected gradient of the joint form, with its k2 and its k3."""
    rl = Term(group_advantage(scale=False), clip(0.2), weight=column("chance"))
    distil = Term(logp(teacher), sampled(estimator), weight=column("chance"))
    got = expected_over_pairs(Method(sample(), rl + 0.2 * distil, token_sum), reward=REWARD, **TEACHER_LOGP)
    close(got, -gradient(expected_reward) + 0.2 * 2 * gradient(per_state(kl)))


def test_grpos_reference_term_has_forward_kls_gradient() -> None:
    """Back-propagated k3 is forward KL to the reference; with a ratio it is reverse."""
    for surrogate, kl in ((sampled("k3"), "fkl"), (sampled("k3", ratio=True), "rkl")):
        got = expected_gradient(one(logp(ref), surrogate), ref_logp=token_logp(REF))
        close(got, gradient(per_state(kl, teacher=REF)))


def test_likelihood_of_data_is_maximum_likelihood() -> None:
    """With teacher samples, SFT is forward KL of whole sequences (sequence-level distillation)."""
    m = Method(lb.methods.sft().source, Term(everywhere, reinforce), token_sum)
    mu, got = law(TEACHER), torch.zeros_like(THETA)
    for i in range(len(Y)):
        theta = THETA.clone().requires_grad_()
        got += mu[i] * torch.autograd.grad(lb.objective(m)(theta[STATE[i]][None], Y[i : i + 1]).loss, theta)[0]
    close(got, gradient(lambda theta: (law(TEACHER) * (law(TEACHER) / law(theta)).log()).sum()))


def test_a_constant_baseline_changes_nothing() -> None:
    """This holds for any baseline that does not depend on the action."""
    with_baseline = expected_gradient(one(log_ratio(teacher, old) + 3.7, reinforce), **TEACHER_LOGP)
    close(with_baseline, gradient(per_state("rkl")))
