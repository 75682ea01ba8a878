"""Distillation and reinforcement learning at once: KDRL and its variants."""

from __future__ import annotations

from ..axes import (
    Expr,
    Scalar,
    all_wrong,
    anneal,
    clip,
    correct,
    everywhere,
    group_advantage,
    log_ratio,
    logp,
    sample,
    sampled,
    score,
    student,
    teacher,
    token_mean,
    where,
)
from ..axes.reduction import Reduction, as_reduction
from ..axes.scalar import scalar as as_scalar
from ..errors import LimbeckError, nearest
from ..space.method import Method
from ..space.registry import method
from ..space.term import Term

ANNEALED = anneal(5e-3, 1e-3, 5e-5)
"""The schedule of KDRL (section 3.3): from 5e-3 down to 1e-3 at step 80."""

GATES: dict[str, Expr] = {"none": everywhere, "response": ~correct, "group": all_wrong}
"""The masks of KDRL (section 3.4): distil everywhere, on wrong responses, or where the whole group is wrong."""


@method(paper="arXiv:2506.02208", title="KDRL", confidence="medium")
def kdrl(
    coef: Scalar | float | str = ANNEALED,
    estimator: str = "k2",
    gate: str = "none",
    denominator: str = "kept",
    group: int = 8,
    clip_range: float = 0.2,
    reduction: Reduction | str = token_mean,
) -> Method:
    r"""GRPO and reverse-KL distillation on the same rollouts, as a joint loss (eq. 8).

    .. math:: L = L_{GRPO} + \beta(s)\,\frac1Z\sum_{i,t} c_i\,k(R_{it}), \qquad R = \log\pi_T - \log\pi_\theta,
              \quad k_2 = \tfrac12 R^2

    This is GRPO without its reference term. A, pi_T, c and beta are detached; R keeps its gradient through pi_theta. k2
    has the gradient of the reverse KL and k3 that of the *forward* KL; k1 has no expected gradient and is refused.
    On-policy the joint form equals ``kdrl_shaping`` token by token.

    The body of the paper was not readable to us, so two points are reconstructed: the reduction (reviews print both a
    token mean and a sequence mean; here both terms share one denominator), and whether the denominator of a gated term
    counts kept or all tokens.

    Args:
        coef: beta; annealed 5e-3 to 1e-3 by 5e-5 a step (paper, section 3.3). Constant: 2e-3 (paper).
        estimator: ``"k2"`` (paper) or ``"k3"``.
        gate: ``"none"`` (ours), ``"response"`` (distil wrong responses) or ``"group"`` (distil groups without a right
            response).
        denominator: ``"kept"`` (ours) counts the gated tokens, ``"all"`` every token; they differ only with a gate.
        group: rollouts per prompt; 8, from the follow-up's re-run (the paper's was not found).
        clip_range: 0.2, from the same re-run.
        reduction: of both terms; a token mean (reconstructed, see above).
    """
    distil = Term(logp(teacher), sampled(estimator), _gate("kdrl", gate), per=denominator)
    return Method(
        sample(student, group), Term(group_advantage(), clip(clip_range)) + coef * distil, as_reduction(reduction)
    )


@method(paper="arXiv:2506.02208", title="KDRL, reward shaping", confidence="medium")
def kdrl_shaping(
    coef: Scalar | float | str = ANNEALED,
    gate: str = "none",
    group: int = 8,
    clip_range: float = 0.2,
    reduction: Reduction | str = token_mean,
) -> Method:
    r"""The teacher's log-ratio added to the advantage, with one ratio and one clip (section 3.1, not adopted there).

    .. math:: A_{it} = A_i + \beta(s)\,c_i\,\mathrm{sg}[\log\pi_T - \log\pi_{old}]

    It equals ``kdrl`` (k2) on-policy, and differs off-policy and where a clip is active. The follow-up "OPD-then-RL"
    calls this form KDRL. The formula is reconstructed.

    Args:
        coef: beta, as in ``kdrl``.
        gate: as in ``kdrl``.
        group, clip_range, reduction: as in ``kdrl``.
    """
    distil = log_ratio(teacher)
    gated = distil if gate == "none" else where(_gate("kdrl_shaping", gate), distil, 0.0)
    shaped = _shaped(group_advantage(), coef, gated)
    return Method(sample(student, group), Term(shaped, clip(clip_range)), as_reduction(reduction))


@method(paper="arXiv:2506.02208", title="KDRL's other reading: the teacher in the reward", confidence="low")
def kdrl_reward(coef: Scalar | float | str = 2e-3, group: int = 8, clip_range: float = 0.2) -> Method:
    r"""The teacher's log-ratio added to the reward *before* the group is standardised. This is not the published KDRL.

    .. math:: A_i = \mathrm{standardise}_{group}\Big(r_i + \beta\sum_t(\log\pi_T - \log\pi_{old})\Big)

    The distillation signal is summed over the sequence and divided by the std of the group.

    Args:
        coef: beta; 2e-3 (the constant of KDRL).
        group, clip_range: as in ``kdrl``.
    """
    shaped = _shaped(score, coef, log_ratio(teacher).total)
    return Method(sample(student, group), Term(group_advantage(of=shaped), clip(clip_range)), token_mean)


def _shaped(signal: Expr, coef: Scalar | float | str, distil: Expr) -> Expr:
    """signal + coef * distil; with a coefficient of 0, the teacher is not needed."""
    c = as_scalar(coef)
    return signal if c.is_zero else signal + c * distil


def _gate(name: str, gate: str) -> Expr:
    if gate not in GATES:
        raise LimbeckError(f"{name}(gate={gate!r}): unknown{nearest(gate, GATES)}; use one of {', '.join(GATES)}.")
    return GATES[gate]
