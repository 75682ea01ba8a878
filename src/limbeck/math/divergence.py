r"""Divergences between a student distribution q and a teacher distribution p, in log space.

Every divergence of the table is :math:`D_f = \sum_v p_v f(u_v)` with :math:`u = q/p`, f convex and f(1) = 0. The
student is always **q** and the teacher always **p**. Three functions follow from f:

* ``value``: full vocabulary, exact;
* ``flow``: :math:`q_v\,\partial D/\partial q_v = q_v f'(u_v)`. The gradient with respect to the logits is
  ``flow - q * flow.sum()``, for every f-divergence (constants in f' cancel);
* ``advantage``: :math:`f'(1) - f'(u)` at a sampled token y ~ q: the policy gradient
  :math:`-\mathrm{sg}[\text{advantage}]\,\nabla\log q(y)` has expectation :math:`\nabla D_f` exactly.

Back-propagating through a sampled *value* is different: h(u) with y ~ q has the gradient of the divergence whose
f'(u) = u h'(u). ``potential`` is the h with the gradient of the divergence itself, where it has a closed form.

Shapes: ``logq`` and ``logp`` are log-probs ``[..., V]`` (``-inf`` is allowed; an entry with probability 0 on both sides
contributes 0). ``log_u`` is ``log q(y) - log p(y)`` of sampled tokens, in any shape. Values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import LimbeckError, nearest, number, shown
from ..lazy_torch import Tensor, torch
from .autograd import flow_by_autograd

_LOG_U_LIMIT = 60.0  # exp(60) is finite in float32 and its square is not needed anywhere


def _u(log_u: Tensor, power: float = 1.0) -> Tensor:
    """u ** power, which is finite for any log-ratio."""
    return (power * log_u).clamp(-_LOG_U_LIMIT, _LOG_U_LIMIT).exp()


def _times_log(weight: Tensor, log_ratio: Tensor) -> Tensor:
    """weight * log_ratio, and 0 where the weight is 0."""
    return torch.where(weight == 0, torch.zeros_like(weight), weight * log_ratio)


def _open_unit(name: str, symbol: str, x: float, at_0: str, at_1: str) -> None:
    number(f"{symbol} of {name}", x)
    if not 0.0 < x < 1.0:
        raise LimbeckError(
            f"{name}({symbol}={x}): {symbol} must lie strictly between 0 and 1, because the end points are other "
            f"divergences and not limits of this one; use {at_0} for 0 and {at_1} for 1."
        )


@dataclass(frozen=True)
class Divergence:
    """A divergence of the table. A subclass defines the functions below, as far as it has closed forms."""

    @property
    def label(self) -> str:
        """Its name in formulas and errors."""
        return type(self).__name__.lower()

    def __str__(self) -> str:
        return self.label

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        """p f(u) of each vocabulary entry, before the sum."""
        del logq, logp
        raise LimbeckError(f"{self.label} has no value; define its cells(logq, logp), or its value(logq, logp).")

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        """q f'(u) of each vocabulary entry; by autograd of the value where a subclass has no closed form."""
        return flow_by_autograd(lambda x: self.value(x, logp), logq)

    def value(self, logq: Tensor, logp: Tensor) -> Tensor:
        """The divergence of each row, ``[...]`` from ``[..., V]``, in nats."""
        return self.cells(logq, logp).sum(-1)

    def generator(self, log_u: Tensor) -> Tensor:
        """f(u), by default the cell at p = 1. It needs ``cells``, because a ``value`` need not be a sum of cells."""
        if type(self).cells is Divergence.cells:
            raise LimbeckError(f"{self.label} has no f(u), which its advantage needs; define its cells(logq, logp).")
        return self.cells(log_u, torch.zeros_like(log_u))

    def slope(self, log_u: Tensor) -> Tensor:
        """f'(u), by autograd of f where a subclass has no closed form."""
        with torch.enable_grad():
            x = log_u.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.generator(x).sum(), x)
        return slope * _u(log_u, -1)

    @property
    def slope_at_one(self) -> float:
        """f'(1)."""
        return float(self.slope(torch.zeros((), dtype=torch.float64)))

    def advantage(self, log_u: Tensor) -> Tensor:
        """f'(1) - f'(u): the policy-gradient advantage of a token y ~ q, which is 0 where q and p agree."""
        return self.slope_at_one - self.slope(log_u)

    def estimate(self, log_u: Tensor) -> Tensor:
        """[f(u) - f'(1)(u - 1)] / u: an unbiased estimate of the value with y ~ q, which is never negative."""
        u = _u(log_u)
        return (self.generator(log_u) - self.slope_at_one * (u - 1)) / u

    def potential(self, log_u: Tensor) -> Tensor:
        """h(u) with h' = f'/u: back-propagating it through log q(y), y ~ q, gives the gradient of this divergence.

        Raises:
            LimbeckError: where h has no elementary closed form; use the policy-gradient form.
        """
        del log_u
        raise LimbeckError(
            f"sampled({self.label}): {self.label} has no closed loss form; use its advantage in a policy surrogate: "
            f"Term(divergence_advantage({self.label}, teacher), reinforce)."
        )


