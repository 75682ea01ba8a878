"""The leaves of ``Vec``: what readers report of each token, and what a record holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LimbeckError, expect
from ..math.statistic import Distance, LogProb, Statistic
from .ladder import Ladder, Rung
from .reader import Reader, student
from .vec import Hearing, Need, Vec


@dataclass(frozen=True)
class Read(Vec):
    """What a reader reports of each scored token."""

    reader: Reader
    statistic: Statistic
    target: Reader | None = None

    def __post_init__(self) -> None:
        for reader in (self.reader, self.target):
            if reader is not None:
                expect("a reader", reader, Reader, "give one such as teacher, ref or old, from limbeck.axes")

    @property
    def rung(self) -> Rung:
        return Rung.TOKEN

    @property
    def live(self) -> bool:
        return student.role in (self.reader.role, self.target.role if self.target else "")

    def own_needs(self) -> frozenset[Need]:
        if self.target is None:
            plain = isinstance(self.statistic, LogProb) and self.reader.tau == 1.0
            return frozenset({(self.reader, "sampled" if plain else "dense")})
        return frozenset({(self.reader, "dense"), (self.target, "dense")})

    def evaluate(self, hearing: Hearing) -> Tensor:
        return hearing.read(self.reader, self.statistic, self.target)

    def __str__(self) -> str:
        if isinstance(self.statistic, Distance):
            return f"{self.statistic.divergence.label}({self.reader} ‖ {self.target})"
        return f"log π_{self.reader}" if isinstance(self.statistic, LogProb) else f"H(π_{self.reader})"


@dataclass(frozen=True)
class Field(Vec):
    """A field of the record."""

    name: str
    at: Rung = Rung.SEQUENCE

    @property
    def rung(self) -> Rung:
        return self.at

    @property
    def own_fields(self) -> frozenset[str]:
        return frozenset({self.name})

    def evaluate(self, hearing: Hearing) -> Tensor:
        return _FIELDS[self.name](hearing.ladder)

    def __str__(self) -> str:
        return self.name


_FIELDS: dict[str, Callable[[Ladder], Tensor]] = {
    "reward": lambda ladder: ladder.record.reward_U,
    "correct": lambda ladder: ladder.record.correct_B,
    "truncated": lambda ladder: ladder.record.truncated_B,
    "label": lambda ladder: ladder.record.label_B,
    "length": lambda ladder: ladder.record.length_B.to(ladder.record.reward_U.dtype),
    "position": lambda ladder: ladder.position().to(ladder.record.reward_U.dtype),
}


@dataclass(frozen=True)
class Column(Vec):
    """A named number that came with the data."""

    name: str
    at: Rung = Rung.SEQUENCE

    @property
    def rung(self) -> Rung:
        return self.at

    def evaluate(self, hearing: Hearing) -> Tensor:
        record = hearing.ladder.record
        columns = record.columns_N if self.at == Rung.TOKEN else record.columns_B
        if self.name not in columns:
            raise LimbeckError(
                f"column({self.name!r}): the data has no such {self.at} column, only {sorted(columns) or 'none'}; "
                "add it to the data or name another."
            )
        return columns[self.name]

    def __str__(self) -> str:
        return f"column[{self.name}]"


@dataclass(frozen=True)
class On(Vec):
    """Sequences of one named source."""

    source: str

    @property
    def rung(self) -> Rung:
        return Rung.SEQUENCE

    def evaluate(self, hearing: Hearing) -> Tensor:
        record = hearing.ladder.record
        if self.source not in record.sources:
            return torch.zeros_like(record.correct_B)
        return record.origin_B == record.sources.index(self.source)

    def __str__(self) -> str:
        return f"on[{self.source}]"
