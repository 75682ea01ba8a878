"""Privileged text and rewards: the policy that sees a hint is trained too, or is a target; critiques are targets."""

from __future__ import annotations

from ..axes import (
    Context,
    Scalar,
    behavior,
    clip,
    cohort,
    column,
    correct,
    divergence_loss,
    every,
    feedback,
    group_advantage,
    has,
    log_ratio,
    logistic,
    logp,
    old,
    on,
    plain,
    ratio,
    recast,
    reinforce,
    reward,
    running,
    sample,
    sampled,
    score,
    sequence_mean,
    solution,
    student,
    to_go,
    token_mean,
    token_sum,
    where,
)
from ..axes.context import as_context, tried_again
from ..axes.scalar import scalar
from ..axes.signal import ratio_of
from ..axes.source import Source
from ..errors import number, whole
from ..math.divergence import chi2, rkl
from ..space.method import Method
from ..space.registry import method
from ..space.term import Sum, Term, nll


@method(paper="arXiv:2602.04942", title="π-Distill", confidence="medium")
def pi_distill(
    alpha: float = 0.5, beta: float = 0.25, context: Context | str = solution, clip_range: float = 0.2, group: int = 8
) -> Method:
    r"""Privileged information distillation: sample from the student with a hint, train it with and without the hint.

    .. math:: J = \alpha\big(E[R] - \beta\,\mathrm{KL}(\pi^T\Vert\mathrm{sg}\,\pi^S)\big)
                + (1-\alpha)\Big(E\Big[\frac{\pi^S(o|s)}{\mathrm{sg}\,\pi^T(o|s,I)}R\Big]
                - \beta\,\mathrm{KL}(\mathrm{sg}\,\pi^T\Vert\pi^S)\Big)

    Both policies have the same weights, and :math:`\pi^T` sees I. There are two records of the same text: in ``hinted``
    the student sees I, in ``plain`` it does not. The ratio is of the whole sequence, as in the formula; a ratio per
    token has another expected gradient. KL(T‖S) on text that T wrote is estimated by :math:`u-\log u-1`, half the loss
    form of chi-square. Rewards become GRPO's advantages. No code was released; the equations are from notes.

    Args:
        alpha: share of the objective of the policy with the hint; 0.5 (the most robust in the paper). 1 and 0 drop the
            other half.
        beta: 0.25 (the paper has 0, 0.1, 0.25 and 0.5).
        context: I; the task's solution (ours; the paper has expert tool calls).
        clip_range: clip of PPO for the policy with the hint; 0.2 (ours).
        group: rollouts per prompt; 8 (ours).
    """
    number("alpha of pi_distill", alpha, 0, 1, ends=True)
    c = as_context(context)
    A = group_advantage()
    hinted = Term(A, clip(clip_range), on("hinted")) + beta * Term(
        logp(student.given(plain)), sampled("k3", ratio=True), on("hinted")
    )
    moved = ratio_of((logp(old) - logp(behavior)).total)
    bare = Term(A * moved, reinforce, on("plain")) + 0.5 * beta * Term(logp(behavior), sampled(chi2), on("plain"))
    sources = {"plain": sample(student.given(c), group), "hinted": recast("plain", c)}
    return Method(sources, alpha * hinted + (1.0 - alpha) * bare, token_mean)


@method(paper="arXiv:2602.04942", title="OPSD-RL", confidence="medium")
def opsd_rl(beta: float = 0.25, context: Context | str = solution, clip_range: float = 0.2, group: int = 8) -> Method:
    r"""GRPO on the student's own text, plus a reverse KL to the student that sees the privileged text.

    .. math:: J = E_{o\sim\pi^S}[R] - \beta\,\mathrm{KL}(\pi^S\Vert\mathrm{sg}\,\pi^T)

    The KL is :math:`\rho\,k_3` of the sampled tokens, which has the gradient of the reverse KL. The paper calls the
    method "OPSD"; it is another method than ``opsd``.

    Args:
        beta: 0.25 (the paper has 0, 0.1, 0.25 and 0.5); 0 is GRPO without a reference.
        context: I; the task's solution (ours).
        clip_range: 0.2 (ours).
        group: rollouts per prompt; 8 (ours).
    """
    view = student.given(as_context(context))
    rl = Term(group_advantage(), clip(clip_range))
    return Method(sample(student, group), rl + beta * Term(logp(view), sampled("k3", ratio=True)), token_mean)