@dataclass(frozen=True)
class RKL(Divergence):
    """Reverse KL, KL(q || p). f = u log u."""

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return _times_log(logq.exp(), logq - logp)

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        return _times_log(logq.exp(), logq - logp)

    def generator(self, log_u: Tensor) -> Tensor:
        return _u(log_u) * log_u

    def slope(self, log_u: Tensor) -> Tensor:
        return log_u + 1

    def potential(self, log_u: Tensor) -> Tensor:
        return 0.5 * log_u.square()


@dataclass(frozen=True)
class FKL(Divergence):
    """Forward KL, KL(p || q). f = -log u."""

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return _times_log(logp.exp(), logp - logq)

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        del logq
        return -logp.exp()

    def generator(self, log_u: Tensor) -> Tensor:
        return -log_u

    def slope(self, log_u: Tensor) -> Tensor:
        return -_u(log_u, -1)

    def potential(self, log_u: Tensor) -> Tensor:
        return log_u + torch.expm1((-log_u).clamp(max=_LOG_U_LIMIT))


@dataclass(frozen=True)
class JSD(Divergence):
    """Generalised Jensen-Shannon: beta KL(p||m) + (1-beta) KL(q||m), m = beta p + (1-beta) q (beta on the teacher).

    This is the convention of GKD and TRL. JSD/beta tends to forward KL for beta to 0, and JSD/(1-beta) to reverse KL
    for beta to 1. At the end points themselves the divergence is zero, so they are refused; write ``fkl`` and ``rkl``.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        _open_unit("jsd", "beta", self.beta, "fkl", "rkl")

    @property
    def label(self) -> str:
        return f"jsd({self.beta:g})"

    def _mixture(self, logq: Tensor, logp: Tensor) -> Tensor:
        return torch.logaddexp(logp + math.log(self.beta), logq + math.log1p(-self.beta))

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        logm = self._mixture(logq, logp)
        return self.beta * _times_log(logp.exp(), logp - logm) + (1 - self.beta) * _times_log(logq.exp(), logq - logm)

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        return (1 - self.beta) * _times_log(logq.exp(), logq - self._mixture(logq, logp))

    def _log_w(self, log_u: Tensor) -> Tensor:
        return self._mixture(log_u, torch.zeros_like(log_u))

    def generator(self, log_u: Tensor) -> Tensor:
        log_w = self._log_w(log_u)
        return -self.beta * log_w + (1 - self.beta) * _u(log_u) * (log_u - log_w)

    def slope(self, log_u: Tensor) -> Tensor:
        return (1 - self.beta) * (log_u - self._log_w(log_u))


@dataclass(frozen=True)
class SkewFKL(Divergence):
    """Skew forward KL (DistiLLM): KL(p || alpha p + (1-alpha) q); bounded by -log alpha."""

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _open_unit("skew_fkl", "alpha", self.alpha, "fkl", "nothing (the divergence is identically 0)")

    @property
    def label(self) -> str:
        return f"skew_fkl({self.alpha:g})"

    def _mixture(self, logq: Tensor, logp: Tensor) -> Tensor:
        return torch.logaddexp(logp + math.log(self.alpha), logq + math.log1p(-self.alpha))

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return _times_log(logp.exp(), logp - self._mixture(logq, logp))

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        share = (logq - self._mixture(logq, logp)).exp()
        return -(1 - self.alpha) * torch.where(logp.exp() == 0, torch.zeros_like(logp), logp.exp() * share)

    def _log_w(self, log_u: Tensor) -> Tensor:
        return self._mixture(log_u, torch.zeros_like(log_u))

    def generator(self, log_u: Tensor) -> Tensor:
        return -self._log_w(log_u)

    def slope(self, log_u: Tensor) -> Tensor:
        return -(1 - self.alpha) * (-self._log_w(log_u)).exp()

    def potential(self, log_u: Tensor) -> Tensor:
        return -((1 - self.alpha) / self.alpha) * (log_u - self._log_w(log_u))


@dataclass(frozen=True)
class SkewRKL(Divergence):
    """Skew reverse KL (DistiLLM): KL(q || (1-alpha) p + alpha q); bounded by -log alpha."""

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _open_unit("skew_rkl", "alpha", self.alpha, "rkl", "nothing (the divergence is identically 0)")

    @property
    def label(self) -> str:
        return f"skew_rkl({self.alpha:g})"

    def _mixture(self, logq: Tensor, logp: Tensor) -> Tensor:
        return torch.logaddexp(logp + math.log1p(-self.alpha), logq + math.log(self.alpha))

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return _times_log(logq.exp(), logq - self._mixture(logq, logp))

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        logm, q = self._mixture(logq, logp), logq.exp()
        teacher_part = torch.where(q == 0, torch.zeros_like(q), q * (logp - logm).exp())
        return _times_log(q, logq - logm) + (1 - self.alpha) * teacher_part

    def _log_w(self, log_u: Tensor) -> Tensor:
        return self._mixture(log_u, torch.zeros_like(log_u))

    def generator(self, log_u: Tensor) -> Tensor:
        return _u(log_u) * (log_u - self._log_w(log_u))

    def slope(self, log_u: Tensor) -> Tensor:
        log_w = self._log_w(log_u)
        return log_u - log_w + (1 - self.alpha) * (-log_w).exp()


@dataclass(frozen=True)
class Alpha(Divergence):
    """Amari alpha-divergence: (sum q^a p^(1-a) - 1) / (a(a-1)); a -> 1 is reverse KL, a -> 0 forward KL."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        number("alpha of alpha(...)", self.alpha)
        if self.alpha in (0.0, 1.0):
            raise LimbeckError(f"alpha({self.alpha:g}): alpha 0 and 1 are limits; use fkl for 0 and rkl for 1.")

    @property
    def label(self) -> str:
        return f"alpha({self.alpha:g})"

    def _power(self, logq: Tensor, logp: Tensor) -> Tensor:
        """q^a p^(1-a), 0 where both are 0."""
        mixed = (self.alpha * logq + (1 - self.alpha) * logp).exp()
        return torch.where(torch.isneginf(logq) & torch.isneginf(logp), torch.zeros_like(mixed), mixed)

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        a = self.alpha
        return (self._power(logq, logp) - a * logq.exp() + (a - 1) * logp.exp()) / (a * (a - 1))

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        return self._power(logq, logp) / (self.alpha - 1)

    def generator(self, log_u: Tensor) -> Tensor:
        a = self.alpha
        return (_u(log_u, a) - a * _u(log_u) + a - 1) / (a * (a - 1))

    def slope(self, log_u: Tensor) -> Tensor:
        return (_u(log_u, self.alpha - 1) - 1) / (self.alpha - 1)

    def potential(self, log_u: Tensor) -> Tensor:
        a = self.alpha
        return (_u(log_u, a - 1) / (a - 1) - log_u) / (a - 1)


