"""What cannot mean what it says is refused: when a method is built, and when it meets its models.

Every refusal names the part, the reason and the remedy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..axes.comparisons import compared
from ..axes.context import Context
from ..axes.curriculum import Curriculum
from ..axes.derived_source import Patch, Recast, Select
from ..axes.expression import Expr
from ..axes.leaves import On
from ..axes.levels import Level
from ..axes.reader import old, student, writer
from ..axes.reduction import PERS, Reduction
from ..axes.source import Resample, Source
from ..errors import LimbeckError, expect, nearest

if TYPE_CHECKING:
    from .method import Method
    from .term import Term

CLOCKS = frozenset({student.role, old.role, writer.role})
"""Views that are the student itself at some time, in its own prompt."""

DERIVED = ("student", "ema", "synced")
"""Roles whose weights come from the student, so nobody has to give them."""

CARRIERS: dict[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "sampled": frozenset({"sampled"}),
    "topk": frozenset({"topk"}),
    "dense": frozenset({"sampled", "topk", "at", "dense"}),
    "model": frozenset({"sampled", "topk", "at", "dense", "text"}),
}
"""What each carrier serves. Abilities are sets, not a chain: top-k ids do not hold the sampled token's log-prob."""

_REMEDIES = {
    "dense": "use a method that reads sampled log-probs (opd instead of gkd or opd_full), pass top_k=..., or host the "
    "model so that it serves logits or hidden states",
    "at": "host the model, or have it score the entries that the student chose",
    "topk": "ask the server for its top log-probs, or host the model",
    "sampled": "have the server score the sampled tokens, or use a method that reads top-k (opd_full(top_k=...))",
    "text": "give a model that can generate",
}


# ---------------------------------------------------------------- meeting the models


def refuse_absent(method: Method, roles: Sequence[str]) -> None:
    """Raise where roles that the method reads are missing."""
    if not roles:
        return
    asked = " and ".join(f"{role} ({', '.join(sorted(method.roles[role]))})" for role in roles)
    missing = f"no {roles[0]} was given; name one" if len(roles) == 1 else "they were not given; name them"
    raise LimbeckError(f"{method.name or 'this method'} reads {asked}, but {missing} with {_options(roles)}.")


def _options(roles: Sequence[str]) -> str:
    own = [f"{role}=... (--{role} on the command line)" for role in roles if role in ("teacher", "ref")]
    others = [role for role in roles if role not in ("teacher", "ref")]
    if others:
        table = ", ".join(f"{role!r}: ..." for role in others)
        sets = " ".join(f"--set others.{role}=..." for role in others)
        own.append(f"others={{{table}}} ({sets} on the command line)")
    return " and ".join(own)


def refuse_unserved(
    method: Method, role: str, asked: frozenset[str], served: Mapping[str, str | frozenset[str]]
) -> None:
    """Raise where a role serves less than the method reads from it."""
    offer = served[role]
    expect(f"what {role} serves", offer, (str, frozenset, set), f"give one of {', '.join(CARRIERS)}")
    able = CARRIERS.get(offer, frozenset()) if isinstance(offer, str) else offer
    refuse_lacking(method, role, asked, able, offer if isinstance(offer, str) else ", ".join(sorted(offer)))


def refuse_lacking(method: Method, who: str, asked: Collection[str], able: Collection[str], offer: str) -> None:
    """Raise where abilities are asked that a carrier has not."""
    for ability in sorted(set(asked) - set(able)):
        raise LimbeckError(
            f"{method.name or 'this method'} reads {ability} from {who}, which serves only {offer!r}: "
            f"{_REMEDIES[ability]}."
        )


# ---------------------------------------------------------------- being built


def check(method: Method) -> None:
    if not method.parts:
        raise LimbeckError("this method has no term left: every coefficient is 0; give at least one that is not.")
    _check_kinds(method)
    if method.updates < 1:
        raise LimbeckError(f"updates={method.updates}: a batch needs at least one optimiser step.")
    _check_sources(method)
    for _, term in method.parts:
        term.surrogate.check(term.signal)
        if term.per not in PERS:
            raise LimbeckError(f"per={term.per!r}: unknown{nearest(term.per, PERS)}; use one of {', '.join(PERS)}.")
        (term.reduction or method.reduction).refuse_finer_than(term.surrogate.loss_level)
        _check_live(term)
        _check_record(term, method)
    _check_names(method)


def _check_names(method: Method) -> None:
    """Whatever a run finds by its name must be alone under it."""
    if isinstance(method.source, tuple):
        names = [name for name, _ in method.source]
        for name in method.sources:
            if names.count(name) > 1:
                raise LimbeckError(f"{names.count(name)} sources are called {name!r}; give each its own name.")
    shown: dict[str, Context] = {}
    for context in sorted(method.told, key=repr):
        if shown.setdefault(context.name, context) != context:
            raise LimbeckError(
                f"two different contexts are called {context.name!r}, and what is shown is found by its name; give one "
                "of them another name."
            )


REDUCTION = "give one such as token_mean, or as_reduction('token_mean')"


def _check_kinds(method: Method) -> None:
    expect("the source of a method", method.source, (Source, tuple), "give one such as sample(n=8), or several by name")
    pairs = isinstance(method.source, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in method.source)
    if isinstance(method.source, tuple) and not pairs:
        raise LimbeckError("the sources of a method are no pairs; give {'roll': sample(), 'lm': data()}.")
    if not method.sources:
        raise LimbeckError("this method has no source; give one such as sample(n=8) or data().")
    for name, source in method.sources.items():
        expect("the name of a source", name, str, "give a text")
        expect(f"source {name!r}", source, Source, "give one such as sample(n=8) or data()")
    expect("the reduction of a method", method.reduction, Reduction, REDUCTION)
    expect("the curriculum of a method", method.curriculum, Curriculum, "give prompts")
    expect("updates", method.updates, int, "give a whole number of optimiser steps a batch")


