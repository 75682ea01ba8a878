"""Surrogate losses of sampled tokens: policy gradients, and sampled estimators of a divergence as losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import LimbeckError, expect, nearest, number
from ..lazy_torch import Tensor, torch
from ..math.divergence import Divergence, fkl, rkl
from ..math.statistic import LogProb
from .expression import Expr, replace_reader
from .leaves import Read
from .levels import Level
from .reader import Reader, TargetReader, old
from .signal import LOG_RATIO_LIMIT, logp
from .surrogate import Rows, Surrogate

OLD = logp(old)
"""The log-probs that ratios are taken against unless a method names another base."""

_KINDS = ("reinforce", "ratio", "clip", "cispo")


@dataclass(frozen=True)
class PolicyLoss(Surrogate):
    r"""A policy-gradient loss; A is the signal and rho = pi / base, which carries gradient.

    * ``reinforce``: :math:`-A \log\pi`
    * ``ratio``: :math:`-\rho A`
    * ``clip``: :math:`-\min(\rho A, \mathrm{clip}(\rho, 1-lo, 1+hi) A)` (PPO). ``dual`` bounds the loss at
      ``-dual A`` where A < 0 (Ye et al. 2020); ``cap`` holds the unclipped ratio below a bound first (INTELLECT-2).
    * ``cispo``: :math:`-\mathrm{sg}[\mathrm{clip}(\rho, 1-lo, 1+hi)]\, A \log\pi` (MiniMax-M1)

    With ``pool="sequence"`` the ratio is the geometric mean over the kept tokens of the sequence (GSPO).
    """

    kind: str
    lo: float
    hi: float
    against: Expr
    pool: str
    dual: float | None
    cap: float | None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise LimbeckError(f"policy({self.kind!r}): unknown kind{nearest(self.kind, _KINDS)}; use one of {known}.")
        if self.pool not in ("token", "sequence"):
            raise LimbeckError(
                f"policy(pool={self.pool!r}): a ratio is pooled per token or sequence; give 'token' or 'sequence'."
            )
        expect("base of policy", self.against, Expr, "give log-probs, for instance logp(behavior)")
        for name in ("lo", "hi"):  # infinite: no bound on that side
            number(f"{name} of {self.kind} (the range is 1 - lo to 1 + hi)", getattr(self, name), 0, ends=True)
        for name in ("dual", "cap"):
            if getattr(self, name) is not None:  # at 1 and below, the gradient would vanish on policy
                number(f"{name} of {self.kind}", getattr(self, name), 1)

    @property
    def scope(self) -> Level:
        return Level.TOKEN if self.pool == "token" else Level.SEQUENCE

    @property
    def linear(self) -> bool:
        return self.kind != "clip"

    @property
    def base(self) -> Expr | None:
        return None if self.kind == "reinforce" else self.against

    def with_reader(self, was: Reader, now: Reader) -> PolicyLoss:
        return replace(self, against=replace_reader(self.against, was, now))

    def _ratio(self, logq: Tensor, base: Tensor, rows: Rows) -> Tensor:
        log_ratio = logq - base
        if self.pool == "sequence":
            log_ratio = rows.mean(log_ratio)[rows.seq_n]
        return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        assert signal is not None
        A, logq = signal, live[0]
        if self.kind == "reinforce":
            return -A * logq
        assert base is not None
        ratio = self._ratio(logq, base, rows)
        if self.kind == "ratio":
            return -ratio * A
        clipped = ratio.clamp(1 - self.lo, 1 + self.hi)
        if self.kind == "cispo":
            return -clipped.detach() * A * logq
        free = ratio if self.cap is None else ratio.clamp(max=self.cap)
        loss = -torch.minimum(free * A, clipped * A)
        if self.dual is None:
            return loss
        return torch.where(A < 0, torch.minimum(loss, -self.dual * A), loss)

    def __str__(self) -> str:
        bounds = "" if self.kind in ("reinforce", "ratio") else f"({self.lo:g}, {self.hi:g})"
        extra = [f"pool={self.pool}"] if self.pool != "token" else []
        extra += [f"dual={self.dual:g}"] if self.dual is not None else []
        extra += [f"cap={self.cap:g}"] if self.cap is not None else []
        extra += [f"base={self.against}"] if self.base is not None and self.against != OLD else []
        return self.kind + bounds + (f"[{', '.join(extra)}]" if extra else "")


@dataclass(frozen=True)
class SampledLoss(Surrogate):
    """A function of u = pi(y) / target(y) at the sampled token, back-propagated through log pi(y)."""

    estimator: str
    row: Divergence
    ratio: bool
    against: Expr

    @property
    def base(self) -> Expr | None:
        return self.against if self.ratio else None

    def with_reader(self, was: Reader, now: Reader) -> SampledLoss:
        return replace(self, against=replace_reader(self.against, was, now))

    def check(self, signal: Expr | TargetReader) -> None:
        super().check(signal)
        if not (isinstance(signal, Read) and isinstance(signal.statistic, LogProb)):
            raise LimbeckError(
                f"{self} compares log-probs at the sampled token and cannot take {signal}; give it logp(reader)."
            )
        reader = signal.reader
        itself = reader.weights.in_student and not reader.context and reader.tau == 1.0
        if itself and reader.kind in ("student", "synced"):  # old and behavior differ from the second update on
            raise LimbeckError(
                f"{self} was given {signal}, which is the student itself, so its gradient is zero; name another "
                "reader, or give it a context that the student does not see, such as student.given(feedback)."
            )

    def loss(self, live: Sequence[Tensor], signal: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        del rows
        assert signal is not None
        value = self.row.potential(live[0] - signal)
        if base is None:
            return value
        return (live[0] - base).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp() * value

    def __str__(self) -> str:
        return f"sampled({'ρ·' if self.ratio else ''}{self.estimator})"


# ---------------------------------------------------------------- functions to write them with


def policy(
    kind: str,
    lo: float = 0.0,
    hi: float = 0.0,
    base: Expr | None = None,
    pool: str = "token",
    dual: float | None = None,
    cap: float | None = None,
) -> PolicyLoss:
    """A policy-gradient loss; see ``PolicyLoss``. With an infinite ``lo`` or ``hi``, that side has no bound."""
    return PolicyLoss(kind, lo, hi, base if base is not None else OLD, pool, dual, cap)


def clip(
    lo: float,
    hi: float | None = None,
    base: Expr | None = None,
    pool: str = "token",
    dual: float | None = None,
    cap: float | None = None,
) -> PolicyLoss:
    """The clipped ratio of PPO, between 1 - lo and 1 + hi; ``hi`` is ``lo`` unless it is given."""
    return policy("clip", lo, lo if hi is None else hi, base, pool, dual, cap)


def cispo(lo: float = math.inf, hi: float = 4.0) -> PolicyLoss:
    """CISPO: the detached clipped ratio times the log-prob. ``lo = inf`` clips only above, at 1 + hi."""
    return policy("cispo", lo, hi)


reinforce = policy("reinforce")
"""−A log π. With the signal 1 it is the negative log-likelihood."""
ratio = policy("ratio")
"""−ρ A, without a clip."""

_ESTIMATORS: dict[str, Divergence] = {"k2": rkl, "k3": fkl}


def sampled(estimator: str | Divergence, ratio: bool = False) -> SampledLoss:
    """A sampled estimator of a divergence as a loss.

    ``"k2"`` has the gradient of the reverse KL and ``"k3"`` that of the forward KL. A divergence gives the loss form
    h(u) that has its own gradient. ``ratio=True`` multiplies by the ratio to ``old``, which carries gradient; then k3
    has the gradient of the reverse KL.

    Raises:
        LimbeckError: for ``"k1"``, whose expected gradient is zero, and for a divergence without a closed loss form.
    """
    if estimator == "k1":
        raise LimbeckError(
            "sampled('k1') has zero expected gradient, because E_q[grad log q] = 0 and the teacher cancels; use 'k2', "
            "or k1 as a detached signal: Term(log_ratio(teacher), reinforce)."
        )
    if isinstance(estimator, Divergence):
        if type(estimator).potential is Divergence.potential:
            estimator.potential(torch.zeros(1))  # raises: this divergence has no loss form
        return SampledLoss(f"h of {estimator.label}", estimator, ratio, OLD)
    if estimator not in _ESTIMATORS:
        raise LimbeckError(
            f"sampled({estimator!r}): unknown estimator{nearest(estimator, _ESTIMATORS)}; use 'k2' or 'k3', or a "
            "divergence with a loss form."
        )
    return SampledLoss(estimator, _ESTIMATORS[estimator], ratio, OLD)
