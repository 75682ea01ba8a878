"""Sources: where the responses of a record come from, and whether they are verified. The engine executes them.

A source gives *groups*: ``n`` sequences for one prompt, which a group baseline may compare.
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

MOST_SAMPLES = 2**20
"""The largest number of responses to one prompt (ours); no step holds as many."""


def joint_author(readers: Sequence[Reader]) -> int:
    """The author of text that these readers write together: the student where any of them has its weights."""
    return STUDENT if any(r.weights.of_student for r in readers) else TEACHER


@dataclass(frozen=True)
class Source:
    """The origin of the responses of a record.

    Attributes (of every source):
        group: sequences per prompt.
        verified: whether rewards and correctness are known.
        sampled: whether log-probs of the behaviour policy are known.
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
        """The author of its tokens (``DATA``, ``STUDENT``, ``TEACHER``); None for several, or copied ones."""
        authors = {part.author for part in self.parts}
        return authors.pop() if len(authors) == 1 else None

    @property
    def needs(self) -> frozenset[Need]:
        """The readers that write, and those that score responses in order to choose among them."""
        return frozenset()

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources that it is made of."""
        return ()

    def walk(self) -> Iterator[Source]:
        """This source and all that it is made of."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def of(self) -> str:
        """The named source whose records it starts from; empty for none."""
        return ""

    @property
    def contexts(self) -> frozenset[Context]:
        """The contexts that its policies see in addition to the prompt."""
        return frozenset(c for part in self.parts for c in part.contexts)


@dataclass(frozen=True)
class Data(Source):
    """Responses of a data set: one demonstration per prompt, or with ``pairs`` one chosen and one rejected response."""

    name: str
    pairs: bool

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


def temperature_in_words(reader: Reader | Blend, tau: float) -> str:
    """The temperature of a source in words; the reader's own temperature is part of the reader's text."""
    if tau == 1.0:
        return ""
    own = any(r.tau != 1.0 for r in (reader.readers if isinstance(reader, Blend) else (reader,)))
    return f", τ={tau:g}{' on top' if own else ''}"


@dataclass(frozen=True)
class Sample(Source):
    """``n`` responses per prompt, sampled from a reader, or token by token from a blend.

    The prompt of the record is the student's own, also where the sampling policy sees a context
    (``sample(teacher.given(hint))``). ``recast`` puts the student under another prompt.

    Attributes:
        reader: the policy that samples.
        n: responses per prompt.
        check: whether the task's verifier judges them.
        tau: sampling temperature, on top of the reader's own: ``sample(teacher.at(2), tau=0.5)`` draws from
            ``softmax(logits / (2 · 0.5))``, and the log-probs of ``behavior`` are those of this distribution.
        max_tokens: limit of a response, or of a turn; None takes the run's.
        turns: the most turns, where the task has episodes or ``retry`` gives the message between two turns.
        retry: the message after a turn on a task without episodes; None means one turn.
        start: a source of episodes. All but their last ``1 + back`` turns are played again before the reader goes on.
        back: see ``start``.
    """

    reader: Reader | Blend
    n: int
    check: bool
    tau: float
    max_tokens: Scalar | None
    turns: Scalar
    retry: Context | None
    start: Source | None
    back: Scalar

    def __post_init__(self) -> None:
        expect("the reader of sample", self.reader, (Reader, Blend), "give a reader such as student, or blend(...)")
        whole("n of sample", self.n, 1, MOST_SAMPLES)
        number("tau of sample", self.tau, 0)
        for name, limit in (("max_tokens", self.max_tokens), ("turns", self.turns)):
            if limit is not None:
                number(f"{name} of sample", limit.at(0), 1, ends=True)
        if isinstance(self.reader, Blend) and (
            self.reader.space != "prob" or any(r.context for r in self.reader.readers)
        ):
            raise LimbeckError(
                f"sample({self.reader}): this blend cannot be sampled; give readers without contexts and space='prob'."
            )

    @property
    def episodic(self) -> bool:
        """Whether a response may have more than one turn."""
        return self.turns != ONE or self.start is not None

    @property
    def parts(self) -> tuple[Source, ...]:
        return () if self.start is None else (self.start,)

    @property
    def author(self) -> int | None:
        own = joint_author(self.reader.readers if isinstance(self.reader, Blend) else (self.reader,))
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
        temperature = temperature_in_words(self.reader, self.tau)
        turns = f", {self.turns} turns" if self.episodic else ""
        turns += f" with {self.retry} between" if self.retry else ""
        limit = "" if self.max_tokens is None else f", at most {self.max_tokens} tokens"
        start = "" if self.start is None else f", after all but the last 1 + {self.back} turns of {self.start}"
        return f"{self.n} sampled from {self.reader}{temperature}{turns}{limit}{start}{verified}"


