"""Distillation from a teacher: on data, on the student's own rollouts, or on a mixture of both."""

from __future__ import annotations

from ..axes import (
    Scalar,
    behavior,
    blend,
    clip,
    data,
    divergence_loss,
    either,
    importance,
    log_ratio,
    logp,
    on,
    policy,
    sample,
    standardise,
    student,
    teacher,
    to_go,
    token_mean,
    token_sum,
)
from ..errors import number
from ..math.divergence import Divergence, as_divergence, fkl, jsd, rkl, soft_ce
from ..space.method import Method
from ..space.registry import method
from ..space.term import Term, nll


@method(paper="", title="Supervised fine-tuning")
def sft() -> Method:
    r"""Negative log-likelihood of the responses in the data, mean over tokens.

    .. math:: L = -\frac1N\sum_n \log\pi_\theta(y_n)

    With responses from a teacher this is sequence-level distillation (Kim & Rush 2016).
    """
    return Method(data(), nll(), token_mean)


@method(paper="arXiv:1503.02531", title="Knowledge distillation (Hinton, word level)")
def kd(weight: float = 0.9, tau: float = 4.0, top_k: int | None = None) -> Method:
    r"""Match the teacher's next-token distribution at a raised temperature, on the responses in the data.

    .. math:: L = (1-w)\,\mathrm{CE}(y) + w\,\tau^2\,\mathrm{KL}(p_\tau\Vert q_\tau)

    The loss is a mean over tokens and the teacher is detached. The gradient of the second part is tau * (q - p) per
    token.

    Args:
        weight: w; 0.9, from the mdistiller code for CIFAR-100. For language models, 0.5 to 1 is common.
        tau: temperature on both sides; 4, from the same code. Use 1 with ``top_k``.
        top_k: use only the teacher's k most likely tokens and one bucket for the tail, a lower bound of the full
            divergence; None (ours) uses the full vocabulary.
    """
    number("weight of kd", weight, 0, 1, ends=True)
    number("tau of kd", tau, 0)
    return Method(
        data(),
        (1 - weight) * nll() + weight * tau**2 * Term(teacher, divergence_loss(fkl, tau, top_k)),
        token_mean,
    )


@method(paper="arXiv:2306.13649", title="GKD")
def gkd(
    lam: Scalar | float | str = 0.5,
    beta: float = 0.5,
    divergence: Divergence | str | None = None,
    top_k: int | None = None,
    tau: float = 1.0,
    seq_kd: bool = False,
) -> Method:
    r"""Generalised knowledge distillation: any divergence per token, on the data or on the student's own samples.

    .. math:: L = \frac1N\sum_n D(p_n, q_n), \qquad
              \mathrm{JSD}_\beta = \beta\,\mathrm{KL}(p\Vert m) + (1-\beta)\,\mathrm{KL}(q\Vert m),\
              m = \beta p + (1-\beta) q

    Each batch is sampled from the student with probability lambda, and taken from the data otherwise. No gradient
    passes through sampling. The end points of beta are other divergences: ``divergence="fkl"`` is beta = 0 in TRL, and
    ``divergence="rkl"`` is beta = 1.

    Args:
        lam: lambda, the probability of an on-policy batch; 0.5 (TRL). 1 is fully on-policy, 0 is supervised.
        beta: weight of the teacher in the Jensen-Shannon divergence; 0.5 (TRL).
        divergence: another divergence by name, e.g. ``"fkl"``, ``"rkl"``, ``"skew_fkl(0.1)"``; then beta is not used.
        top_k: use only the teacher's k most likely tokens and one bucket for the tail; None (ours) uses all.
        tau: temperature on both sides of the loss; 1 (paper). Sampling is at 1 too (TRL samples at 0.9).
        seq_kd: whether the teacher writes the off-policy responses, in place of the data; False (TRL).
    """
    row = jsd(beta) if divergence is None else as_divergence(divergence)
    supervised = sample(teacher, check=False) if seq_kd else data()
    return Method(
        either(lam, sample(student, check=False), supervised),
        Term(teacher, divergence_loss(row, tau, top_k)),
        token_mean,
    )