@method(paper="arXiv:2605.15113", title="VPD", confidence="medium")
def vpd(e_every: int | None = 5, beta: float = 0.1, rate: float = 0.99, group: int = 8) -> Method:
    r"""Variational policy distillation: alternate between training the student with feedback, and distilling from it.

    .. math:: L_E = -E_{y^+}\log\sigma(\tilde r-\delta) - E_{y^-}\log\sigma(-(\tilde r-\delta)),\quad
              \tilde r = \beta\log\frac{q(y|x,C)}{\mathrm{sg}\,\pi_\theta(y|x)}
    .. math:: L_M = \sum_t\mathrm{KL}\big(\pi_\theta(\cdot|x,y_{<t})\,\Vert\,\mathrm{sg}\,q(\cdot|x,C,y_{<t})\big)

    q and :math:`\pi_\theta` share their weights; the prior is the student now. :math:`\delta` is
    :math:`\frac12(E\tilde r^+ + E\tilde r^-)`, where each mean is a moving average that a batch without such a sequence
    does not move. Every F-th step is an E-step (the first loss), every other one an M-step. No code was released.

    Args:
        e_every: F; 5 (paper). None takes no E-step, so q is not trained itself.
        beta: 0.1 (paper).
        rate: share of the past in the moving averages of delta; 0.99 (ours).
        group: rollouts per prompt; 8 (ours).
    """
    if e_every is not None:
        whole("e_every of vpd", e_every, 1)
    view = student.given(feedback)
    pull = Term(view, divergence_loss(rkl), on("roll") & has(feedback))
    prior = student.given(plain)
    r = beta * log_ratio(old, prior).total
    right, wrong = on("read") & correct, on("read") & ~correct
    means = [running(r.over("batch", "mean", side), rate, side) for side in (right, wrong)]
    judge = logistic(beta, logp(prior), 0.5 * (means[0] + means[1]))
    verdict = where(correct, 1.0, -1.0)
    expect: Sum = Term(verdict, judge, right, reduction=sequence_mean) + Term(
        verdict, judge, wrong, reduction=sequence_mean
    )
    roll = sample(student, group)
    if e_every is None:
        return Method({"roll": roll}, pull, token_mean)
    terms = every(e_every) * expect + every(e_every, rest=True) * pull
    return Method({"roll": roll, "read": recast("roll", feedback)}, terms, token_mean)


def _talk(group: int, gamma: float) -> tuple[dict[str, Source], Term]:
    """Reinforcement over two turns (RLTF): returns minus their mean over the group's attempts at the same turn."""
    returns = to_go(reward, gamma)
    rl = Term(returns - cohort(returns), ratio, on("talk"))
    return {"talk": sample(student, group, turns=2, retry=tried_again)}, rl


@method(paper="arXiv:2602.02482", title="RLTF-SD")
def rltf_sd(
    coef: Scalar | float | str = 0.1,
    gamma: float = 0.1,
    threshold: float = -5.0,
    first_turn_baseline: bool = True,
    group: int = 8,
) -> Method:
    r"""Two-turn reinforcement, plus likelihood of the second answer as if it had been the first.

    .. math:: L = L_{RL} - \kappa\sum_t (r_1-\bar r_0)\,1[\log\pi_{old}(y_{1,t}|x_0)\ge-5]\,\log\pi(y_{1,t}|x_0)

    After a wrong first answer there is feedback and a second attempt. :math:`\bar r_0` is the group's mean reward of
    the first turn. The released trainer does not pass its own flag on and uses the mean of the second turn; this is the
    intended baseline.

    Args:
        coef: kappa; 0.1 (code, reasoning); for mathematics ``linear(0, 0.1, STEPS)``.
        gamma: discount over turns; 0.1 (code).
        threshold: tokens with a lower log-prob than this under the plain prompt are left out; −5 nats (code).
        first_turn_baseline: True (see above); False takes the mean of the second turn (the ablation, as the release
            runs).
        group: rollouts per prompt; 8 (code).
    """
    sources, rl = _talk(group, gamma)
    base = reward.over("sequence", "first").mean if first_turn_baseline else None
    carry = {} if base is None else {"first reward": base}
    sources["first"] = recast("talk", response="turn 1", carry=carry)
    advantage = score - (column("first reward") if first_turn_baseline else score.mean)
    taught = Term(advantage, reinforce, on("first") & (logp(old) >= threshold))
    terms: Sum = rl + scalar(coef) * taught
    return Method(sources, terms, token_sum)


@method(paper="arXiv:2602.02482", title="RLTF-FM")
def rltf_fm(coef: Scalar | float | str = 0.1, gamma: float = 0.1, group: int = 8) -> Method:
    r"""Two-turn reinforcement, plus likelihood of the critique: the student learns to find its own mistakes.

    .. math:: L = L_{RL} - \lambda_f\log\pi(c\,|\,x_0, y_0, \text{"write a critique"})

    Args:
        coef: lambda_f; 0.1 (code).
        gamma: discount over turns; 0.1 (code).
        group: rollouts per prompt; 8 (code).
    """
    sources, rl = _talk(group, gamma)
    ask = "{{ prompt }}\n\nPrevious attempt:\n{{ turn_0 }}\n\nWrite a critique of the attempt."
    sources["critic"] = recast("talk", question=ask, response="{{ feedback }}")
    terms: Sum = rl + scalar(coef) * nll(on("critic"))
    return Method(sources, terms, token_sum)
