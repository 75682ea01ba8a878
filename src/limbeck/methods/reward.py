"""Learning from verifiable rewards: GRPO and its successors, without a teacher."""

from __future__ import annotations

from ..axes import (
    Expr,
    Scalar,
    all_right,
    all_wrong,
    clip,
    fixed,
    group_advantage,
    length,
    logp,
    ref,
    resample,
    sample,
    sampled,
    score,
    sequence_mean,
    student,
    token_mean,
)
from ..axes.reduction import Reduction, as_reduction
from ..errors import LimbeckError
from ..space.method import Method
from ..space.registry import method
from ..space.term import Term


@method(paper="arXiv:2402.03300", title="GRPO")
def grpo(
    group: int = 8,
    clip_range: float = 0.2,
    ref_coef: Scalar | float | str = 0.04,
    reduction: Reduction | str = sequence_mean,
) -> Method:
    r"""Group-relative policy optimisation (DeepSeekMath).

    .. math:: L = -\frac1B\sum_i\frac1{|y_i|}\sum_t \min(\rho_{it}A_i,\ \mathrm{clip}(\rho_{it}, 1\pm\epsilon)A_i)
              + \beta\,\mathrm{k3}(\pi_\theta, \pi_{ref})

    with :math:`A_i = (r_i - \bar r)/(\mathrm{std}\,r + 10^{-6})` in the group and :math:`\rho = \pi_\theta/\pi_{old}`.
    A, pi_old and pi_ref are detached. The k3 term is that of the paper; on-policy, its gradient is that of the
    *forward* KL (see ``sampled``).

    Args:
        group: responses per prompt; 8 (TRL). The paper samples 64.
        clip_range: epsilon; 0.2 (TRL, verl). The paper does not print it.
        ref_coef: beta; 0.04 (paper). TRL has 0, verl 0.001; with 0, no reference is needed.
        reduction: mean over sequences of token means (paper).
    """
    policy_term = Term(group_advantage(), clip(clip_range))
    return Method(
        sample(student, group), policy_term + ref_coef * Term(logp(ref), sampled("k3")), as_reduction(reduction)
    )


@method(paper="arXiv:2503.20783", title="Dr. GRPO")
def dr_grpo(group: int = 8, clip_range: float = 0.2, max_length: int = 3000) -> Method:
    r"""GRPO without its biases: no division by the std of the group, and a constant length in the denominator.

    .. math:: L = -\frac1{B L_{max}}\sum_i\sum_t \min(\rho_{it}A_i, \mathrm{clip}(\rho_{it}, 1\pm\epsilon)A_i),
              \qquad A_i = r_i - \bar r

    Args:
        group: responses per prompt; 8 (paper).
        clip_range: 0.2, as in GRPO.
        max_length: L_max, a constant that only sets the scale; 3000 (ours). The paper takes its generation budget.
    """
    return Method(sample(student, group), Term(group_advantage(scale=False), clip(clip_range)), fixed(max_length))


@method(paper="arXiv:2503.14476", title="DAPO")
def dapo(
    group: int = 16,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    max_length: int | None = None,
    buffer: int = 4096,
) -> Method:
    r"""GRPO with a decoupled clip, dynamic sampling, a token mean and a soft penalty of overlong responses.

    .. math:: L = -\frac{1}{\sum_i|y_i|}\sum_i\sum_t\min(\rho_{it}A_i,
              \mathrm{clip}(\rho_{it}, 1-\epsilon_{low}, 1+\epsilon_{high})A_i)

    Groups whose responses are all correct or all wrong are dropped, and others are sampled in their place.

    Args:
        group: responses per prompt; 16 (paper).
        clip_low, clip_high: 0.2 and 0.28 (paper).
        max_length: L_max of the overlong penalty; None (ours) leaves the penalty out. The paper uses 20480.
        buffer: L_c, the number of tokens before L_max over which the penalty falls from 0 to -1; 4096 (paper).
    """
    shaped = score if max_length is None else score + overlong(max_length, buffer)
    return Method(
        resample(sample(student, group), until=~(all_wrong | all_right)),
        Term(group_advantage(of=shaped), clip(clip_low, clip_high)),
        token_mean,
    )


def overlong(max_length: int, buffer: int) -> Expr:
    """Soft penalty of DAPO (eq. 13): 0 up to ``max_length - buffer`` tokens, then linear to -1 at ``max_length``."""
    if not 0 < buffer <= max_length:
        raise LimbeckError(
            f"dapo(max_length={max_length}, buffer={buffer}): the penalty falls over the last `buffer` tokens; give a "
            "buffer from 1 to max_length."
        )
    return ((float(max_length - buffer) - length) / float(buffer)).clip(-1.0, 0.0)


@method(paper="arXiv:2507.18071", title="GSPO")
def gspo(group: int = 8, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Method:
    r"""GRPO with importance ratios of whole sequences.

    .. math:: L = -\frac1B\sum_i \min(s_iA_i, \mathrm{clip}(s_i, 1-\epsilon_{low}, 1+\epsilon_{high})A_i), \qquad
              s_i = \exp\Big(\frac1{|y_i|}\sum_t\log\frac{\pi_\theta}{\pi_{old}}\Big)

    On-policy, its gradient is that of GRPO with a sequence mean.

    Args:
        group: responses per prompt; 8 (TRL).
        clip_low, clip_high: 3e-4 and 4e-4 (paper, section 5.1).
    """
    return Method(
        sample(student, group),
        Term(group_advantage(), clip(clip_low, clip_high, pool="sequence")),
        sequence_mean,
    )
