"""Methods: sources, a sum of terms and a reduction, as one immutable value.

``Method = {name: source} + Σ coef · Term(signal, surrogate, where, weight, per) + reduction``

An invalid combination raises an error with the reason and the remedy, either when the value is built or when it is
checked against its models (``validate``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..axes.context import Context
from ..axes.expression import Need
from ..axes.levels import Level
from ..axes.reader import Reader, behavior, by_role, old, student
from ..axes.reduction import Reduction, token_mean
from ..axes.scalar import Controller, Scalar, scalars_within
from ..axes.source import Sample, Source
from ..errors import LimbeckError, expect, nearest
from .abilities import refuse_absent, refuse_unserved
from .term import REDUCTION, Sum, Term, as_sum


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        source: one source, or several by name.
        terms: a Term, or a sum of terms.
        reduction: how units are summed, for terms without a reduction of their own; ``token_mean`` (ours).
        updates: optimiser steps on each batch of rollouts. With more than 1, ``old`` takes a pass of its own.
        name, title, paper, confidence: from the registry; they are not compared.
    """

    source: Source | Mapping[str, Source] | tuple[tuple[str, Source], ...]
    terms: Term | Sum
    reduction: Reduction = token_mean
    updates: int = 1
    name: str = field(default="", compare=False)
    title: str = field(default="", compare=False)
    paper: str = field(default="", compare=False)
    confidence: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        expect("the terms of a method", self.terms, (Term, Sum), "give Term(signal, surrogate), or a sum of them")
        object.__setattr__(self, "terms", as_sum(self.terms))
        if isinstance(self.source, Mapping):  # frozen and hashable from here on
            object.__setattr__(self, "source", tuple(self.source.items()))
        self._check()

    @property
    def sources(self) -> dict[str, Source]:
        """Sources by name; a single source is called ``main``."""
        return {"main": self.source} if isinstance(self.source, Source) else dict(self.source)

    @property
    def sources_within(self) -> tuple[Source, ...]:
        """Its sources and all that they are made of."""
        return tuple(part for source in self.sources.values() for part in source.walk())

    @property
    def parts(self) -> tuple[tuple[Scalar, Term], ...]:
        """Coefficients and terms."""
        assert isinstance(self.terms, Sum)
        return self.terms.parts

    @property
    def needs(self) -> frozenset[Need]:
        """Readers and abilities, without those of the policy in training (``student``, ``old``, ``behavior``)."""
        read = frozenset(need for _, term in self.parts for need in term.needs)
        written = frozenset(need for source in self.sources.values() for need in source.needs)
        asked = frozenset((by_role(ask.by), "text") for c in self.contexts for ask in c.questions)
        return frozenset((r, a) for r, a in read | written | asked if not r.is_policy)

    @property
    def roles(self) -> dict[str, frozenset[str]]:
        """Abilities that it reads from each role, without those of the policy in training."""
        roles: dict[str, set[str]] = {}
        for reader, ability in self.needs:
            roles.setdefault(reader.role, set()).add(ability)
        return {role: frozenset(abilities) for role, abilities in sorted(roles.items())}

    @property
    def teachers(self) -> tuple[str, ...]:
        """Roles whose weights are not the student's: ``teacher`` and the ``others``."""
        return tuple(sorted({r.role for r, _ in self.needs if not r.weights.of_student}))

    @property
    def others(self) -> tuple[str, ...]:
        """Names of further models (``other(name)``), which the user has to give."""
        return tuple(sorted({r.role for r, _ in self.needs if r.kind == "other"}))

    @property
    def views(self) -> dict[Reader, frozenset[str]]:
        """Abilities that the terms read from each view, which is a role in its contexts at temperature 1."""
        views: dict[Reader, set[str]] = {}
        for _, term in self.parts:
            for reader, ability in term.needs:
                views.setdefault(reader.at(1.0), set()).add(ability)
        return {r: frozenset(abilities) for r, abilities in sorted(views.items(), key=lambda item: item[0].key)}

    def reads(self, key: str) -> frozenset[str]:
        """Abilities that the terms read from one view, by its key (without contexts, the name of the role)."""
        return frozenset(a for _, term in self.parts for r, a in term.needs if r.key == key)

    @property
    def contexts(self) -> frozenset[Context]:
        """The contexts that a reader sees or for whose evidence a term looks."""
        read = frozenset(c for view in self.views for c in view.context)
        asked = frozenset(c for _, term in self.parts for v in term.exprs for c in v.contexts)
        return read | asked | frozenset(c for source in self.sources.values() for c in source.contexts)

    @property
    def all_contexts(self) -> frozenset[Context]:
        """Its contexts and the messages between turns: everything whose text a run may replace."""
        writers = (part for part in self.sources_within if isinstance(part, Sample))
        return self.contexts | frozenset(part.retry for part in writers if part.retry is not None)

    @property
    def fields(self) -> frozenset[str]:
        """Record fields that the terms read."""
        return frozenset(f for _, term in self.parts for v in term.exprs for f in v.fields)

    @property
    def controllers(self) -> tuple[Controller, ...]:
        """Scalars that change with metrics, wherever they are in the method."""
        return tuple(dict.fromkeys(c for s in scalars_within(self) for c in s.controllers))

    @property
    def separable(self) -> bool:
        """Whether loss and gradient can be computed tile by tile in the forward pass."""
        return all(term.surrogate.scope == Level.TOKEN for _, term in self.parts)

    def on_policy(self) -> Method:
        """The same objective for one update per batch, where ``old`` is the student itself, detached.

        Expressions that look at more than one token keep ``old``, and the engine scores it before the first update.
        """
        terms = tuple((c, _alias_old(term)) for c, term in self.parts)
        return replace(self, terms=Sum(terms))

    @property
    def slots(self) -> dict[str, Reader]:
        """The prefix of the arguments of ``lb.objective`` for each view that the terms read.

        Examples are ``teacher``, ``ema`` and ``student_given``. Where two views would share a prefix, the names of
        their contexts are appended. The policy in training has arguments of its own.
        """
        views = [r for r in self.views if not r.is_policy or (r == old and "dense" in self.views[r])]
        short = [r.slot for r in views]
        return {r.slot if short.count(r.slot) == 1 else "_".join([r.slot, *map(str, r.context)]): r for r in views}

    def validate(self, **served: str | frozenset[str]) -> Method:
        """Check the method against what its models serve, and return it.

        Args:
            **served: what each role serves: a form of scores (``sampled``, ``topk``, ``dense``, ``model``) or a set of
                abilities.

        Raises:
            LimbeckError: for a role that is missing or serves less than the method reads from it.
        """
        given = {r.role for r, _ in self.needs if not r.weights.from_run}
        needed = {role: asked for role, asked in self.roles.items() if role in served or role in given}
        refuse_absent(self.name, self.roles, [role for role in needed if role not in served])
        for role, asked in needed.items():
            refuse_unserved(self.name, role, asked, served[role])
        return self

    def _check(self) -> None:
        """Raise LimbeckError for combinations that are invalid with any models."""
        if not self.parts:
            raise LimbeckError(
                "this method has no term left, because every coefficient is 0; give at least one that is not 0."
            )
        self._check_kinds()
        if self.updates < 1:
            raise LimbeckError(f"updates={self.updates}: a batch needs at least one optimiser step; give 1 or more.")
        self._check_order()
        for _, term in self.parts:
            term.check(self.reduction)
            self._check_record(term)
        self._check_names()

    def _check_kinds(self) -> None:
        expect(
            "the source of a method", self.source, (Source, tuple), "give one such as sample(n=8), or several by name"
        )
        pairs = isinstance(self.source, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in self.source)
        if isinstance(self.source, tuple) and not pairs:
            raise LimbeckError(
                "the sources of a method are no pairs of name and source; give {'roll': sample(), 'lm': data()}."
            )
        if not self.sources:
            raise LimbeckError("this method has no source; give one such as sample(n=8) or data().")
        for name, source in self.sources.items():
            expect("the name of a source", name, str, "give a text")
            expect(f"source {name!r}", source, Source, "give one such as sample(n=8) or data()")
        expect("the reduction of a method", self.reduction, Reduction, REDUCTION)
        expect("updates", self.updates, int, "give a whole number of optimiser steps a batch")

    def _check_order(self) -> None:
        """Raise LimbeckError where a source starts from one that does not come before it."""
        earlier: list[str] = []
        for name, source in self.sources.items():
            for part in source.walk():
                if part.of and part.of not in earlier:
                    raise LimbeckError(
                        f"source {name!r} starts from {part.of!r}, which does not come before "
                        f"it{nearest(part.of, earlier)}; use one of {earlier or 'none'}."
                    )
            earlier.append(name)

    def _check_record(self, term: Term) -> None:
        sources = self.sources
        names = term.named_sources
        for name in sorted(names - set(sources)):
            raise LimbeckError(f"on({name!r}): no such source{nearest(name, sources)}; use one of {sorted(sources)}.")
        read = [sources[n] for n in names] if names else list(sources.values())
        for name in sorted({f for v in term.exprs for f in v.fields}):
            if name in ("reward", "correct") and not any(s.verified for s in read):
                raise LimbeckError(
                    f"{term} reads {name!r}, but nothing verifies its source ({'; '.join(map(str, read))}); use "
                    "sample(..., check=True)."
                )
            if name == "label" and not any(s.labelled for s in read):
                raise LimbeckError(
                    f"{term} reads 'label', but its source ({'; '.join(map(str, read))}) has no preferences; "
                    "use pairs()."
                )
        if any(r.kind == behavior.kind for r, _ in term.needs) and not any(s.sampled for s in read):
            raise LimbeckError(
                f"{term} reads behavior, but its source ({'; '.join(map(str, read))}) has no log-probs of the policy "
                "that wrote it; use sample(...), or read old."
            )

    def _check_names(self) -> None:
        """Raise LimbeckError where two sources or two contexts share a name."""
        if isinstance(self.source, tuple):
            names = [name for name, _ in self.source]
            for name in self.sources:
                if names.count(name) > 1:
                    raise LimbeckError(f"{names.count(name)} sources are called {name!r}; give each a name of its own.")
        shown: dict[str, Context] = {}
        for context in sorted(self.all_contexts, key=repr):
            if shown.setdefault(context.name, context) != context:
                raise LimbeckError(
                    f"two different contexts are called {context.name!r}, but a run finds contexts by name; give one "
                    "of them another name."
                )


def _alias_old(term: Term) -> Term:
    aliased = term.with_reader(old, student)
    counts = aliased.where.live or (
        aliased.per == "weight" and aliased.weight.live
    )  # divisors must be known beforehand
    return term if counts or any(v.live_scope > Level.TOKEN for v in aliased.exprs) else aliased