@method(paper="arXiv:2306.08543", title="MiniLLM")
def minillm(
    mix: float = 0.2,
    gamma: float = 0.95,
    clip_range: float = 0.2,
    reward_scale: float = 0.5,
    reward_clip: float = 100.0,
    lm_coef: float = 1.0,
    updates: int = 4,
) -> Method:
    r"""Sequence-level reverse KL by policy gradient, with teacher-mixed sampling and a single-step term.

    Tokens are drawn from :math:`\tilde p = (1-\alpha)\pi_\theta + \alpha\pi_T`. There are three terms:

    1. long-term: PPO-clip on :math:`\pi_\theta/\tilde p` with the whitened, length-normalised return
       :math:`R_t = \frac{1}{T-t}\sum_{s\ge t}\gamma^{s-t} r_s`,
       :math:`r = \mathrm{clip}((\log\pi_T-\log\pi_{old})/0.5)`;
    2. single step: full-vocabulary reverse KL at every visited state, weighted by
       :math:`w_t = \mathrm{sg}[\pi_\theta/\tilde p]`;
    3. language modelling on a second data set named ``pretrain``: half CE, half soft CE to the teacher.

    Code and paper differ: the release leaves w_t out of term 2 and whitens over padding too, and TRL's port discounts
    by gamma^s instead of gamma^(s-t). This implementation follows the paper.

    Args:
        mix: alpha; 0.2 (paper).
        gamma: discount; 0.95 (code).
        clip_range: 0.2 (code).
        reward_scale, reward_clip: 0.5 and 100 (code).
        lm_coef: 1 (paper); 0 leaves out term 3 and the data that it needs.
        updates: PPO epochs per batch; 4 (code).
    """
    number("minillm: reward_scale", reward_scale, 0)
    number("minillm: reward_clip", reward_clip, 0)
    r = (log_ratio(teacher) / reward_scale).clip(-reward_clip, reward_clip)
    returns = standardise(to_go(r, gamma, mean=True), "batch", where=on("roll"))
    weight = importance(student, behavior)
    roll = Term(returns, clip(clip_range, base=logp(behavior)), on("roll"))
    single = Term(teacher, divergence_loss(rkl), on("roll"), weight)
    lm = 0.5 * nll(on("lm")) + 0.5 * Term(teacher, divergence_loss(soft_ce), on("lm"))
    sources = {"roll": sample(blend((student, 1 - mix), (teacher, mix)), check=False)}
    if lm_coef == 0:
        return Method(sources, roll + single, token_mean, updates=updates)
    return Method({**sources, "lm": data("pretrain")}, roll + single + lm_coef * lm, token_mean, updates=updates)


@method(paper="thinkingmachines.ai/blog/on-policy-distillation", title="On-policy distillation (sampled token)")
def opd(coef: float = 1.0, gamma: float = 0.0, group: int = 4) -> Method:
    r"""Reverse KL on the student's own rollouts, from the teacher's log-prob of each sampled token.

    .. math:: L = -\sum_t \frac{\pi_\theta}{\mu}(y_t)\,A_t, \qquad
              A_t = c\sum_{s\ge t}\gamma^{s-t}\,\mathrm{sg}[\log\pi_T(y_s) - \log\mu(y_s)]

    The loss is a sum over tokens without a clip; mu is the behaviour policy. With gamma = 0 the expected on-policy
    gradient is that of the reverse KL per state; with gamma = 1 it is that of the KL of whole sequences.

    Args:
        coef: c; 1 (tinker-cookbook).
        gamma: discount; 0 (tinker-cookbook).
        group: rollouts per prompt; 4 (tinker-cookbook).
    """
    signal = log_ratio(teacher, behavior)
    signal = signal if gamma == 0 else to_go(signal, gamma)
    advantage = signal if coef == 1 else coef * signal
    return Method(sample(student, group, check=False), Term(advantage, policy("ratio", base=logp(behavior))), token_sum)


@method(paper="arXiv:2306.13649", title="On-policy distillation (full vocabulary)")
def opd_full(divergence: Divergence | str = "rkl", top_k: int | None = None, group: int = 1) -> Method:
    r"""Any divergence over the full vocabulary on the student's own rollouts; reverse KL by default.

    .. math:: L = \frac1N\sum_n \mathrm{KL}(q_n\Vert p_n)

    This is GKD with lambda = 1. It has the same expected gradient as ``opd`` with gamma = 0 (up to the reduction), with
    far less variance.

    Args:
        divergence: a divergence or its name; ``"rkl"`` (ours).
        top_k: use only the teacher's k most likely tokens and one bucket for the tail; None (ours) uses all.
        group: rollouts per prompt; 1 (ours).
    """
    return Method(
        sample(student, group, check=False),
        Term(teacher, divergence_loss(as_divergence(divergence), top_k=top_k)),
        token_mean,
    )
