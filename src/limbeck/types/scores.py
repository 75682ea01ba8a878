"""Scores: the log-probs, top-k, logits or hidden states of a model on the scored tokens of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

from ..lazy_torch import Tensor, torch


@dataclass(frozen=True)
class Head:
    """The last linear map of a language model: ``logits = scale * (h @ weight.T + bias)``, soft-capped if asked.

    Attributes:
        weight_VH: float, rows are vocabulary entries.
        bias_V: or None.
        scale: multiplies the logits (Cohere, Granite); 1 for most models.
        softcap: ``c * tanh(logits / c)`` (Gemma 2); None for most models.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Head:
        """The same head with ``change`` applied to its tensors."""
        return replace(
            self, weight_VH=change(self.weight_VH), bias_V=None if self.bias_V is None else change(self.bias_V)
        )


@dataclass(frozen=True)
class Scores:
    """The numbers of a model on the scored tokens of a record, in one of four forms; row n is about ``token_N[n]``.

    All tensors of a form have one row a token; the head of ``Hidden`` belongs to all rows.
    """

    kind: ClassVar[str] = ""
    """The word for the form in argument names and messages."""

    @property
    def values(self) -> Tensor:
        """The numbers themselves: log-probs, logits or hidden states."""
        raise NotImplementedError

    @property
    def width(self) -> int | None:
        """Size of the vocabulary; None where only the log-probs of some entries are known."""
        return None

    @property
    def n_rows(self) -> int:
        """N."""
        return self.values.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of every tensor."""
        return self.values.device

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same form with ``change`` applied to every tensor that has one row a token."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(x) for name, x in found.items() if isinstance(x, torch.Tensor)})

    def rows(self, index: slice | Tensor | tuple[Tensor, ...]) -> Self:
        """Some rows."""
        return self.map(lambda x: x[index])

    def detach(self) -> Self:
        """The same numbers without gradient."""
        return self.map(_detached)

    def to(self, device: torch.device | str) -> Self:
        """The same numbers on ``device``."""
        return self.map(lambda x: x.to(device))

    def snapshot(self) -> Self:
        """The same numbers, which stay when an optimiser step changes the model's parameters in place."""
        return self

    @staticmethod
    def cat(parts: Sequence[Scores]) -> Scores:
        """One after another; all of the same form, and with the same head."""
        first = parts[0]
        names = [f.name for f in fields(first) if isinstance(getattr(first, f.name), torch.Tensor)]
        return replace(first, **{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


@dataclass(frozen=True)
class Sampled(Scores):
    """Log-probs of the scored tokens only."""

    logp_N: Tensor
    kind: ClassVar[str] = "log-probs"

    @property
    def values(self) -> Tensor:
        return self.logp_N


@dataclass(frozen=True)
class TopK(Scores):
    """The model's own k likeliest ids, log-probs normalised over the full vocabulary; the rest is one tail bucket."""

    ids_NK: Tensor
    logp_NK: Tensor
    kind: ClassVar[str] = "top-k"

    @property
    def values(self) -> Tensor:
        return self.logp_NK


@dataclass(frozen=True)
class Dense(Scores):
    """Full logits, one row a scored token: row n predicts ``token_N[n]``."""

    logits_NV: Tensor
    kind: ClassVar[str] = "logits"

    @property
    def values(self) -> Tensor:
        return self.logits_NV

    @property
    def width(self) -> int:
        return self.logits_NV.shape[-1]


@dataclass(frozen=True)
class Hidden(Scores):
    """Hidden states with the head that turns them into logits; full ``[N, V]`` logits never exist at once."""

    hidden_NH: Tensor
    head: Head
    kind: ClassVar[str] = "hidden states"

    @property
    def values(self) -> Tensor:
        return self.hidden_NH

    @property
    def width(self) -> int:
        return self.head.weight_VH.shape[0]

    def detach(self) -> Self:
        return replace(self, hidden_NH=self.hidden_NH.detach(), head=self.head.map(_detached))

    def to(self, device: torch.device | str) -> Self:
        return replace(self, hidden_NH=self.hidden_NH.to(device), head=self.head.map(lambda x: x.to(device)))

    def snapshot(self) -> Self:
        return replace(self, head=self.head.map(lambda x: x.clone()))


@dataclass(frozen=True)
class Mixture:
    """A next-token distribution mixed from others, row by row; made when a loss is computed, never stored.

    Attributes:
        space: ``prob`` adds probabilities, ``log`` adds log-probs (then normalises, so the weights need no sum).
        parts: full rows, each with its weight and its temperature; a single part is a distribution at a temperature.
    """

    space: str
    parts: tuple[tuple[Dense | Hidden, float, float], ...]


def _detached(x: Tensor) -> Tensor:
    return x.detach()