@dataclass(frozen=True)
class TV(Divergence):
    """Total variation, half the L1 distance."""

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return 0.5 * (logq.exp() - logp.exp()).abs()

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        q = logq.exp()
        return 0.5 * q * (q - logp.exp()).sign()

    def generator(self, log_u: Tensor) -> Tensor:
        return 0.5 * (_u(log_u) - 1).abs()

    def slope(self, log_u: Tensor) -> Tensor:
        return 0.5 * log_u.sign()

    def potential(self, log_u: Tensor) -> Tensor:
        return 0.5 * log_u.abs()


@dataclass(frozen=True)
class Chi2(Divergence):
    """Pearson chi-square, sum (q-p)^2 / p."""

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        gap = logq.exp() - logp.exp()
        return torch.where(gap == 0, torch.zeros_like(gap), gap.square() / logp.exp())

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        return torch.where(torch.isneginf(logq), torch.zeros_like(logq), 2 * (2 * logq - logp).exp())

    def generator(self, log_u: Tensor) -> Tensor:
        return _u(log_u, 2) - 2 * _u(log_u) + 1

    def slope(self, log_u: Tensor) -> Tensor:
        return 2 * (_u(log_u) - 1)

    def potential(self, log_u: Tensor) -> Tensor:
        return 2 * (_u(log_u) - 1 - log_u)


