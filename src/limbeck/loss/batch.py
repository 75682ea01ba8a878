"""A batch: a rollout with the scores of its readers, without gradient; and the target distributions of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..axes.levels import Levels
from ..axes.reader import Blend, Reader, TargetReader, behavior
from ..errors import LimbeckError
from ..kernels.tiles import StatisticRequest, drawn_rows, statistics, top_k_rows
from ..math.statistic import LogProb, Statistic, Support
from ..types import Dense, Hidden, Mixture, Rollout, Sampled, Scores, TopK


def _local(x: Tensor) -> Tensor:
    return x


@dataclass
class Batch:
    """A rollout with the scores of its readers, on which expressions of the whole batch are evaluated.

    Attributes:
        record: the rollout.
        scores: of each reader, without gradient, by the reader's key (``teacher``, ``init given solution`` ...).
        step: for schedules.
        all_sum: adds a tensor over processes.
        memory: numbers that outlive the batch (moving averages, controllers), by name; updated once a batch.
    """

    record: Rollout
    scores: Mapping[str, Scores]
    step: int = 0
    all_sum: Callable[[Tensor], Tensor] = _local
    memory: dict[str, float] = field(default_factory=dict)
    levels: Levels = field(init=False)

    def __post_init__(self) -> None:
        self.levels = Levels(self.record, self.all_sum)
        self._memo: dict[tuple[Reader, Statistic, TargetReader | None, Support | None], Tensor] = {}
        self._remembered: set[str] = set()

    def remember(self, name: str, update: Callable[[float | None], float | None]) -> float | None:
        """A number of the memory, updated at its first use in a batch; None where it is not known yet."""
        if name not in self._remembered:
            self._remembered.add(name)
            value = update(self.memory.get(name))
            if value is not None:
                self.memory[name] = value
        return self.memory.get(name)

    def read(
        self, reader: Reader, statistic: Statistic, target: TargetReader | None, support: Support | None = None
    ) -> Tensor:
        """A statistic of a reader's next-token distribution at every scored token, ``[N]``, without gradient."""
        key = (reader, statistic, target, support)
        if key not in self._memo:
            self._memo[key] = self._read(*key)
        return self._memo[key]

    def _read(
        self, reader: Reader, statistic: Statistic, target: TargetReader | None, support: Support | None
    ) -> Tensor:
        if reader.key == behavior.key:
            return self.record.rollout_logp_N
        scores = scores_of(self.scores, reader.key)
        if isinstance(statistic, LogProb) and isinstance(scores, Sampled) and reader.tau == 1.0:
            return scores.logp_N
        if not isinstance(scores, Dense | Hidden):
            raise LimbeckError(
                f"only {scores.kind} of {reader} were given, but {statistic} needs its full next-token distribution; "
                "give its logits or hidden states."
            )
        towards = None if target is None else target_of(self.scores, target, support, statistic)
        with torch.no_grad():
            return statistics(
                scores,
                self.record.token_N,
                [StatisticRequest(statistic, None, towards, reader.tau, entries_of(support), 1.0)],
            )[0]


def scores_of(scores: Mapping[str, Scores], key: str) -> Scores:
    """The scores of a reader, by its key.

    Raises:
        LimbeckError: where none were given.
    """
    if key not in scores:
        raise LimbeckError(f"the method reads {key}, but no scores of {key} were given; pass its logits or log-probs.")
    return scores[key]


def target_of(
    scores: Mapping[str, Scores], target: TargetReader, support: Support | None, statistic: Statistic
) -> Scores | Mixture:
    """The scores that a target distribution is formed from, at its readers' own temperatures.

    Raises:
        LimbeckError: where the scores do not hold what the statistic needs.
    """
    if isinstance(target, Blend):
        parts = [(target_of(scores, r.at(1.0), None, statistic), w, r.tau) for r, w in target.parts if w != 0]
        return Mixture(target.space, tuple((c, w, tau) for c, w, tau in parts if isinstance(c, Dense | Hidden)))
    given = scores_of(scores, target.key)
    if isinstance(given, Sampled) or (support is None and isinstance(given, TopK)):
        held = "the log-probs of the sampled tokens" if isinstance(given, Sampled) else "its top-k"
        raise LimbeckError(
            f"{target} gives only {held}, but {statistic} needs its full next-token distribution; use a method that "
            "reads sampled log-probs (opd), pass top_k=..., or give logits or hidden states."
        )
    if isinstance(given, TopK) and target.tau != 1.0:
        raise LimbeckError(
            f"{target} gives only its top-k, from which its distribution at another temperature cannot be "
            f"computed; give its logits or hidden states, or read {target.at(1.0)}."
        )
    if support is None or support.by == "student":
        if isinstance(given, Dense | Hidden) and target.tau != 1.0:
            return Mixture("prob", ((given, 1.0, target.tau),))
        return given
    if isinstance(given, Dense | Hidden):
        return drawn(given, target.tau) if support.by == "draw" else top_k(given, support.k, target.tau)
    assert isinstance(given, TopK)
    if given.ids_NK.shape[-1] < support.k:
        raise LimbeckError(
            f"top_k={support.k}, but {target} gives only {given.ids_NK.shape[-1]} entries; give {support.k}, or lower "
            "top_k."
        )
    return TopK(given.ids_NK[:, : support.k], given.logp_NK[:, : support.k])


def entries_of(support: Support | None) -> Support | None:
    """The support for the kernel; None where the target's own scores hold the entries and a bucket for the rest."""
    return None if support is None or (support.by != "student" and support.tail) else support


def drawn(scores: Dense | Hidden, tau: float = 1.0) -> TopK:
    """One entry of each row, sampled from its distribution (torch's global generator), as a one-entry distribution."""
    ids_N1 = drawn_rows(scores, tau=tau)
    return TopK(ids_N1, torch.zeros(ids_N1.shape, device=ids_N1.device))


def top_k(scores: Dense | Hidden, k: int, tau: float = 1.0) -> TopK:
    """The k likeliest ids of each row with log-probs over the full vocabulary, tile by tile."""
    return TopK(*top_k_rows(scores, k, tau=tau))
