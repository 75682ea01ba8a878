"""Sources made of others: chosen among, patched, written once, refined, or put under another prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LimbeckError
from ..types import DATA
from .context import Context
from .expression import Expr, Need
from .reader import Reader
from .signal import logp
from .source import Derived, Source, author_of, heat_of, refuse_unjudged


@dataclass(frozen=True)
class Select(Derived):
    """The best ``keep`` sequences of each group, by several scores in their order of importance.

    Attributes:
        by: an Expr per sequence each; larger is better, the first decides, the next breaks ties.
        keep: sequences kept of each group.
    """

    by: tuple[Expr, ...]
    keep: int = 1

    def __post_init__(self) -> None:
        refuse_unjudged("select", self.by, self.source)

    @property
    def group(self) -> int:
        return self.keep

    @property
    def needs(self) -> frozenset[Need]:
        return self.source.needs | frozenset(need for v in self.by for need in v.needs)

    def __str__(self) -> str:
        return f"best {self.keep} of ({self.source}) by {', then '.join(map(str, self.by))}"


@dataclass(frozen=True)
class Patch(Derived):
    """Groups where ``when`` holds get further sequences from another writer.

    Attributes:
        new: who writes them, on the same prompts.
        when: an Expr per group.
    """

    new: Source
    when: Expr

    def __post_init__(self) -> None:
        refuse_unjudged("patch", (self.when,), self.source)

    @property
    def sampled(self) -> bool:
        return self.source.sampled and self.new.sampled

    @property
    def verified(self) -> bool:
        return self.source.verified and self.new.verified

    @property
    def needs(self) -> frozenset[Need]:
        return self.source.needs | self.new.needs

    @property
    def parts(self) -> tuple[Source, ...]:
        return (self.source, self.new)

    def __str__(self) -> str:
        return f"{self.source}, and where {self.when} also {self.new}"


@dataclass(frozen=True)
class Once(Derived):
    """Written at the first visit of a prompt, stored, and used again afterwards (state of the run).

    Attributes:
        score: a reader whose log-probs of the stored tokens are stored with them, as a column per token; at its own
            temperature.
    """

    score: Reader | None = None

    @property
    def needs(self) -> frozenset[Need]:
        return self.source.needs | (frozenset() if self.score is None else logp(self.score).needs)

    @property
    def contexts(self) -> frozenset[Context]:
        return super().contexts | (frozenset() if self.score is None else frozenset(self.score.context))

    def __str__(self) -> str:
        scored = "" if self.score is None else f" with {self.score}'s log-probs"
        return f"{self.source}, written once and stored{scored}"


@dataclass(frozen=True)
class Refine(Derived):
    """One response for each sequence of the inner source, by a writer that may see it; the sequence itself is dropped.

    Attributes:
        reader: who writes; its contexts show the sequence as ``reply``, also when the refined one is read.
        check: whether the task's verifier judges the new responses.
        tau: sampling temperature, on top of the reader's own: the law is ``softmax(logits / (reader.tau tau))``.
    """

    reader: Reader
    check: bool = False
    tau: float = 1.0

    @property
    def author(self) -> int:
        return author_of((self.reader,))

    @property
    def verified(self) -> bool:
        return self.check

    @property
    def sampled(self) -> bool:
        return True

    @property
    def needs(self) -> frozenset[Need]:
        return self.source.needs | frozenset({(self.reader, "text")})

    @property
    def contexts(self) -> frozenset[Context]:
        return frozenset(self.reader.context) | super().contexts

    def __str__(self) -> str:
        return f"({self.source}), refined by {self.reader}{heat_of(self.reader, self.tau)}"


SAME = "same"
"""``recast(response="same")``: the very tokens."""


@dataclass(frozen=True)
class Recast(Source):
    """Sequences of another named source, put under another prompt: a second gradient view of the same text.

    A record has one gradient view. Where the student must be trained under a second prompt (what a teacher saw, a
    question about the answer), a second record says so.

    Attributes:
        name: of the source.
        given: contexts behind the prompt; empty leaves the plain prompt. Sequences for which one of them has nothing
            are dropped: they would be the plain ones again.
        response: ``same`` copies the sequence's scored tokens; ``turn K`` (from 0) copies one turn's, and drops
            sequences without it; anything else is a Jinja template over the evidence (see ``context``), the turns
            ``turn_0``, ``turn_1`` ... and what was said to them, ``said_0`` ...
        question: Jinja template that replaces the prompt's last message; empty keeps it.
        keep: an Expr per sequence of the source; others are dropped.
        carry: Exprs evaluated on the source, which become columns of the recast sequences.
    """

    name: str
    given: tuple[Context, ...] = ()
    response: str = SAME
    question: str = ""
    keep: Expr | None = None
    carry: tuple[tuple[str, Expr], ...] = ()
    verdicts: bool = True
    copies: bool = True

    @property
    def of(self) -> str:
        return self.name

    @property
    def group(self) -> int:
        return 1

    @property
    def verified(self) -> bool:
        return self.verdicts

    @property
    def sampled(self) -> bool:
        """Whether the writer's log-probs are known: only of copied tokens."""
        return self.copies

    @property
    def author(self) -> int | None:
        return None if self.copies else DATA

    @property
    def contexts(self) -> frozenset[Context]:
        return frozenset(self.given)

    def __str__(self) -> str:
        prompt = "question" if self.question else "x"
        prompt += "".join(f" + {c}" for c in self.given)
        kept = "" if self.keep is None else f", kept where {self.keep}"
        short = self.response if len(self.response) < 40 else "text made of it"
        return f"{self.name} as {prompt} → {short}{kept}"


def select(source: Source, *by: Expr, keep: int = 1) -> Select:
    """The best of each group, lexicographically by the given scores."""
    if not by or not 1 <= keep <= source.group:
        raise LimbeckError(
            f"select(keep={keep}): give at least one score, and keep from 1 to the {source.group} that are written."
        )
    return Select(source, by, keep)


def patch(source: Source, new: Source, when: Expr) -> Patch:
    """Further sequences from another writer for the groups where ``when`` holds."""
    return Patch(source, new, when)


def once(source: Source, score: Reader | None = None) -> Once:
    """Write each prompt once, store it, and use it again; with ``score``, a reader's log-probs are stored too."""
    return Once(source, score)


def refine(source: Source, reader: Reader, check: bool = False, tau: float = 1.0) -> Refine:
    """One rewritten response in place of each sequence of a source."""
    return Refine(source, reader, check, tau)


def recast(
    name: str,
    *given: Context,
    response: str = SAME,
    question: str = "",
    keep: Expr | None = None,
    carry: Mapping[str, Expr] | None = None,
) -> Recast:
    """The named source's sequences under another prompt."""
    copies = response == SAME or response.removeprefix("turn ").isdigit()
    columns = tuple(sorted((carry or {}).items()))
    for key, v in [*columns, ("keep", keep)]:
        if v is not None and v.needs:
            asked = ", ".join(sorted(str(reader) for reader, _ in v.needs))
            raise LimbeckError(f"recast({key}={v}): it reads {asked}, but a recast looks only at what was written.")
    return Recast(name, given, response, question, keep, columns, copies, copies)


def stored(reader: Reader) -> str:
    """The column in which ``once(..., score=reader)`` keeps the log-probs."""
    return f"log π_{reader}"
