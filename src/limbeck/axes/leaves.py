"""The leaves of ``Expr``: scores that readers give each token, and fields of the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import LimbeckError, expect
from ..lazy_torch import Tensor, torch
from ..math.statistic import Distance, InTop, LogProb, Statistic, Support
from .context import Context
from .expression import EvalContext, Expr, Need
from .levels import Level, Levels
from .reader import Blend, Reader, TargetReader


@dataclass(frozen=True)
class Read(Expr):
    """A statistic of a reader at each scored token: its log-prob, its entropy, or its divergence to a target."""

    reader: Reader
    statistic: Statistic
    target: TargetReader | None
    support: Support | None

    def __post_init__(self) -> None:
        for reader in (self.reader, self.target):
            if reader is not None:
                expect("a reader", reader, (Reader, Blend), "give one such as teacher, ref or old, from limbeck.axes")

    @property
    def level(self) -> Level:
        return Level.TOKEN

    @property
    def live(self) -> bool:
        return self.reader.live or any(r.live for r in readers_of(self.target))

    def own_needs(self) -> frozenset[Need]:
        if self.target is None:
            plain = isinstance(self.statistic, LogProb) and self.reader.tau == 1.0
            return frozenset({(self.reader, "sampled" if plain else "dense")})
        return frozenset({(self.reader, "dense"), *((r, ability(r, self.support)) for r in readers_of(self.target))})

    def evaluate(self, batch: EvalContext) -> Tensor:
        return batch.read(self.reader, self.statistic, self.target, self.support)

    def __str__(self) -> str:
        if isinstance(self.statistic, Distance):
            over = "" if self.support is None else f"; {self.support}"
            return f"{self.statistic.divergence.label}({self.reader} ‖ {self.target}{over})"
        if isinstance(self.statistic, InTop):
            return f"[in top {self.statistic.k} of π_{self.reader}]"
        return f"log π_{self.reader}" if isinstance(self.statistic, LogProb) else f"H(π_{self.reader})"


def readers_of(target: TargetReader | None) -> tuple[Reader, ...]:
    """The readers that a target distribution is made of."""
    if target is None:
        return ()
    return target.readers if isinstance(target, Blend) else (target,)


def ability(reader: Reader, support: Support | None) -> str:
    """The ability that a target needs: full rows, its own top-k, or log-probs at the entries that the student chose.

    A few entries of a distribution do not determine it at another temperature, so a temperature needs full rows.
    """
    if support is None or support.by == "draw" or reader.tau != 1.0:
        return "dense"
    return "topk" if support.by == "target" else "at"


@dataclass(frozen=True)
class Field(Expr):
    """A field of the record."""

    name: str
    at: Level = Level.SEQUENCE

    @property
    def level(self) -> Level:
        return self.at

    @property
    def own_fields(self) -> frozenset[str]:
        return frozenset({self.name})

    def evaluate(self, batch: EvalContext) -> Tensor:
        return _FIELDS[self.name](batch.levels)

    def __str__(self) -> str:
        return self.name


_FIELDS: dict[str, Callable[[Levels], Tensor]] = {
    "reward": lambda levels: levels.record.reward_U,
    "correct": lambda levels: levels.record.correct_B,
    "truncated": lambda levels: levels.record.truncated_B,
    "label": lambda levels: levels.record.label_B,
    "length": lambda levels: levels.record.length_B.to(levels.record.reward_U.dtype),
    "turn": lambda levels: levels.turn().to(levels.record.reward_U.dtype),
    "author": lambda levels: levels.record.author_N,
    "position": lambda levels: levels.position().to(levels.record.reward_U.dtype),
}


@dataclass(frozen=True)
class Column(Expr):
    """A named number from the data."""

    name: str
    at: Level

    @property
    def level(self) -> Level:
        return self.at

    def evaluate(self, batch: EvalContext) -> Tensor:
        record = batch.levels.record
        columns = record.columns_N if self.at == Level.TOKEN else record.columns_B
        if self.name not in columns:
            raise LimbeckError(
                f"column({self.name!r}): the data has no such {self.at} column, only {sorted(columns) or 'none'}; "
                "add it to the data or name another."
            )
        return columns[self.name]

    def __str__(self) -> str:
        return f"column[{self.name}]"


@dataclass(frozen=True)
class On(Expr):
    """A mask of the sequences that one named source wrote."""

    source: str

    @property
    def level(self) -> Level:
        return Level.SEQUENCE

    def evaluate(self, batch: EvalContext) -> Tensor:
        record = batch.levels.record
        if self.source not in record.sources:
            return torch.zeros_like(record.correct_B)
        return record.origin_B == record.sources.index(self.source)

    def __str__(self) -> str:
        return f"on[{self.source}]"


@dataclass(frozen=True)
class Has(Expr):
    """A mask of sequences with the evidence of a context; all of them on plain tensors without that column."""

    context: Context

    @property
    def level(self) -> Level:
        return Level.SEQUENCE

    @property
    def own_fields(self) -> frozenset[str]:
        return self.context.fields

    def own_contexts(self) -> frozenset[Context]:
        return frozenset({self.context})

    def evaluate(self, batch: EvalContext) -> Tensor:
        record = batch.levels.record
        known = record.columns_B.get(self.context.column)
        return torch.ones_like(record.correct_B) if known is None else known.bool()

    def __str__(self) -> str:
        return f"has[{self.context}]"


@dataclass(frozen=True)
class Tagged(Expr):
    """A mask of the sequences whose prompt has a given word in a column (a domain, a difficulty)."""

    column: str
    value: str

    @property
    def level(self) -> Level:
        return Level.SEQUENCE

    def evaluate(self, batch: EvalContext) -> Tensor:
        record = batch.levels.record
        if self.tag in record.columns_B:  # plain tensors: one boolean per sequence
            return record.columns_B[self.tag].bool()
        if not record.prompts_B or any(self.column not in p.columns for p in record.prompts_B):
            raise LimbeckError(
                f"{self} reads the column {self.column!r}, which not every prompt has; add it to the data."
            )
        hits = [str(p.columns[self.column]) == self.value for p in record.prompts_B]
        return torch.tensor(hits, device=record.correct_B.device)

    @property
    def tag(self) -> str:
        """The name of its column of booleans in ``lb.objective``."""
        return f"{self.column}={self.value}"

    def __str__(self) -> str:
        return f"[{self.tag}]"
