"""Where a privileged teacher objects: the localisation metric of Feedback Alignment (arXiv:2606.11173).

Known from third-party notes; the share below is what they name as an example. A teacher that sees a context c marks
token t by ``a_t = log pi(y_t | x, c, y_<t) - log pi(y_t | x, y_<t)``, in nats. Feedback that is aligned with the
attempt puts its negative mass on the faulty step; a reference solution spreads it.
"""

from __future__ import annotations

import math

from limbeck.errors import LimbeckError
from limbeck.lazy_torch import Tensor, torch


def objection(told_N: Tensor, plain_N: Tensor) -> Tensor:
    """``max(-a_t, 0)``, ``[N]`` nats, in float64: by how much the context makes each written token less likely.

    Args:
        told_N: float ``[N]``, log-probs of the written tokens with the context in view.
        plain_N: float ``[N]``, log-probs of the same tokens without it.

    Raises:
        LimbeckError: if the shapes differ, or a log-prob is not finite.
    """
    if told_N.shape != plain_N.shape:
        raise LimbeckError(
            f"log-probs with the context are {tuple(told_N.shape)} and without it {tuple(plain_N.shape)}; give one of "
            "each for every written token."
        )
    a_N = told_N.double() - plain_N.double()
    if not bool(torch.isfinite(a_N).all()):
        raise LimbeckError("a log-prob is not finite; select the tokens that count before you compare them.")
    return (-a_N).clamp(min=0.0)


def localisation(told_N: Tensor, plain_N: Tensor, span_N: Tensor) -> float:
    """Share of the objection that lies inside a span (the faulty step), 0 to 1; NaN where nothing is objected to.

    A context that objects everywhere alike scores the span's share of the tokens. Tokens of several sequences count by
    their objection, not by sequence.

    Args:
        told_N: float ``[N]``, log-probs of the written tokens with the context in view.
        plain_N: float ``[N]``, log-probs of the same tokens without it.
        span_N: bool ``[N]``, whether a token belongs to the span.

    Raises:
        LimbeckError: if the shapes differ, or a log-prob is not finite.
    """
    mass_N = objection(told_N, plain_N)
    if span_N.shape != mass_N.shape:
        raise LimbeckError(
            f"the span is {tuple(span_N.shape)} and the log-probs {tuple(mass_N.shape)}; give one truth a token."
        )
    total = float(mass_N.sum())
    return float(mass_N[span_N.bool()].sum()) / total if total else math.nan