@dataclass(frozen=True)
class NeymanChi2(Divergence):
    """Neyman chi-square, sum (q-p)^2 / q."""

    @property
    def label(self) -> str:
        return "neyman_chi2"

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        gap = logq.exp() - logp.exp()
        return torch.where(gap == 0, torch.zeros_like(gap), gap.square() / logq.exp())

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        return -torch.where(torch.isneginf(logp), torch.zeros_like(logp), (2 * logp - logq).exp())

    def generator(self, log_u: Tensor) -> Tensor:
        return _u(log_u) - 2 + _u(log_u, -1)

    def slope(self, log_u: Tensor) -> Tensor:
        return 1 - _u(log_u, -2)

    def potential(self, log_u: Tensor) -> Tensor:
        return log_u + 0.5 * _u(log_u, -2) - 0.5


@dataclass(frozen=True)
class Hellinger(Divergence):
    """Squared Hellinger distance, half the sum of (sqrt q - sqrt p)^2."""

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return 0.5 * ((0.5 * logq).exp() - (0.5 * logp).exp()).square()

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        return -0.5 * (0.5 * (logq + logp)).exp()

    def generator(self, log_u: Tensor) -> Tensor:
        return 0.5 * (_u(log_u) - 2 * _u(log_u, 0.5) + 1)

    def slope(self, log_u: Tensor) -> Tensor:
        return 0.5 * (1 - _u(log_u, -0.5))

    def potential(self, log_u: Tensor) -> Tensor:
        return 0.5 * log_u + _u(log_u, -0.5) - 1


