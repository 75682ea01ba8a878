"""The localisation metric of Feedback Alignment (arXiv:2606.11173): where a privileged teacher objects to a response.

We know the metric from third-party notes, which name the share below as an example. A teacher that sees a context c
scores token t with ``a_t = log pi(y_t | x, c, y_<t) - log pi(y_t | x, y_<t)``, in nats. Feedback that is aligned with
the attempt has its negative mass on the faulty step; a reference solution spreads it over the response.
"""

from __future__ import annotations

import math

from limbeck.errors import LimbeckError
from limbeck.lazy_torch import Tensor, torch


def objection(with_context_N: Tensor, without_N: Tensor) -> Tensor:
    """``max(-a_t, 0)``, ``[N]`` nats, float64: how much less likely the context makes each sampled token.

    Args:
        with_context_N: float ``[N]``, log-probs of the sampled tokens given the context.
        without_N: float ``[N]``, log-probs of the same tokens without it.

    Raises:
        LimbeckError: if the shapes differ, or a log-prob is not finite.
    """
    if with_context_N.shape != without_N.shape:
        raise LimbeckError(
            f"log-probs with the context are {tuple(with_context_N.shape)} and without it {tuple(without_N.shape)}; "
            "give one of each for every sampled token."
        )
    a_N = with_context_N.double() - without_N.double()
    if not bool(torch.isfinite(a_N).all()):
        raise LimbeckError("a log-prob is not finite; pass only tokens whose log-probs are finite.")
    return (-a_N).clamp(min=0.0)


def localisation(with_context_N: Tensor, without_N: Tensor, span_N: Tensor) -> float:
    """Share of the objection that lies inside a span (the faulty step), 0 to 1; NaN if the objection is 0 everywhere.

    A context that objects equally to every token scores the span's share of the tokens. Tokens of several sequences are
    pooled, so each counts by its objection.

    Args:
        with_context_N: float ``[N]``, log-probs of the sampled tokens given the context.
        without_N: float ``[N]``, log-probs of the same tokens without it.
        span_N: bool ``[N]``, whether a token belongs to the span.

    Raises:
        LimbeckError: if the shapes differ, or a log-prob is not finite.
    """
    mass_N = objection(with_context_N, without_N)
    if span_N.shape != mass_N.shape:
        raise LimbeckError(
            f"the span is {tuple(span_N.shape)} and the log-probs {tuple(mass_N.shape)}; give one entry for each token."
        )
    total = float(mass_N.sum())
    return float(mass_N[span_N.bool()].sum()) / total if total else math.nan
