"""A method is a value: sources, a curriculum, a sum of terms, a reduction.

``Method = {name: source} + curriculum + Σ coef · Term(signal, surrogate, where, weight, per) + reduction``

Illegal points are refused when the value is built, or when it meets its models, each with the reason and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..axes.context import Context
from ..axes.curriculum import Curriculum, prompts
from ..axes.expression import Expr, Need, replace_reader
from ..axes.levels import Level
from ..axes.reader import Blend, Reader, TargetReader, old, student
from ..axes.reduction import Reduction, token_mean
from ..axes.scalar import Constant, Controller, Scalar, product, scalar, within
from ..axes.signal import everywhere
from ..axes.source import Sample, Source
from ..axes.surrogate import Surrogate
from ..errors import LimbeckError, expect
from .abilities import CLOCKS, DERIVED, refuse_absent, refuse_unserved
from .refusals import REDUCTION, check, walk


@dataclass(frozen=True)
class Term:
    """One addend of an objective.

    Attributes:
        signal: what each unit is told (a Expr), or the law to be pulled towards (a Reader).
        surrogate: how it is heard.
        where: rows that count; selected before any arithmetic.
        weight: multiplies, and does not count (unless ``per="weight"``).
        per: what the denominator counts: ``kept``, ``all`` or ``weight``.
        reduction: None takes the method's.
    """

    signal: Expr | TargetReader
    surrogate: Surrogate
    where: Expr = everywhere
    weight: Expr = everywhere
    per: str = "kept"
    reduction: Reduction | None = None

    def __post_init__(self) -> None:
        expect(
            "the signal of a term",
            self.signal,
            (Expr, Reader, Blend),
            "give a Expr such as group_advantage(), or a reader",
        )
        expect("the surrogate of a term", self.surrogate, Surrogate, "give one such as clip(0.2) or reinforce")
        expect("where of a term", self.where, Expr, "give a mask such as correct or entropy(old) > 1")
        expect("weight of a term", self.weight, Expr, "give a Expr, or multiply the whole term: 2.0 * Term(...)")
        if self.reduction is not None:
            expect("the reduction of a term", self.reduction, Reduction, REDUCTION)

    def __add__(self, other: Term | Sum) -> Sum:
        return _sum(self) + other

    def __mul__(self, c: Scalar | float | str) -> Sum:
        return _sum(self) * c

    __rmul__ = __mul__

    @property
    def needs(self) -> frozenset[Need]:
        """Everything it reads."""
        own = self.signal.needs if isinstance(self.signal, Expr) else frozenset()
        return own | self.surrogate.needs(self.signal) | self.where.needs | self.weight.needs

    @property
    def exprs(self) -> tuple[Expr, ...]:
        """Its expressions."""
        parts = (self.signal, self.where, self.weight, self.surrogate.base)
        return tuple(v for v in parts if isinstance(v, Expr))

    def with_reader(self, was: Reader, now: Reader) -> Term:
        """The same term with one reader in another's place."""
        signal = replace_reader(self.signal, was, now) if isinstance(self.signal, Expr) else self.signal
        return replace(
            self,
            signal=signal,
            surrogate=self.surrogate.with_reader(was, now),
            where=replace_reader(self.where, was, now),
            weight=replace_reader(self.weight, was, now),
        )

    def __str__(self) -> str:
        extra = [] if self.where == everywhere else [f"where {self.where}"]
        extra += [] if self.weight == everywhere else [f"weight {self.weight}"]
        extra += [] if self.per == "kept" else [f"per {self.per}"]
        return f"{self.surrogate}[{self.signal}{''.join(', ' + e for e in extra)}]"


@dataclass(frozen=True)
class Sum:
    """Coefficients and terms. A constant 0 removes a term and its needs."""

    parts: tuple[tuple[Scalar, Term], ...]

    def __post_init__(self) -> None:
        expect("the parts of a sum", self.parts, tuple, "give ((coefficient, term), ...), or add terms with +")
        for part in self.parts:
            expect("a part of a sum", part, tuple, "give (coefficient, term), or add terms with +")
            coefficient, term = part
            expect("a coefficient of a sum", coefficient, Scalar, "write 0.5 * Term(...), or scalar(0.5) here")
            expect("a term of a sum", term, Term, "give Term(signal, surrogate)")

    def __add__(self, other: Term | Sum) -> Sum:
        return Sum(self.parts + _sum(other).parts)

    def __mul__(self, c: Scalar | float | str) -> Sum:
        scaled = tuple((product(c, own), term) for own, term in self.parts)
        return Sum(tuple((s, term) for s, term in scaled if not s.is_zero))

    __rmul__ = __mul__

    def __str__(self) -> str:
        return " + ".join(f"{t}" if c == Constant(1.0) else f"{c} · {t}" for c, t in self.parts)