@dataclass(frozen=True)
class Renyi(Divergence):
    """Renyi divergence of order a: log(sum q^a p^(1-a)) / (a-1). Not an f-divergence: its slope holds a row total.

    Its policy gradient is ``-(a/(a-1)) u^(a-1) / M`` with ``M = E_q[u^(a-1)] = 1 + a(a-1) D_alpha`` of the same row. A
    sampled token alone does not give M, so ``axes.signal.divergence_advantage`` takes it from the full rows.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        number("the order of renyi(...)", self.alpha)
        if self.alpha <= 0 or self.alpha == 1.0:
            raise LimbeckError(f"renyi({self.alpha:g}): the order must be positive and not 1; use rkl for order 1.")

    @property
    def label(self) -> str:
        return f"renyi({self.alpha:g})"

    def _moment(self, logq: Tensor, logp: Tensor) -> Tensor:
        """log M of each row."""
        cells = self.alpha * logq + (1 - self.alpha) * logp
        dead = torch.isneginf(logq) & torch.isneginf(logp)
        return torch.where(dead, torch.full_like(cells, -torch.inf), cells).logsumexp(-1)

    def value(self, logq: Tensor, logp: Tensor) -> Tensor:
        return self._moment(logq, logp) / (self.alpha - 1)

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        cells = self.alpha * logq + (1 - self.alpha) * logp - self._moment(logq, logp).unsqueeze(-1)
        share = torch.where(torch.isneginf(logq) & torch.isneginf(logp), torch.zeros_like(cells), cells.exp())
        return self.alpha / (self.alpha - 1) * share

    def slope(self, log_u: Tensor) -> Tensor:
        del log_u
        raise LimbeckError(
            f"{self.label}: the policy gradient of a Renyi divergence needs the row total E_q[u^(a-1)], which sampled "
            "log-probs do not give; use divergence_advantage with a dense teacher."
        )


@dataclass(frozen=True)
class SoftCE(Divergence):
    """Cross-entropy form of forward KL, -sum p log q. It has the same gradient, and a value above 0 at the optimum."""

    @property
    def label(self) -> str:
        return "soft_ce"

    def cells(self, logq: Tensor, logp: Tensor) -> Tensor:
        return _times_log(logp.exp(), -logq)

    def flow(self, logq: Tensor, logp: Tensor) -> Tensor:
        del logq
        return -logp.exp()

    def slope(self, log_u: Tensor) -> Tensor:
        return FKL().slope(log_u)


rkl, fkl, tv, chi2, neyman_chi2, hellinger, soft_ce = RKL(), FKL(), TV(), Chi2(), NeymanChi2(), Hellinger(), SoftCE()
jsd, skew_fkl, skew_rkl, alpha, renyi = JSD, SkewFKL, SkewRKL, Alpha, Renyi

_NAMED: dict[str, Divergence | Callable[[float], Divergence]] = {
    "rkl": rkl,
    "fkl": fkl,
    "jsd": jsd,
    "skew_fkl": skew_fkl,
    "skew_rkl": skew_rkl,
    "alpha": alpha,
    "tv": tv,
    "chi2": chi2,
    "neyman_chi2": neyman_chi2,
    "hellinger": hellinger,
    "renyi": renyi,
    "soft_ce": soft_ce,
}


def as_divergence(x: Divergence | str) -> Divergence:
    """A divergence from its label: ``"fkl"``, ``"jsd(0.1)"``, ``"alpha(0.5)"`` ...

    Raises:
        LimbeckError: for an unknown name, with the nearest one, and for a missing or superfluous number.
    """
    if isinstance(x, Divergence):
        return x
    if not isinstance(x, str):
        raise LimbeckError(f"divergence is {shown(x)}; give one such as rkl or jsd(0.5), or its name as a text.")
    name, _, rest = x.replace(" ", "").partition("(")
    if name not in _NAMED:
        raise LimbeckError(f"divergence={x!r}: unknown{nearest(name, _NAMED)}; use one of {', '.join(_NAMED)}.")
    found = _NAMED[name]
    if isinstance(found, Divergence):
        if rest:
            raise LimbeckError(f"divergence={x!r}: {name} takes no number; write {name!r}.")
        return found
    try:
        return found(float(rest.rstrip(")")))
    except ValueError as e:
        if isinstance(e, LimbeckError):
            raise
        raise LimbeckError(f"divergence={x!r}: {name} takes one number; write for instance '{name}(0.5)'.") from None
