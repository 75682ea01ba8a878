"""Sources: who writes a record, and who verifies it. Declarations; the engine executes them.

A source writes *groups*: ``n`` sequences for one prompt, which a group baseline may compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import LimbeckError, expect, number, whole
from ..types import DATA, STUDENT, TEACHER
from .context import Context
from .expression import Expr, Need
from .reader import Blend, Reader, student
from .scalar import Scalar, scalar

ONE = scalar(1.0)

OWN = ("student", "init", "ref")
"""Roles that write in the student's hand: its weights, now or before."""


def author_of(readers: Sequence[Reader]) -> int:
    """Who counts as the author of what these readers write together: the student, or a teacher."""
    return STUDENT if any(r.follow is not None or r.role in OWN for r in readers) else TEACHER


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
    def labelled(self) -> bool:
        """Whether sequences carry preference labels."""
        return False

    @property
    def author(self) -> int | None:
        """Who writes its tokens (``DATA``, ``STUDENT``, ``TEACHER``); None where that differs, or is another's."""
        authors = {part.author for part in self.parts}
        return authors.pop() if len(authors) == 1 else None

    @property
    def needs(self) -> frozenset[Need]:
        """Who must be able to write, and what is read to choose among what was written."""
        return frozenset()

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources it is made of."""
        return ()

    def walk(self) -> Iterator[Source]:
        """This source, and all that it is made of."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def of(self) -> str:
        """The named source whose records it starts from; empty: none."""
        return ""

    @property
    def contexts(self) -> frozenset[Context]:
        """What its writers see besides the prompt."""
        return frozenset(c for part in self.parts for c in part.contexts)


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

    @property
    def author(self) -> int:
        return DATA

    def __str__(self) -> str:
        return f"{'pairs' if self.pairs else 'responses'} of the {self.name} data"


def heat_of(writer: Reader | Blend, tau: float) -> str:
    """The temperature of a source in words; a writer that has one of its own says that one itself."""
    if tau == 1.0:
        return ""
    own = any(r.tau != 1.0 for r in (writer.readers if isinstance(writer, Blend) else (writer,)))
    return f", τ={tau:g}{' on top' if own else ''}"


@dataclass(frozen=True)
class Sample(Source):
    """``n`` responses a prompt, sampled from a reader, or token by token from a blend.

    Whatever a writer sees (``sample(teacher.given(hint))``), the record's prompt is the student's own; ``recast`` puts
    the student under another one.

    Attributes:
        reader: who writes.
        n: responses a prompt.
        check: whether the task's verifier judges them.
        tau: sampling temperature, on top of the reader's own: ``sample(teacher.at(2), tau=0.5)`` writes with
            ``softmax(logits / (2 · 0.5))``, which is also the law of the writer's log-probs.
        max_tokens: limit of a response (of a turn); None takes the run's.
        turns: at most so many turns where the task has episodes, or where ``retry`` says what comes between them.
        retry: what is said after a turn on a task without episodes; None: one turn.
        start: a source of episodes whose first turns are played again before the reader takes over; all but the last
            ``1 + back``.
        back: see ``start``.
    """

    reader: Reader | Blend = student
    n: int = 1
    check: bool = True
    tau: float = 1.0
    max_tokens: Scalar | None = None
    turns: Scalar = ONE
    retry: Context | None = None
    start: Source | None = None
    back: Scalar = ONE

    def __post_init__(self) -> None:
        expect("the writer of sample", self.reader, (Reader, Blend), "give a reader such as student, or blend(...)")
        whole("n of sample", self.n, 1)
        number("tau of sample", self.tau, 0)
        for name, limit in (("max_tokens", self.max_tokens), ("turns", self.turns)):
            if limit is not None:
                number(f"{name} of sample", limit.at(0), 1, ends=True)
        if isinstance(self.reader, Blend) and (
            self.reader.space != "prob" or any(r.context for r in self.reader.readers)
        ):
            raise LimbeckError(
                f"sample({self.reader}): only a mixture of probabilities of readers without contexts can write."
            )

    @property
    def episodic(self) -> bool:
        """Whether it may take more than one turn."""
        return self.turns != ONE or self.start is not None

    @property
    def parts(self) -> tuple[Source, ...]:
        return () if self.start is None else (self.start,)

    @property
    def author(self) -> int | None:
        own = author_of(self.reader.readers if isinstance(self.reader, Blend) else (self.reader,))
        return own if self.start is None or self.start.author == own else None

    @property
    def contexts(self) -> frozenset[Context]:
        own = self.reader.context if isinstance(self.reader, Reader) else ()
        return frozenset(own) | super().contexts

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
    def needs(self) -> frozenset[Need]:
        readers = self.reader.readers if isinstance(self.reader, Blend) else (self.reader,)
        return frozenset((r, "text") for r in readers) | frozenset(n for p in self.parts for n in p.needs)

    def __str__(self) -> str:
        verified = ", verified" if self.check else ""
        heat = heat_of(self.reader, self.tau)
        turns = f", {self.turns} turns" if self.episodic else ""
        turns += f" with {self.retry} between" if self.retry else ""
        limit = "" if self.max_tokens is None else f", at most {self.max_tokens} tokens"
        start = "" if self.start is None else f", after all but the last 1 + {self.back} turns of {self.start}"
        return f"{self.n} sampled from {self.reader}{heat}{turns}{limit}{start}{verified}"


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

    @property
    def parts(self) -> tuple[Source, ...]:
        return (self.a, self.b)

    def __str__(self) -> str:
        return f"{self.a} with probability {self.chance}, else {self.b}"


@dataclass(frozen=True)
class Derived(Source):
    """What a source made of another passes on."""

    source: Source

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
    def needs(self) -> frozenset[Need]:
        return self.source.needs

    @property
    def parts(self) -> tuple[Source, ...]:
        return (self.source,)


def refuse_unjudged(kind: str, looks: Sequence[Expr], source: Source) -> None:
    """Raise where a choice among responses looks at rewards that nothing gives."""
    for v in looks:
        if not source.verified and v.fields & {"reward", "correct"}:
            names = ", ".join(map(repr, sorted(v.fields)))
            raise LimbeckError(f"{kind} reads {names}, but nothing verifies {source}; use check=True.")


@dataclass(frozen=True)
class Resample(Derived):
    """Write groups until enough of them satisfy a condition (DAPO's dynamic sampling); the others are dropped.

    Attributes:
        source: who writes.
        until: an Expr per group; groups where it is false are dropped.
        rounds: at most so many tries to fill a batch; then it trains on what there is (ours: 4).
    """

    until: Expr
    rounds: int = 4

    def __post_init__(self) -> None:
        expect("the source of resample", self.source, Source, "give one such as sample(n=8)")
        expect("until of resample", self.until, Expr, "give a mask such as ~(all_wrong | all_right)")
        whole("rounds of resample", self.rounds, 1)
        refuse_unjudged("resample", (self.until,), self.source)

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
    max_tokens: Scalar | int | str | None = None,
    turns: Scalar | int | str = 1,
    retry: Context | None = None,
    start: Source | None = None,
    back: Scalar | int | str = 0,
) -> Sample:
    """``n`` sampled responses a prompt, of one turn or, on a task with episodes, of several; see ``Sample``."""
    limit = None if max_tokens is None else scalar(max_tokens)
    return Sample(reader, n, check, tau, limit, scalar(turns), retry, start, scalar(back))


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


def resample(source: Source, until: Expr) -> Resample:
    """Dynamic sampling: keep writing until the groups satisfy a condition."""
    return Resample(source, until)
