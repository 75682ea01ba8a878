"""Sources: who writes a record, and who verifies it. Declarations; the engine executes them.

A source writes *groups*: ``n`` sequences for one prompt, which a group baseline may compare.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LimbeckError, expect, number, whole
from .reader import Blend, Reader, student
from .scalar import Scalar, scalar
from .vec import Need, Vec


@dataclass(frozen=True)
class Source:
    """Who writes a record.

    Attributes (of every source):
        group: sequences a prompt.
        verified: whether rewards and correctness are known.
        sampled: whether the writer's log-probs are known.
    """

    @property
    def group(self) -> int:
        raise NotImplementedError

    @property
    def verified(self) -> bool:
        raise NotImplementedError

    @property
    def sampled(self) -> bool:
        raise NotImplementedError

    @property
    def on_policy(self) -> bool:
        """Whether the student itself wrote every token, at temperature 1 and untruncated."""
        return False

    @property
    def labelled(self) -> bool:
        """Whether sequences carry preference labels."""
        return False

    @property
    def needs(self) -> frozenset[Need]:
        """Who must be able to write."""
        return frozenset()


@dataclass(frozen=True)
class Data(Source):
    """Responses that the task's data holds: one demonstration, or a pair (chosen, rejected) where ``pairs``."""

    name: str = "task"
    pairs: bool = False

    @property
    def group(self) -> int:
        return 2 if self.pairs else 1

    @property
    def verified(self) -> bool:
        return False

    @property
    def sampled(self) -> bool:
        return False

    @property
    def labelled(self) -> bool:
        return self.pairs

    def __str__(self) -> str:
        return f"{'pairs' if self.pairs else 'responses'} of the {self.name} data"


@dataclass(frozen=True)
class Sample(Source):
    """``n`` responses a prompt, sampled from a reader, or token by token from a blend.

    Attributes:
        reader: who writes.
        n: responses a prompt.
        check: whether the task's verifier judges them.
        tau: sampling temperature.
        max_tokens: limit of a response; None takes the run's.
    """

    reader: Reader | Blend = student
    n: int = 1
    check: bool = True
    tau: float = 1.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        expect("the writer of sample", self.reader, (Reader, Blend), "give a reader such as student, or blend(...)")
        whole("n of sample", self.n, 1)
        number("tau of sample", self.tau, 0)
        if self.max_tokens is not None:
            whole("max_tokens of sample", self.max_tokens, 1)

    @property
    def group(self) -> int:
        return self.n

    @property
    def verified(self) -> bool:
        return self.check

    @property
    def sampled(self) -> bool:
        return True

    @property
    def on_policy(self) -> bool:
        return self.reader == student and self.tau == 1.0

    @property
    def needs(self) -> frozenset[Need]:
        readers = [r for r, w in self.reader.parts if w > 0] if isinstance(self.reader, Blend) else [self.reader]
        return frozenset((r, "text") for r in readers)

    def __str__(self) -> str:
        verified = ", verified" if self.check else ""
        heat = "" if self.tau == 1.0 else f", τ={self.tau:g}"
        return f"{self.n} sampled from {self.reader}{heat}{verified}"


@dataclass(frozen=True)
class Either(Source):
    """For each batch, ``a`` with probability ``chance``, else ``b`` (GKD's coin)."""

    chance: Scalar
    a: Source
    b: Source

    @property
    def group(self) -> int:
        return self.a.group

    @property
    def verified(self) -> bool:
        return self.a.verified and self.b.verified

    @property
    def sampled(self) -> bool:
        return self.a.sampled and self.b.sampled

    @property
    def needs(self) -> frozenset[Need]:
        return self.a.needs | self.b.needs

    def __str__(self) -> str:
        return f"{self.a} with probability {self.chance}, else {self.b}"


@dataclass(frozen=True)
class Resample(Source):
    """Write groups until enough of them satisfy a condition (DAPO's dynamic sampling); the others are dropped.

    Attributes:
        source: who writes.
        until: a Vec per group; groups where it is false are dropped.
        rounds: at most so many tries to fill a batch; then it trains on what there is (ours: 4).
    """

    source: Source
    until: Vec
    rounds: int = 4

    def __post_init__(self) -> None:
        expect("the source of resample", self.source, Source, "give one such as sample(n=8)")
        expect("until of resample", self.until, Vec, "give a mask such as ~(all_wrong | all_right)")
        whole("rounds of resample", self.rounds, 1)

    @property
    def group(self) -> int:
        return self.source.group

    @property
    def verified(self) -> bool:
        return self.source.verified

    @property
    def sampled(self) -> bool:
        return self.source.sampled

    @property
    def on_policy(self) -> bool:
        return self.source.on_policy

    @property
    def needs(self) -> frozenset[Need]:
        return self.source.needs

    def __str__(self) -> str:
        return f"{self.source}, groups kept where {self.until}"


def data(name: str = "task") -> Data:
    """One demonstration a prompt from the named data set."""
    return Data(name)


def pairs(name: str = "task") -> Data:
    """A chosen and a rejected response a prompt, labelled 1 and 0."""
    return Data(name, pairs=True)


def sample(
    reader: Reader | Blend = student,
    n: int = 1,
    check: bool = True,
    tau: float = 1.0,
    max_tokens: int | None = None,
) -> Sample:
    """``n`` sampled responses a prompt."""
    return Sample(reader, n, check, tau, max_tokens)


def either(chance: Scalar | float | str, a: Source, b: Source) -> Source:
    """A coin for each batch; a chance of 0 or 1 is no coin."""
    for of in (a, b):
        expect("a source of either", of, Source, "give one such as sample() or data()")
    coin = scalar(chance)
    values = (coin.at(0), coin.at(10**9))
    if not all(0.0 <= v <= 1.0 for v in values):
        raise LimbeckError(f"either(chance={coin}): a probability lies between 0 and 1.")
    if coin.is_zero:
        return b
    return a if coin == scalar(1.0) else Either(coin, a, b)


def resample(source: Source, until: Vec) -> Resample:
    """Dynamic sampling: keep writing until the groups satisfy a condition."""
    return Resample(source, until)