def _sum(x: Term | Sum) -> Sum:
    return x if isinstance(x, Sum) else Sum(((scalar(1.0), x),))


def routed(mask: Expr, a: Term, b: Term) -> Sum:
    """``a`` where the mask holds, ``b`` elsewhere, each divided by everything there is (``per="all"``).

    As an objective ``routed(z, t, t)`` is ``replace(t, per="all")``: t itself where t keeps everything, and t over
    another total where it has a ``where`` of its own, which goes on to hold.

    Raises:
        LimbeckError: for ``per="weight"``, whose total would change its meaning, and for a mask that cuts units which
            the surrogate looks at as a whole.
    """
    expect("the mask of routed", mask, Expr, "give a mask such as correct")
    for term in (a, b):
        expect("a route", term, Term, "give one Term each")
        scope = term.surrogate.scope
        if term.per == "weight":
            raise LimbeckError(f"routed: {term} divides by its weights, a route by all units; use per='kept'.")
        if mask.level < reach:
            raise LimbeckError(
                f"routed: {mask} has one value per {mask.level}, but {term.surrogate} looks at a whole {scope}; the "
                f"mask would cut it, so reduce it with .over('{scope}', 'any')."
            )
    return replace(a, where=_and(a.where, mask), per="all") + replace(b, where=_and(b.where, ~mask), per="all")


def _and(a: Expr, b: Expr) -> Expr:
    return b if a == everywhere else a & b


