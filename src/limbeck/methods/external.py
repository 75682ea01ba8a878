"""On-policy distillation from an outside teacher: other signals, selected tokens, stored log-probs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..axes import (
    Expr,
    Support,
    behavior,
    blend,
    clip,
    column,
    divergence,
    divergence_loss,
    draw,
    entropy,
    group_advantage,
    importance,
    init,
    log_ratio,
    logp,
    minmax,
    old,
    once,
    other,
    ratio,
    ref,
    reinforce,
    sample,
    score_column,
    soft_or,
    step_drift,
    student,
    tagged,
    teacher,
    token_mean,
    top,
)
from ..errors import number
from ..math.divergence import fkl, rkl
from ..space.method import Method
from ..space.registry import method
from ..space.term import Sum, Term


@method(paper="arXiv:2605.07725", title="SOD")
def sod(coef: float = 1.0, ceiling: float = 0.2, group: int = 16, turns: int = 16) -> Method:
    r"""Step-wise on-policy distillation: GRPO plus a log-ratio with less weight on turns where the student has drifted.

    .. math:: A_t = A^{GRPO} + c\,w_{k(t)}\,[\log\pi_T - \log\pi_{old}](y_t),\qquad
              w_k = \min\Big(\frac{d_1+\epsilon}{d_k+\epsilon},\,1+\delta\Big)

    :math:`d_k` is the mean :math:`|\log\pi_{old}-\log\pi_T|` of turn k. The paper multiplies ratios of
    neighbouring turns; the product telescopes to this.

    Args:
        coef: c; 1 (script).
        ceiling: delta; 0.2 (script; the class default is 0.5).
        group: rollouts per prompt; 16 (script).
        turns: the most turns; 16 (script). Use 1 for a task that is answered in one turn; then w = 1.
    """
    A = group_advantage()
    if coef != 0:  # with 0, the teacher is not needed
        A = A + coef * (step_drift(teacher, ceiling) * log_ratio(teacher))
    return Method(sample(student, group, turns=turns), Term(A, clip(0.2, 0.28)), token_mean)


@method(paper="arXiv:2605.07725", title="SOD, per sample (legacy)", confidence="medium")
def sod_per_sample(beta_min: float = 0.0, beta_max: float = 0.1, gamma: float = 1.0, group: int = 8) -> Method:
    r"""The legacy mode of SOD: one distillation weight per response, larger where the response did badly.

    .. math:: A = A^{GRPO} + \beta_j\,[\log\pi_T-\log\pi_{old}],\quad
              \beta_j = \beta_{min} + (\beta_{max}-\beta_{min})\,\sigma(-\gamma A^{GRPO}_j)

    Args:
        beta_min: 0 (ours; we did not read the code's default).
        beta_max: 0.1 (code).
        gamma: 1 (code).
        group: rollouts per prompt; 8 (ours).
    """
    A = group_advantage()
    number("beta_min of sod_per_sample", beta_min, 0, ends=True)
    number("beta_max of sod_per_sample", beta_max, beta_min, ends=True)
    beta = beta_min + (beta_max - beta_min) * (-gamma * A).sigmoid()
    return Method(sample(student, group), Term(A + beta * log_ratio(teacher), clip(0.2, 0.28)), token_mean)


def _disagreement(forward: bool = False) -> Expr:
    """The normalised divergence of TIP between the student at the start of the batch and the teacher."""
    return minmax(divergence(fkl if forward else rkl, teacher, old))


@method(paper="arXiv:2604.14084", title="TIP", confidence="medium")
def tip(rho: float = 0.5, group: int = 1) -> Method:
    r"""Reverse KL on selected tokens, those with high student entropy or disagreement with the teacher (Soft-OR).

    .. math:: L = \frac{1}{|S|}\sum_{t\in S}\mathrm{KL}(q_t\Vert p_t),\quad
              S = \mathrm{top}_{\rho}\big(1-(1-\hat h_t)(1-\hat\delta_t)\big)

    h is the student's entropy and delta its reverse KL to the teacher, both scaled to 0...1 over the batch. The
    selection uses the student at the start of the batch and carries no gradient. Soft-OR selection is in the paper
    only, not in the released code. The paper does not say whether the scaling is over a batch or a rollout; a batch is
    ours.

    Args:
        rho: fraction of tokens; 0.5 (paper). 1 is on-policy distillation on all tokens.
        group: rollouts per prompt; 1 (code).
    """
    chosen = top(soft_or(minmax(entropy(old)), _disagreement()), rho)
    return Method(sample(student, group, check=False), Term(teacher, divergence_loss(rkl), chosen), token_mean)


@method(paper="arXiv:2604.14084", title="TIP, by entropy", confidence="high")
def tip_entropy(rho: float = 0.5, group: int = 1) -> Method:
    r"""Reverse KL on tokens drawn without replacement in proportion to the student's entropy (the released code).

    .. math:: L = \frac{1}{|S|}\sum_{t\in S}\mathrm{KL}(q_t\Vert p_t),\qquad P(t\in S)\propto h_t

    The selection does not look at the teacher, so a confidently wrong token is hardly ever drawn.

    Args:
        rho: fraction of tokens; 0.5 (paper).
        group: rollouts per prompt; 1 (code).
    """
    return Method(
        sample(student, group, check=False), Term(teacher, divergence_loss(rkl), draw(entropy(old), rho)), token_mean
    )


@method(paper="arXiv:2604.14084", title="TIP, confidently wrong tokens", confidence="medium")
def tip_q3(rho: float = 0.2, group: int = 1) -> Method:
    r"""Reverse KL on the tokens with low student entropy and high (forward-KL) disagreement.

    .. math:: L = \frac{1}{|S|}\sum_{t\in S}\mathrm{KL}(q_t\Vert p_t),\qquad
              S = \mathrm{top}_{\rho}\big(\hat\delta_t(1-\hat h_t)\big)

    Args:
        rho: fraction of tokens; 0.2 (paper: 0.1 to 0.2).
        group: rollouts per prompt; 1 (code).
    """
    chosen = top(_disagreement(forward=True) * (1.0 - minmax(entropy(old))), rho)
    return Method(sample(student, group, check=False), Term(teacher, divergence_loss(rkl), chosen), token_mean)


@method(paper="arXiv:2602.12125", title="G-OPD / ExOPD")
def exopd(
    lam: float = 1.25,
    clip_range: float = 0.2,
    dual: float = 3.0,
    is_cap: float = 5.0,
    group: int = 1,
    domains: Mapping[str, str] | None = None,
) -> Method:
    r"""Beyond the teacher: reverse KL to an extrapolation from the reference through the teacher.

    .. math:: A_t = [\log\pi_T-\log\pi_{old}] + (\lambda-1)\,[\log\pi_T-\log\pi_{ref}]

    at the sampled token. The optimum per state is :math:`\pi_T^\lambda\pi_{ref}^{1-\lambda}/Z`. The sign in Eq. 14 of
    the paper is reversed against its text and code; this implementation follows the text. The reference is the student
    before training, or (``--ref``) the teacher's own base model.

    Args:
        lam: lambda; 1.25 (ExOPD). 1 is on-policy distillation with any reference; below 1 interpolates.
        clip_range, dual: PPO clip and dual clip; 0.2 and 3 (code).
        is_cap: cap of the importance weight to the behaviour policy; 5 (code).
        group: rollouts per prompt; 1 (code).
        domains: the name of a teacher for each word in the prompt's column ``domain``; None: one teacher.
    """
    weight = importance(old, behavior, is_cap)
    terms: list[Term] = []
    for domain, name in (domains or {"": "teacher"}).items():
        guide = other(name) if domain else teacher
        signal = log_ratio(guide)
        signal = signal if lam == 1 else signal + (lam - 1.0) * (logp(guide) - logp(ref))
        surrogate = clip(clip_range, dual=dual)
        terms.append(
            Term(signal, surrogate, tagged("domain", domain), weight, per="all")
            if domain
            else Term(signal, surrogate, weight=weight)
        )
    return Method(sample(student, group, check=False), sum(terms, Sum(())), token_mean)


@method(paper="arXiv:2602.12125", title="G-OPD, full vocabulary", confidence="medium")
def exopd_full(lam: float = 1.25, group: int = 1) -> Method:
    r"""G-OPD's objective over the whole vocabulary: reverse KL to :math:`\pi_T^\lambda\pi_{ref}^{1-\lambda}/Z`.

    It has the same expected gradient as the sampled form, with far less variance (our derivation: the log-ratio to the
    geometric mixture is the signal of the sampled form up to a constant per state).

    Args:
        lam: lambda; 1.25 (ExOPD).
        group: rollouts per prompt; 1 (code).
    """
    target = blend((teacher, lam), (ref, 1.0 - lam), space="log") if lam != 1 else teacher
    return Method(sample(student, group, check=False), Term(target, divergence_loss(rkl)), token_mean)


@method(paper="arXiv:2605.07865", title="vOPD")
def vopd(top_k: int = 100, floor: float | None = None, reward: bool = False, group: int = 1) -> Method:
    r"""Sampled-token distillation with the value of the state, minus the KL, as a control variate.

    .. math:: A_t = [\log\pi_T-\log\pi_\theta](y_t) + \mathrm{KL}_k(q_t\Vert p_t)

    The baseline does not depend on the action, so the gradient is unbiased for every k. (The KL is over the student's k
    most likely entries, with both distributions normalised within them.) At k = V the advantage has mean 0.

    Args:
        top_k: k; 100 (code).
        floor: lambda of REOPOLD's floor r >= log(lambda / (1 − lambda)) on the log-ratio; None (code). The release
            computes log(lambda)/(1 − lambda); this is the intended formula.
        reward: whether to add the advantage of GRPO; False (paper: where a reward exists).
        group: rollouts per prompt; 1 (code).
    """
    if floor is not None:
        number("floor of vopd", floor, 0, 1)
    r = log_ratio(teacher, student)
    r = r if floor is None else r.clip(lo=math.log(floor / (1.0 - floor)))
    signal = r + divergence(rkl, teacher, student, Support(top_k, "student", tail=False))
    signal = group_advantage() + signal if reward else signal
    return Method(sample(student, group, check=reward), Term(signal, ratio), token_mean)


@method(paper="arXiv:2604.13010", title="Lightning OPD", confidence="high")
def lightning_opd(advantage_clip: float | None = None) -> Method:
    r"""Offline on-policy distillation: sample and score rollouts once, then train without a teacher.

    .. math:: A_t = \mathrm{clip}\big(\log\pi_T(y_t)_{stored} - \log\pi_\theta(y_t), \pm\tau\big),\qquad
              J = E_{y\sim\pi_{ref}}\sum_t A_t\log\pi_\theta(y_t)

    The rollouts are never re-weighted. The method assumes that the student's SFT data came from the same teacher
    (*teacher consistency*); the run prints a note where the student's folder names another one. At the start, the
    gradient is that of online distillation. The token mean is ours.

    Args:
        advantage_clip: tau; None (code; the paper clips, but does not publish the value).
    """
    signal = column(score_column(teacher), "token") - logp(student)
    if advantage_clip is not None:
        number("advantage_clip of lightning_opd", advantage_clip, 0)
        signal = signal.clip(-advantage_clip, advantage_clip)
    return Method(once(sample(init, check=False), score=teacher), Term(signal, reinforce), token_mean)
