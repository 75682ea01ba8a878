r"""Surrogates: how a signal is heard. The only differentiable step.

A surrogate is a function of *live statistics* of the student (the log-prob of the token, or one divergence row) and
of detached values. It says what it hears, at which rung it gives losses, whether it is linear in its signal, and which
live statistics it asks for. It is called on a slice: a tile where everything is per token, a micro-batch where it looks
at sequences or groups.

==============  ========================================================  ==================================
``pathwise``    a target law; any row of the divergence table              KD, GKD, full-vocabulary OPD
``policy``      a signal; reinforce, ratio, clip, cispo                    REINFORCE, OPD, PPO/GRPO/DAPO/GSPO, CISPO
``sampled``     log-probs of a target at the sampled token; k2, k3, h(u)   KDRL, reference-KL terms
``contrast``    labels over the members of a group                         DPO, SimPO, f-DPO, list-wise forms
==============  ========================================================  ==================================

``logistic``    +1 / -1 per sequence                                       BCO, VPD's E-step

(``regress``, ``chunkwise``, ``feature`` and ``coupled`` join with the methods that use them.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import LimbeckError, expect, nearest, number
from ..math.divergence import Divergence, as_divergence, fkl, rkl
from ..math.statistic import Distance, LogProb, Statistic, Support
from .ladder import Rung, segment
from .leaves import Read, ability, laws
from .reader import Blend, Law, Reader, old
from .signal import length, logp
from .vec import Need, Vec, replace_reader, vec

OLD = logp(old)
"""What ratios are taken against unless a method names another base."""

_KINDS = ("reinforce", "ratio", "clip", "cispo")

LOG_RATIO_LIMIT = 20.0
"""Log importance ratios are held within ±20 before they are exponentiated (verl's value)."""


@dataclass(frozen=True)
class Rows:
    """Which units a slice of kept tokens belongs to.

    Attributes:
        seq_n: int64 ``[n]``, the sequence of each kept token.
        group_B: int64 ``[B]``, the group of each sequence.
    """

    seq_n: Tensor
    group_B: Tensor

    def sum(self, x_n: Tensor) -> Tensor:
        """Per sequence, ``[B]``."""
        return segment(x_n, self.seq_n, self.group_B.numel(), "sum")

    def mean(self, x_n: Tensor) -> Tensor:
        """Per sequence, ``[B]``, 0 where it is empty."""
        return segment(x_n, self.seq_n, self.group_B.numel(), "mean")


@dataclass(frozen=True)
class Question:
    """A live statistic that a surrogate asks of the student."""

    statistic: Statistic
    target: Law | None = None
    tau: float = 1.0
    support: Support | None = None


@dataclass(frozen=True)
class Surrogate:
    """How a signal is heard."""

    @property
    def hears(self) -> Rung:
        """The finest rung of a signal it may be told."""
        return Rung.TOKEN

    @property
    def gives(self) -> Rung:
        """The rung of its losses."""
        return Rung.TOKEN

    @property
    def reach(self) -> Rung:
        """The widest rung it looks at; ``TOKEN`` makes a term separable."""
        return Rung.TOKEN

    @property
    def linear(self) -> bool:
        """Whether surrogate(a + b) = surrogate(a) + surrogate(b)."""
        return False

    def questions(self, signal: Vec | Law) -> tuple[Question, ...]:
        """The live statistics it needs."""
        del signal
        return (Question(LogProb()),)

    @property
    def base(self) -> Vec | None:
        """A detached log-prob that ratios are taken against."""
        return None

    def with_reader(self, was: Reader, now: Reader) -> Surrogate:
        """The same surrogate with one reader of its base in another's place."""
        del was, now
        return self

    def needs(self, signal: Vec | Law) -> frozenset[Need]:
        """What it reads besides the student as it is now."""
        del signal
        return self.base.needs if self.base is not None else frozenset()

    def check(self, signal: Vec | Law) -> None:
        """Raise LimbeckError where it cannot hear this signal."""
        if not isinstance(signal, Vec):
            raise LimbeckError(
                f"{self} hears a signal per {self.hears}, but was told the reader {signal}; give it a Vec such as "
                f"log_ratio({signal}), or use pathwise(...) to pull towards a whole law."
            )
        if signal.rung < self.hears:
            raise LimbeckError(
                f"{self} hears one value per {self.hears}, but {signal} has one per {signal.rung}; reduce it, for "
                f"instance with .over('{self.hears}', 'sum')."
            )

    def loss(self, live: Sequence[Tensor], told: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        """Losses ``[units of gives]``.

        Args:
            live: one vector ``[n]`` a question, over the kept tokens of the slice.
            told: the signal, ``[n]`` where it hears tokens, else ``[units of hears]``.
            base: the detached base ``[n]`` where there is one.
            rows: which units the kept tokens belong to.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Pathwise(Surrogate):
    """A divergence of the student's law to a target law, differentiated through the student's row.

    ``cap`` cuts the divergence of each *token* from above: a token at the cap gives no gradient.
    """

    row: Divergence
    tau: float = 1.0
    support: Support | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        number("tau of pathwise", self.tau, 0)
        if self.cap is not None:
            number("cap of pathwise", self.cap, 0)
        if self.support is not None and self.tau != 1.0:
            raise LimbeckError(
                f"pathwise(top_k={self.support.k}, tau={self.tau:g}): a top-k target needs tau = 1, because its tail "
                "has no temperature; use dense logits for tau != 1."
            )

    def questions(self, signal: Vec | Law) -> tuple[Question, ...]:
        assert isinstance(signal, Law)
        tail = self.support is None or self.support.tail
        return (Question(Distance(self.row, tail), signal, self.tau, self.support),)

    def needs(self, signal: Vec | Law) -> frozenset[Need]:
        assert isinstance(signal, Law)
        asked = "dense" if isinstance(signal, Blend) else ability(self.support)
        return frozenset((reader, asked) for reader in laws(signal))

    def check(self, signal: Vec | Law) -> None:
        if not isinstance(signal, Law):
            raise LimbeckError(
                f"{self} pulls towards a whole law and must be told a reader such as teacher, not {signal}; for a "
                "signal per token use policy(...) or sampled(...)."
            )
        own = all(r.key in ("student", "old", "writer", "synced(1)") for r in laws(signal))
        if own:
            raise LimbeckError(
                f"{self} was told {signal}, the student itself, so its gradient is zero; name another reader, such as "
                "teacher, ref or init, or give it a context it does not see: student.given(feedback)."
            )
        clocks = [r for r in laws(signal) if r.key in ("student", "old", "writer")]
        if clocks or (isinstance(signal, Blend) and self.support is not None and self.support.by == "target"):
            what = f"{clocks[0]}, which is live" if clocks else "a blend, which has no top-k of its own"
            raise LimbeckError(f"{self} was told {what}; use readers with weights of their own, and their full rows.")

    def loss(self, live: Sequence[Tensor], told: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        del told, base, rows
        return live[0] if self.cap is None else live[0].clamp(max=self.cap)

    def __str__(self) -> str:
        heat = "" if self.tau == 1.0 else f", τ={self.tau:g}"
        over = "" if self.support is None else f", {self.support}"
        cut = "" if self.cap is None else f", at most {self.cap:g} a token"
        return f"pathwise({self.row.label}{heat}{over}{cut})"


@dataclass(frozen=True)
class Policy(Surrogate):
    r"""A policy gradient; A is the told signal, rho = pi / base with its gradient.

    * ``reinforce``: :math:`-A \log\pi`
    * ``ratio``: :math:`-\rho A`
    * ``clip``: :math:`-\min(\rho A, \mathrm{clip}(\rho, 1-lo, 1+hi) A)` (PPO). ``dual`` bounds the loss at
      ``-dual A`` where A < 0 (Ye et al. 2020); ``cap`` holds the unclipped ratio below a bound first (INTELLECT-2).
    * ``cispo``: :math:`-\mathrm{sg}[\mathrm{clip}(\rho, 1-lo, 1+hi)]\, A \log\pi` (MiniMax-M1)

    With ``pool="sequence"`` the ratio is the geometric mean over the kept tokens of the sequence (GSPO).
    """

    kind: str
    lo: float = 0.0
    hi: float = 0.0
    against: Vec = OLD
    pool: str = "token"
    dual: float | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise LimbeckError(f"policy({self.kind!r}): unknown kind{nearest(self.kind, _KINDS)}; use one of {known}.")
        if self.pool not in ("token", "sequence"):
            raise LimbeckError(f"policy(pool={self.pool!r}): a ratio is pooled per token or per sequence.")
        expect("base of policy", self.against, Vec, "give log-probs, for instance logp(writer)")
        for name in ("lo", "hi"):  # infinite: no bound on that side
            number(f"{name} of {self.kind} (the range is 1 - lo to 1 + hi)", getattr(self, name), 0, ends=True)
        for name in ("dual", "cap"):
            if getattr(self, name) is not None:  # at 1 and below, the gradient would vanish on policy
                number(f"{name} of {self.kind}", getattr(self, name), 1)

    @property
    def reach(self) -> Rung:
        return Rung.TOKEN if self.pool == "token" else Rung.SEQUENCE

    @property
    def linear(self) -> bool:
        return self.kind != "clip"

    @property
    def base(self) -> Vec | None:
        return None if self.kind == "reinforce" else self.against

    def with_reader(self, was: Reader, now: Reader) -> Policy:
        return replace(self, against=replace_reader(self.against, was, now))

    def _ratio(self, logq: Tensor, base: Tensor, rows: Rows) -> Tensor:
        log_ratio = logq - base
        if self.pool == "sequence":
            log_ratio = rows.mean(log_ratio)[rows.seq_n]
        return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()

    def loss(self, live: Sequence[Tensor], told: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        assert told is not None
        A, logq = told, live[0]
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
    ratio: bool = False
    against: Vec = OLD

    @property
    def base(self) -> Vec | None:
        return self.against if self.ratio else None

    def with_reader(self, was: Reader, now: Reader) -> SampledLoss:
        return replace(self, against=replace_reader(self.against, was, now))

    def check(self, signal: Vec | Law) -> None:
        super().check(signal)
        if not (isinstance(signal, Read) and isinstance(signal.statistic, LogProb)):
            raise LimbeckError(f"{self} compares log-probs at the sampled token: tell it logp(reader), not {signal}.")

    def loss(self, live: Sequence[Tensor], told: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        del rows
        assert told is not None
        value = self.row.potential(live[0] - told)
        if base is None:
            return value
        return (live[0] - base).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp() * value

    def __str__(self) -> str:
        return f"sampled({'ρ·' if self.ratio else ''}{self.estimator})"


@dataclass(frozen=True)
class Contrast(Surrogate):
    r"""Cross-entropy of the told distribution over the members of a group with the softmax of their scores.

    :math:`-\sum_i q_i \log\mathrm{softmax}_i(s_i / \tau - \text{margin}\, q_i)`, with
    :math:`s_i = f'(\pi/\pi_{base})` of the sequence (the log-ratio for reverse KL, which is DPO), or the mean log-prob
    per token where ``length``.
    """

    tau: float = 1.0
    against: Vec | None = None
    margin: float = 0.0
    length: bool = False
    score: Divergence = rkl

    def __post_init__(self) -> None:
        number("tau of contrast (DPO's is 1 / beta)", self.tau, 0)
        number("margin of contrast", self.margin)
        slope = self.score.slope(torch.tensor([0.5, 1.0]))  # refuses what has no slope at a sampled token
        if slope[0] == slope[1]:
            raise LimbeckError(f"contrast(score={self.score}): its slope is flat, so nothing would be learnt; use rkl.")

    @property
    def hears(self) -> Rung:
        return Rung.SEQUENCE

    @property
    def gives(self) -> Rung:
        return Rung.GROUP

    @property
    def reach(self) -> Rung:
        return Rung.GROUP

    @property
    def linear(self) -> bool:
        return self.margin == 0

    @property
    def base(self) -> Vec | None:
        return self.against

    def loss(self, live: Sequence[Tensor], told: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        assert told is not None
        log_u_n = live[0] if base is None else live[0] - base
        log_u_B = rows.mean(log_u_n) if self.length else rows.sum(log_u_n)
        logit_B = self.score.slope(log_u_B) / self.tau - self.margin * told
        groups, G = rows.group_B, int(rows.group_B[-1]) + 1 if rows.group_B.numel() else 0
        top_G = segment(logit_B.detach(), groups, G, "max")
        log_total_G = segment((logit_B - top_G[groups]).exp(), groups, G, "sum").log() + top_G
        return -segment(told * (logit_B - log_total_G[groups]), groups, G, "sum")

    def __str__(self) -> str:
        parts = [f"τ={self.tau:g}"]
        parts += [f"base={self.against}"] if self.against is not None else []
        parts += [f"margin={self.margin:g}"] if self.margin else []
        parts += ["per token"] if self.length else []
        parts += [f"score={self.score.label}"] if self.score != rkl else []
        return f"contrast({', '.join(parts)})"


@dataclass(frozen=True)
class Logistic(Surrogate):
    r"""Binary classification of sequences by log-ratio: :math:`-\log\sigma(\pm(\beta\log\pi/\pi_{base} - \delta))`.

    The sign is the told label's, +1 or -1. BCO, KTO, and VPD's E-step.
    """

    beta: float
    against: Vec
    shift: Vec

    @property
    def hears(self) -> Rung:
        return Rung.SEQUENCE

    @property
    def gives(self) -> Rung:
        return Rung.SEQUENCE

    @property
    def reach(self) -> Rung:
        return Rung.SEQUENCE

    @property
    def base(self) -> Vec:
        """The shift is spread over the tokens of a sequence, so that one base holds both."""
        return self.against + self.shift / (self.beta * length.clip(lo=1.0))

    def with_reader(self, was: Reader, now: Reader) -> Logistic:
        return replace(
            self,
            against=replace_reader(self.against, was, now),
            shift=replace_reader(self.shift, was, now),
        )

    def loss(self, live: Sequence[Tensor], told: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        assert told is not None
        assert base is not None
        margin_B = self.beta * rows.sum(live[0] - base)
        return -torch.nn.functional.logsigmoid(told.sign() * margin_B)

    def __str__(self) -> str:
        return f"logistic(β={self.beta:g}, base={self.against}, δ={self.shift})"


# ---------------------------------------------------------------- how methods write them

_ESTIMATORS: dict[str, Divergence] = {"k2": rkl, "k3": fkl}


def pathwise(
    row: Divergence | str,
    tau: float = 1.0,
    top_k: int | None = None,
    by: str = "target",
    tail: bool = True,
    cap: float | None = None,
) -> Pathwise:
    """Pull the student's law towards a target law; ``tau`` divides both sides' logits (multiply by tau^2 outside).

    ``top_k`` takes only the k likeliest entries of ``by`` (the ``target`` or the ``student``) and one tail bucket: the
    exact divergence of the coarser laws, a lower bound of the full one, equal at k = V. ``tail=False`` normalises both
    laws within the k instead, which is biased. ``cap`` cuts a token's divergence from above.
    """
    return Pathwise(as_divergence(row), tau, None if top_k is None else Support(top_k, by, tail), cap)


def policy(
    kind: str,
    lo: float = 0.0,
    hi: float = 0.0,
    base: Vec | None = None,
    pool: str = "token",
    dual: float | None = None,
    cap: float | None = None,
) -> Policy:
    """A policy gradient; see ``Policy`` for the kinds. An infinite ``lo`` or ``hi`` is no bound on that side."""
    return Policy(kind, lo, hi, base if base is not None else OLD, pool, dual, cap)


def clip(
    lo: float,
    hi: float | None = None,
    base: Vec | None = None,
    pool: str = "token",
    dual: float | None = None,
    cap: float | None = None,
) -> Policy:
    """PPO's clipped ratio; one bound serves both sides."""
    return policy("clip", lo, lo if hi is None else hi, base, pool, dual, cap)


def cispo(lo: float = math.inf, hi: float = 4.0) -> Policy:
    """CISPO: detached clipped ratio times log-prob; ``lo = inf`` clips only above, at 1 + hi."""
    return policy("cispo", lo, hi)


reinforce = Policy("reinforce")
"""−A log π. Told 1 it is the negative log-likelihood."""
ratio = Policy("ratio")
"""−ρ A, unclipped."""


def sampled(estimator: str | Divergence, ratio: bool = False) -> SampledLoss:
    """A sampled estimator as a loss: ``"k2"`` (reverse KL's gradient), ``"k3"`` (forward KL's), or a divergence's h(u).

    ``ratio=True`` multiplies by the live ratio to ``old``: then k3 has the reverse KL's gradient.

    Raises:
        LimbeckError: for ``"k1"``, whose expected gradient is zero, and for a divergence without a closed loss form.
    """
    if estimator == "k1":
        raise LimbeckError(
            "sampled('k1'): k1 as a loss has zero expected gradient (E_q[grad log q] = 0), the teacher cancels; use "
            "'k2', or k1 as a detached signal: Term(log_ratio(teacher), reinforce)."
        )
    if isinstance(estimator, Divergence):
        estimator.potential(torch.zeros(1))
        return SampledLoss(f"h of {estimator.label}", estimator, ratio)
    if estimator not in _ESTIMATORS:
        raise LimbeckError(
            f"sampled({estimator!r}): unknown estimator{nearest(estimator, _ESTIMATORS)}; use 'k2' or 'k3', or a "
            "divergence with a loss form."
        )
    return SampledLoss(estimator, _ESTIMATORS[estimator], ratio)


def logistic(beta: float, base: Vec, shift: Vec | float = 0.0) -> Logistic:
    """Classify sequences labelled +1 or -1 by beta times their log-ratio to a base, less a shift (a batch value)."""
    if not (beta > 0 and math.isfinite(beta)):
        raise LimbeckError(f"logistic(beta={beta}): the scale of the log-ratio must be positive.")
    return Logistic(beta, base, vec(shift))


def contrast(
    tau: float = 1.0,
    base: Reader | None = None,
    margin: float = 0.0,
    length: bool = False,
    score: Divergence | str | None = None,
) -> Contrast:
    """Preferences over a group; DPO is ``contrast(tau=1 / beta, base=ref)`` told the labels (1, 0)."""
    return Contrast(tau, None if base is None else logp(base), margin, length, as_divergence(score or rkl))