@dataclass(frozen=True)
class Method:
    """A point of the space.

    Attributes:
        source: one source, or several by name.
        terms: a Term, or a sum of them.
        reduction: how units are summed, unless a term says otherwise.
        curriculum: what is asked.
        updates: optimiser steps on each written batch; more than 1 makes ``old`` a pass of its own.
        name, title, paper, confidence: from the registry; not part of the value.
    """

    source: Source | Mapping[str, Source] | tuple[tuple[str, Source], ...]
    terms: Term | Sum
    reduction: Reduction = token_mean
    curriculum: Curriculum = prompts
    updates: int = 1
    name: str = field(default="", compare=False)
    title: str = field(default="", compare=False)
    paper: str = field(default="", compare=False)
    confidence: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        expect("the terms of a method", self.terms, (Term, Sum), "give Term(signal, surrogate), or a sum of them")
        object.__setattr__(self, "terms", _sum(self.terms))
        if isinstance(self.source, Mapping):  # frozen and hashable from here on
            object.__setattr__(self, "source", tuple(self.source.items()))
        check(self)

    @property
    def sources(self) -> dict[str, Source]:
        """Sources by name; a single one is called ``main``."""
        return {"main": self.source} if isinstance(self.source, Source) else dict(self.source)

    @property
    def sources_within(self) -> tuple[Source, ...]:
        """Its sources, and those that they are made of."""
        return tuple(part for source in self.sources.values() for part in walk(source))

    @property
    def parts(self) -> tuple[tuple[Scalar, Term], ...]:
        """Coefficients and terms."""
        assert isinstance(self.terms, Sum)
        return self.terms.parts

    @property
    def needs(self) -> frozenset[Need]:
        """(reader, ability) of everything but the student's own clocks."""
        read = frozenset(need for _, term in self.parts for need in term.needs)
        written = frozenset(need for source in self.sources.values() for need in source.needs)
        asked = frozenset((Reader(ask.by), "text") for c in self.contexts for ask in c.questions)
        return frozenset((r, a) for r, a in read | written | asked if r.key not in CLOCKS)

    @property
    def roles(self) -> dict[str, frozenset[str]]:
        """Abilities asked of each role besides the student's own clocks."""
        roles: dict[str, set[str]] = {}
        for reader, ability in self.needs:
            roles.setdefault(reader.role, set()).add(ability)
        return {role: frozenset(abilities) for role, abilities in sorted(roles.items())}

    @property
    def others(self) -> tuple[str, ...]:
        """Roles beyond the usual ones, whose models somebody has to name."""
        usual = {"student", "teacher", "ref", "init", *DERIVED}
        return tuple(role for role in self.roles if role.partition("(")[0] not in usual)

    @property
    def views(self) -> dict[Reader, frozenset[str]]:
        """Abilities that the terms ask of each view: a role in its contexts, at temperature 1."""
        views: dict[Reader, set[str]] = {}
        for _, term in self.parts:
            for reader, ability in term.needs:
                views.setdefault(reader.at(1.0), set()).add(ability)
        return {r: frozenset(abilities) for r, abilities in sorted(views.items(), key=lambda item: item[0].key)}

    def reads(self, key: str) -> frozenset[str]:
        """Abilities that the terms ask of one view, by its key (a bare role's key is its name)."""
        return frozenset(a for _, term in self.parts for r, a in term.needs if r.key == key)

    @property
    def contexts(self) -> frozenset[Context]:
        """Everything that some reader sees besides the prompt, or whose presence is looked at."""
        read = frozenset(c for view in self.views for c in view.context)
        asked = frozenset(c for _, term in self.parts for v in term.exprs for c in v.contexts)
        return read | asked | frozenset(c for source in self.sources.values() for c in source.contexts)

    @property
    def told(self) -> frozenset[Context]:
        """Its contexts, and what is said between turns: everything whose words a run may replace."""
        writers = (part for part in self.sources_within if isinstance(part, Sample))
        return self.contexts | frozenset(part.retry for part in writers if part.retry is not None)

    @property
    def fields(self) -> frozenset[str]:
        """Record fields that the terms read."""
        return frozenset(f for _, term in self.parts for v in term.exprs for f in v.fields)

    @property
    def controllers(self) -> tuple[Controller, ...]:
        """Scalars that are moved by what is measured, wherever in the method they stand."""
        return tuple(dict.fromkeys(c for s in within(self, Scalar) for c in s.controllers))

    @property
    def separable(self) -> bool:
        """Whether loss and gradient can be formed tile by tile in the forward pass."""
        return all(term.surrogate.scope == Level.TOKEN for _, term in self.parts)

    def on_policy(self) -> Method:
        """The same objective where one update a batch makes ``old`` the student itself, detached.

        Expressions that look at more than a token keep ``old``: the engine then reads it before the first update.
        """
        terms = tuple((c, _alias_old(term)) for c, term in self.parts)
        return replace(self, terms=Sum(terms))

    @property
    def slots(self) -> dict[str, Reader]:
        """What ``lb.objective`` calls the carriers of each view that the terms read besides the student's clocks.

        ``teacher``, ``ema``, ``student_given``; where two views would share a name, their contexts tell them apart.
        """
        views = [r for r in self.views if r.key not in CLOCKS or (r == old and "dense" in self.views[r])]
        short = [r.slot for r in views]
        return {r.slot if short.count(r.slot) == 1 else "_".join([r.slot, *map(str, r.context)]): r for r in views}

    def validate(self, **served: str | frozenset[str]) -> Method:
        """Check the method against what its models serve, and return it.

        Args:
            **served: per role what it can do, a carrier name (``sampled``, ``topk``, ``dense``) or a set of abilities.

        Raises:
            LimbeckError: naming the role, what the method reads from it and the remedy.
        """
        needed = {r: asked for r, asked in self.roles.items() if r in served or r.partition("(")[0] not in DERIVED}
        refuse_absent(self, [role for role in needed if role not in served])
        for role, asked in needed.items():
            refuse_unserved(self, role, asked, served)
        return self

    def __str__(self) -> str:
        from .explain import explain

        return explain(self)


def _alias_old(term: Term) -> Term:
    aliased = term.with_reader(old, student)
    counts = aliased.where.live or (aliased.per == "weight" and aliased.weight.live)  # a total is known beforehand
    return term if counts or any(v.live_scope > Level.TOKEN for v in aliased.exprs) else aliased
