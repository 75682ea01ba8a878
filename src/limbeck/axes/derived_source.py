"""Sources made of other sources: selected, patched, written once, refined, or put under another prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LimbeckError, expect
from ..types import DATA
from .context import Context
from .expression import Expr, Need
from .reader import Reader
from .signal import logp
from .source import Derived, Source, joint_author, refuse_unjudged, temperature_in_words


@dataclass(frozen=True)
class Select(Derived):
    """The best ``keep`` sequences of each group, by several scores in their order of importance.

    Attributes:
        by: expressions with one value per sequence; larger is better, the first decides, the next ones break ties.
        keep: the number of sequences kept of each group.
    """

    by: tuple[Expr, ...]
    keep: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for score in self.by:
            expect("a score of select", score, Expr, "give an expression such as correct")
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
    """Groups where ``when`` holds get further sequences from another source.

    Attributes:
        new: the source of the further sequences, on the same prompts.
        when: an expression with one value per group.
    """

    new: Source
    when: Expr

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("the new source of patch", self.new, Source, "give one such as sample(n=8)")
        expect("when of patch", self.when, Expr, "give a mask such as all_wrong")
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
    """Responses that are written at the first visit of a prompt, stored in the run's state, and used again afterwards.

    Attributes:
        score: a reader whose log-probs of the stored tokens, at its own temperature, are stored with them as a column
            per token.
    """

    score: Reader | None

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
    """A rewritten response in place of each sequence of the inner source.

    Attributes:
        reader: the policy that rewrites. Its contexts show the first sequence as ``reply``, also when the rewritten one
            is scored.
        check: whether the task's verifier judges the new responses.
        tau: sampling temperature, on top of the reader's own: tokens are drawn from
            ``softmax(logits / (reader.tau tau))``.
    """

    reader: Reader
    check: bool
    tau: float

    @property
    def author(self) -> int:
        return joint_author((self.reader,))

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
        return f"({self.source}), refined by {self.reader}{temperature_in_words(self.reader, self.tau)}"


SAME = "same"
"""The value of ``recast(response=...)`` that copies the tokens of the sequence."""


@dataclass(frozen=True)
class Recast(Source):
    """Sequences of another named source under another prompt: a second gradient view of the same text.

    In a record, the student is trained under one prompt only. Training it under a second prompt (one with a context, or
    a question about the answer) takes a second record.

    Attributes:
        name: the name of the source.
        given: contexts appended to the prompt; empty leaves the plain prompt. Sequences that lack the evidence of a
            context are dropped, because they would repeat the plain ones.
        response: ``same`` copies the scored tokens of the sequence; ``turn K`` (from 0) copies those of one turn, and
            drops sequences without that turn. Anything else is a Jinja template over the evidence (see ``context``),
            the turns ``turn_0``, ``turn_1`` ..., and the messages that followed them, ``said_0`` ...
        question: Jinja template that replaces the last message of the prompt; empty keeps it.
        keep: an expression with one value per sequence of the source; sequences where it is false are dropped.
        carry: expressions evaluated on the source, which become columns of the recast sequences.
    """

    name: str
    given: tuple[Context, ...]
    response: str
    question: str
    keep: Expr | None
    carry: tuple[tuple[str, Expr], ...]

    @property
    def copies(self) -> bool:
        """Whether the response copies tokens; a response from a template has no reward and no log-probs."""
        return self.response == SAME or self.response.removeprefix("turn ").isdigit()

    @property
    def of(self) -> str:
        return self.name

    @property
    def group(self) -> int:
        return 1

    @property
    def verified(self) -> bool:
        return self.copies

    @property
    def sampled(self) -> bool:
        """Whether log-probs of the behaviour policy are known; they are for copied tokens only."""
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
    """The best ``keep`` sequences of each group, ordered by the first score, then by the next ones."""
    expect("the source of select", source, Source, "give one such as sample(n=8)")
    if not by or not 1 <= keep <= source.group:
        raise LimbeckError(
            f"select(keep={keep}) of {source.group} sequences by {len(by)} scores; give at least one score, and a keep "
            f"from 1 to {source.group}."
        )
    return Select(source, by, keep)


def patch(source: Source, new: Source, when: Expr) -> Patch:
    """Further sequences from another source for the groups where ``when`` holds."""
    return Patch(source, new, when)


def once(source: Source, score: Reader | None = None) -> Once:
    """Write responses to each prompt once, store them and use them again; ``score`` stores a reader's log-probs too."""
    return Once(source, score)


def refine(source: Source, reader: Reader, check: bool = False, tau: float = 1.0) -> Refine:
    """A rewritten response in place of each sequence of a source; see ``Refine``."""
    return Refine(source, reader, check, tau)


def recast(
    name: str,
    *given: Context,
    response: str = SAME,
    question: str = "",
    keep: Expr | None = None,
    carry: Mapping[str, Expr] | None = None,
) -> Recast:
    """The sequences of a named source under another prompt; see ``Recast``."""
    columns = tuple(sorted((carry or {}).items()))
    for key, v in [*columns, ("keep", keep)]:
        if v is not None and v.needs:
            asked = ", ".join(sorted(str(reader) for reader, _ in v.needs))
            raise LimbeckError(
                f"recast({key}={v}) reads {asked}, but no model is asked for a recast; use fields of the record."
            )
    return Recast(name, given, response, question, keep, columns)


def score_column(reader: Reader) -> str:
    """The name of the column in which ``once(..., score=reader)`` stores the log-probs."""
    return f"log π_{reader}"