@dataclass(frozen=True)
class Either(Source):
    """For each batch, ``a`` with probability ``chance``, else ``b`` (GKD)."""

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
    """A source made of another one, whose properties it passes on."""

    source: Source

    def __post_init__(self) -> None:
        expect("the source inside of a source", self.source, Source, "give one such as sample(n=8)")

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
    """Raise LimbeckError where a choice among responses reads rewards that its source does not have."""
    for v in looks:
        if not source.verified and v.fields & {"reward", "correct"}:
            names = ", ".join(map(repr, sorted(v.fields)))
            raise LimbeckError(f"{kind} reads {names}, but nothing verifies {source}; use check=True.")


@dataclass(frozen=True)
class Resample(Derived):
    """Groups that satisfy a condition; others are dropped and replaced by new ones (the dynamic sampling of DAPO).

    Attributes:
        source: the source of the groups.
        until: an expression with one value per group; groups where it is false are dropped.
        rounds: the most attempts to fill a batch; after them, the run trains on the groups that it has.
    """

    until: Expr
    rounds: int

    def __post_init__(self) -> None:
        expect("the source of resample", self.source, Source, "give one such as sample(n=8)")
        expect("until of resample", self.until, Expr, "give a mask such as ~(all_wrong | all_right)")
        whole("rounds of resample", self.rounds, 1)
        refuse_unjudged("resample", (self.until,), self.source)

    def __str__(self) -> str:
        return f"{self.source}, groups kept where {self.until}"


def data(name: str = "task") -> Data:
    """One demonstration per prompt from the named data set."""
    return Data(name, pairs=False)


def pairs(name: str = "task") -> Data:
    """A chosen and a rejected response per prompt, labelled 1 and 0."""
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
    """``n`` sampled responses per prompt, of one turn or, on a task with episodes, of several; see ``Sample``.

    The defaults are ours: one response of one turn, at temperature 1, judged by the verifier where the task has one.
    """
    limit = None if max_tokens is None else scalar(max_tokens)
    return Sample(reader, n, check, tau, limit, scalar(turns), retry, start, scalar(back))


def either(chance: Scalar | float | str, a: Source, b: Source) -> Source:
    """For each batch, ``a`` with probability ``chance``, else ``b``; a constant chance of 0 or 1 gives one of them.

    Raises:
        LimbeckError: for a chance outside [0, 1] at the first or a late step.
    """
    for of in (a, b):
        expect("a source of either", of, Source, "give one such as sample() or data()")
    coin = scalar(chance)
    values = (coin.at(0), coin.at(10**9))
    if not all(0.0 <= v <= 1.0 for v in values):
        raise LimbeckError(f"either(chance={coin}): this is no probability; give a number between 0 and 1.")
    if coin.is_zero:
        return b
    return a if coin == scalar(1.0) else Either(coin, a, b)


def resample(source: Source, until: Expr, rounds: int = 4) -> Resample:
    """Dynamic sampling: write groups until enough satisfy the condition, in at most ``rounds`` attempts (4 is ours)."""
    return Resample(source, until, rounds)
