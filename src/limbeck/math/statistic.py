r"""Per-token statistics of a next-token distribution q, each with its closed-form gradient.

A statistic turns a row of log-probs over the vocabulary into one number. Everything after it (ratios, clips, gates,
weights, sums over sequences) is ordinary PyTorch on vectors with one value per token.

A statistic gives ``value`` and ``flow``. With respect to the logits z of q (at temperature tau)

.. math:: \partial\,\text{value}/\partial z = (\text{flow} - q \textstyle\sum_v \text{flow}_v) / \tau .

Shapes: ``logq_nV`` log-probs of a tile of n rows, ``label_n`` the token of each row, ``target`` the distribution that q
is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LimbeckError, whole
from ..lazy_torch import Tensor, torch
from .autograd import flow_by_autograd
from .divergence import Divergence


@dataclass(frozen=True)
class Target:
    """The distribution that a row is compared with.

    Attributes:
        logp: ``[n, V]``, or ``[n, K + 1]`` with the bucket of the tail last (``[n, V]`` where K = V leaves no tail).
        ids_nK: None for full rows, else the ids of the K head entries.
    """

    logp: Tensor
    ids_nK: Tensor | None = None


@dataclass(frozen=True)
class LogProb:
    """log q(label), nats."""

    def value(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        del target
        return logq_nV.gather(-1, label_n.unsqueeze(-1)).squeeze(-1)

    def flow(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        del target
        return torch.zeros_like(logq_nV).scatter_(-1, label_n.unsqueeze(-1), 1.0)


@dataclass(frozen=True)
class Entropy:
    """-sum q log q, nats."""

    def value(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        return self.flow(logq_nV, label_n, target).sum(-1)

    def flow(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        del label_n, target
        q = logq_nV.exp()
        return torch.where(q == 0, torch.zeros_like(q), -q * logq_nV)


@dataclass(frozen=True)
class Distance:
    """A divergence to the target, nats; with a top-k target, the exact divergence over its k entries and the tail.

    With ``tail=False`` the target has k entries and no bucket, and both distributions are normalised within them. That
    is no bound of the full divergence, and biased as a loss unless k = V.
    """

    divergence: Divergence
    tail: bool = True

    def __str__(self) -> str:
        return self.divergence.label

    def value(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        del label_n
        assert target is not None
        return self.divergence.value(self._coarse(logq_nV, target), target.logp)

    def flow(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        del label_n
        assert target is not None
        logc = self._coarse(logq_nV, target)
        flow_c = self.divergence.flow(logc, target.logp)
        if self.tail or target.ids_nK is None:
            return spread_flow(flow_c, logc, logq_nV, target.ids_nK)
        within = flow_c - logc.exp() * flow_c.sum(-1, keepdim=True)  # the normalisation within the support
        return torch.zeros_like(logq_nV).scatter_(-1, target.ids_nK, within)

    def _coarse(self, logq_nV: Tensor, target: Target) -> Tensor:
        if self.tail or target.ids_nK is None:
            return coarsen(logq_nV, target.ids_nK)
        return logq_nV.gather(-1, target.ids_nK).log_softmax(-1)


@dataclass(frozen=True)
class InTop:
    """1 where the label is among the k most likely entries, else 0; without gradient."""

    k: int

    def value(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        del target
        logp_n1 = logq_nV.gather(-1, label_n.unsqueeze(-1))
        return ((logq_nV > logp_n1).sum(-1) < self.k).to(logq_nV.dtype)

    def flow(self, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
        del label_n, target
        return torch.zeros_like(logq_nV)


Statistic = LogProb | Entropy | Distance | InTop


def flow_of(statistic: Statistic, logq_nV: Tensor, label_n: Tensor, target: Target | None) -> Tensor:
    """The flow of a statistic: its closed form, or by autograd of its value where it has none."""
    closed = getattr(statistic, "flow", None)
    if closed is not None:
        try:
            found: Tensor = closed(logq_nV, label_n, target)
        except NotImplementedError:
            pass
        else:
            return found
    return flow_by_autograd(lambda x: statistic.value(x, label_n, target), logq_nV)


@dataclass(frozen=True)
class Support:
    """The entries of the vocabulary over which a divergence is taken.

    Attributes:
        k: the number of most likely entries.
        by: the distribution that chooses them, ``target`` or ``student``. ``draw`` takes an entry that is drawn from
            the target, with all the mass (for a black box that only writes).
        tail: True puts the rest into one bucket (the exact divergence of the coarser distributions, a lower bound of
            the full one); False normalises both distributions within the k entries (biased as a loss unless k = V).
    """

    k: int
    by: str = "target"
    tail: bool = True

    def __post_init__(self) -> None:
        whole("top_k of divergence_loss", self.k, 1)
        if self.by not in ("target", "student", "draw") or (self.by == "draw" and self.k != 1):
            raise LimbeckError(
                f"support(k={self.k}, by={self.by!r}): this is no support; choose entries by 'target' or 'student', or "
                "one entry by 'draw'."
            )

    def __str__(self) -> str:
        if self.by == "draw":
            return "one drawn entry"
        whose = "" if self.by == "target" else "student's "
        return f"{whose}top {self.k}{' + tail' if self.tail else ', normalised within (biased)'}"


def log_tail(logp_nK: Tensor) -> Tensor:
    """log(1 - sum exp(logp)), ``[n, 1]``: the mass outside the head, from log-probs normalised over the vocabulary.

    The mass of the head is capped just below 1, so that rounding never gives the logarithm of a negative number.
    """
    head = logp_nK.logsumexp(-1, keepdim=True).clamp(max=-1e-7 if logp_nK.dtype == torch.float32 else -1e-12)
    return (-torch.expm1(head)).log()


def with_tail(logp_nK: Tensor, vocabulary: int) -> Tensor:
    """``[n, K + 1]`` with the log-mass of the tail last; ``[n, V]`` unchanged where the head is the vocabulary."""
    if logp_nK.shape[-1] == vocabulary:
        return logp_nK
    return torch.cat([logp_nK, log_tail(logp_nK)], dim=-1)


def coarsen(logq_nV: Tensor, ids_nK: Tensor | None) -> Tensor:
    """The distribution over k head entries and the tail that full rows give; the rows themselves without ``ids_nK``."""
    if ids_nK is None:
        return logq_nV
    return with_tail(logq_nV.gather(-1, ids_nK), logq_nV.shape[-1])


def spread_flow(flow_c: Tensor, logc: Tensor, logq_nV: Tensor, ids_nK: Tensor | None) -> Tensor:
    """The flow of every vocabulary entry, from the flow of its bucket: q_v g(bucket of v)."""
    if ids_nK is None:
        return flow_c
    k = ids_nK.shape[-1]
    if k == logq_nV.shape[-1]:
        return torch.zeros_like(logq_nV).scatter_(-1, ids_nK, flow_c)
    slope_tail = flow_c[:, k:] * (-logc[:, k:]).exp()
    return (logq_nV.exp() * slope_tail).scatter_(-1, ids_nK, flow_c[:, :k])