def _check_live(term: Term) -> None:
    if term.per == "weight" and term.weight.live:
        raise LimbeckError(
            f"per='weight' divides by the sum of {term.weight}, which reads the student as it is now; read old instead."
        )
    if term.where.live:
        raise LimbeckError(
            f"where={term.where} reads the student as it is now, so the number of kept tokens would be known too late; "
            "read old instead of student."
        )
    gives, signal_level = term.surrogate.loss_level, term.surrogate.signal_level
    if gives != Level.TOKEN and (term.weight.live or term.weight.level < gives):
        raise LimbeckError(
            f"weight={term.weight} must be one value per {gives} or coarser, known before the student is read, because "
            f"{term.surrogate} gives one loss per {gives}; reduce it with .over('{gives}', 'mean') and read old."
        )
    if signal_level != Level.TOKEN and isinstance(term.signal, Expr) and term.signal.live:
        raise LimbeckError(
            f"{term.surrogate} hears a {signal_level}, but {term.signal} reads the student as it is now; read old instead."
        )
    for v in term.exprs:
        if v.live_scope > Level.TOKEN:
            raise LimbeckError(
                f"{v} looks at a whole {v.live_scope} of the student as it is now, which a micro-batch does not hold; "
                "read old instead of student."
            )


def walk(source: Source) -> Iterator[Source]:
    """A source and all it is made of."""
    yield source
    for part in source.parts:
        yield from walk(part)


def _check_sources(method: Method) -> None:
    earlier: list[str] = []
    for name, source in method.sources.items():
        for part in walk(source):
            if part.of and part.of not in earlier:
                raise LimbeckError(
                    f"source {name!r} starts from {part.of!r}, which is not a source before "
                    f"it{nearest(part.of, earlier)}; there are {earlier or 'none'}."
                )
            _check_judged(part)
        earlier.append(name)


def _check_judged(source: Source) -> None:
    """What looks at rewards while writing needs a verifier there."""
    judged: tuple[Expr, ...] = ()
    if isinstance(source, Resample):
        judged, kind = (source.until,), "resample"
    elif isinstance(source, Select):
        judged, kind = source.by, "select"
    elif isinstance(source, Patch):
        judged, kind = (source.when,), "patch"
    for v in judged:
        if not source.parts[0].verified and v.fields & {"reward", "correct"}:
            names = ", ".join(map(repr, sorted(v.fields)))
            raise LimbeckError(f"{kind} reads {names}, but nothing verifies {source.parts[0]}; use check=True.")


def refuse_lone(method: Method) -> None:
    """Raise where what compares the responses of one prompt gets only one, in a run that writes them.

    It is no property of the value alone: ``lb.objective`` is given groups of any size.
    """
    for _, term in method.parts:
        _refuse_lone(term, method)


def _refuse_lone(term: Term, method: Method) -> None:
    names = _named(term) & set(method.sources) or set(method.sources)
    if max(_group(method.sources[name], method.sources) for name in names) > 1:
        return
    node = next((node for v in term.exprs for node in compared(v)), None)
    what = term.surrogate if term.surrogate.loss_level == Level.GROUP else node
    if what is not None:
        read = "; ".join(str(method.sources[name]) for name in sorted(names))
        raise LimbeckError(
            f"{what} compares the responses of one prompt, but there is only one a prompt ({read}), so it would teach "
            "nothing; take 2 or more, with n of sample or the method's own argument (group)."
        )


def _group(source: Source, sources: Mapping[str, Source]) -> int:
    """The most rows that one prompt may have."""
    if isinstance(source, Patch):
        return _group(source.source, sources) + _group(source.new, sources)
    if isinstance(source, Recast):
        return _group(sources[source.of], sources)
    if isinstance(source, Select):
        return source.keep
    return max([source.group, *(_group(part, sources) for part in source.parts)])


def _named(term: Term) -> set[str]:
    """The sources that a term names."""
    return {node.source for v in term.exprs for node in v.walk() if isinstance(node, On)}


def _check_record(term: Term, method: Method) -> None:
    sources = method.sources
    names = _named(term)
    for name in sorted(names - set(sources)):
        raise LimbeckError(f"on({name!r}): no such source{nearest(name, sources)}; the method has {sorted(sources)}.")
    read = [sources[n] for n in names] if names else list(sources.values())
    for name in sorted({f for v in term.exprs for f in v.fields}):
        if name in ("reward", "correct") and not any(s.verified for s in read):
            raise LimbeckError(
                f"{term} reads {name!r}, but nothing verifies its source ({'; '.join(map(str, read))}); use "
                "sample(..., check=True)."
            )
        if name == "label" and not any(s.labelled for s in read):
            raise LimbeckError(
                f"{term} reads 'label', but its source ({'; '.join(map(str, read))}) has no preferences; use pairs()."
            )
    if any(r.role == writer.role for r, _ in term.needs) and not any(s.sampled for s in read):
        raise LimbeckError(
            f"{term} takes a ratio to the writer, but its source ({'; '.join(map(str, read))}) has no writer "
            "log-probs; use sample(...), or read old."
        )
