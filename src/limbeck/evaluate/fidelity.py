"""How close a student is to its teacher, token by token, on plain logits.

Pure functions without gradient bookkeeping of their own: row i of the student and row i of the teacher predict the same
token over the same vocabulary. Select the rows that count *before* calling; a masked row may hold NaN. Half-precision
logits are raised to float32 before the softmax, float64 stays float64. All values are in nats.

    p  the teacher's probabilities       q  the student's       N rows, V vocabulary
"""

from __future__ import annotations

from limbeck.errors import LimbeckError
from limbeck.lazy_torch import Tensor, torch


def kl_forward(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """``KL(p || q)`` for each row, ``[N]`` nats: large where the student misses what the teacher would say.

    An entry that the teacher excludes (logit minus infinity) counts zero; one that only the student excludes gives
    infinity, which is the value of the divergence.

    Raises:
        LimbeckError: if the shapes differ.
    """
    return _kl(teacher_NV, student_NV)


def kl_reverse(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """``KL(q || p)`` for each row, ``[N]`` nats: large where the student says what the teacher would not.

    Raises:
        LimbeckError: if the shapes differ.
    """
    return _kl(student_NV, teacher_NV)


def agreement(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Whether both have the same likeliest token, bool ``[N]``; its mean is the top-1 agreement.

    Ties go to the lower id on both sides.

    Raises:
        LimbeckError: if the shapes differ.
    """
    _same_shape(student_NV, teacher_NV)
    return _first_argmax(student_NV) == _first_argmax(teacher_NV)


def entropy(logits_NV: Tensor) -> Tensor:
    """Shannon entropy of each row, ``[N]`` nats; an excluded entry (logit minus infinity) counts zero."""
    logp = _log_softmax(logits_NV)
    return -_times_log(logp.exp(), logp).sum(-1)


def perplexity(nll_N: Tensor) -> float:
    """``exp(mean nll)`` with the mean taken in float64; NaN for no tokens, infinity where it overflows.

    Args:
        nll_N: float ``[N]``, negative log-likelihood of each token in nats.
    """
    return float(nll_N.double().mean().exp())


def _kl(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    """``KL(first || second)`` for each row."""
    _same_shape(first_NV, second_NV)
    first, second = _log_softmax(first_NV), _log_softmax(second_NV)
    return _times_log(first.exp(), first - second).sum(-1).clamp_min(0)  # rounding can leave -1e-8


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-probs in float32, or in float64 if the logits are."""
    return torch.log_softmax(logits, -1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _times_log(weight: Tensor, log: Tensor) -> Tensor:
    """``weight * log`` with ``0 * anything = 0``, as a limit demands; NaN weights stay NaN."""
    return torch.where(weight == 0, torch.zeros_like(log), weight * log)


def _first_argmax(logits: Tensor) -> Tensor:
    """The lowest id among the largest logits (``torch.argmax`` does not promise which)."""
    return (logits == logits.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits that cannot be compared entry by entry."""
    if student.shape != teacher.shape:
        raise LimbeckError(
            f"student logits are {tuple(student.shape)} and teacher logits {tuple(teacher.shape)}: "
            "map both to one vocabulary before comparing them"
        )
