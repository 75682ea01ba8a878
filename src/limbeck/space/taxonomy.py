"""The three axes of the survey of on-policy distillation (arXiv:2604.00626), derived from a method's value.

Of the survey the abstract was read, which names the axes and their values; the rules are ours, and they look at the
value alone, so a new method, or an old one with other arguments, finds its place by itself. What belongs to two values
of ``feedback`` has both.

A **teacher** is a reader whose weights are somebody else's: neither the student now or before (``student``, ``old``,
``behavior``, ``init``, ``ref``) nor weights that follow it (``ema``, ``synced``).

``feedback``, what the student is told:

* *logit-based*: a term, or what is stored with the text, reads probabilities of a teacher;
* *outcome-based*: a term reads a reward, a verdict or a preference, or one of these decides which text is learnt from
  (``select``, ``patch``, ``resample``, ``recast(keep=...)``);
* *self-play*: a term reads the student's own weights in a context that the student does not see, or the student is
  trained on its own text under another prompt (``recast``);
* *none* of these: likelihood of given text, as in supervised fine-tuning.

``access``, what a teacher has to serve:

* *white-box*: laws at every position, or the log-probs of entries that the student chose, or its likeliest entries;
* *black-box*: text, and log-probs of the tokens that were sampled, which an API can give;
* *teacher-free*: there is none. That a data set was written by a teacher is not in the value.

``granularity``, of what the loss is made:

* *token*: every told number belongs to one token, and the loss looks at no other;
* *sequence*: a number for a whole turn, sequence or group, or a ratio of whole sequences;
* *hybrid*: both, in one signal or in two terms.

Terms that only hold the student to its own weights in its own prompt (GRPO's KL to the reference) are an anchor, not
feedback, and count for neither feedback nor granularity. A mask routes; it does not change the granularity.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..axes.derived_source import Once, Patch, Recast, Select, score_column
from ..axes.expression import Const, Expr
from ..axes.leaves import Column
from ..axes.levels import Level
from ..axes.reader import Reader
from ..axes.source import Resample, Source
from ..errors import LimbeckError, nearest
from .method import Method
from .term import Term

AXES: dict[str, tuple[str, ...]] = {
    "feedback": ("logit-based", "outcome-based", "self-play", "none"),
    "access": ("white-box", "black-box", "teacher-free"),
    "granularity": ("token", "sequence", "hybrid"),
}
"""The axes and their values, in the survey's order."""

OUTCOMES = frozenset({"reward", "correct", "label"})
"""Record fields that judge."""

WHITE = frozenset({"dense", "topk", "at"})
"""Abilities that no API of sampled tokens serves."""


def place(method: Method) -> dict[str, tuple[str, ...]]:
    """The method's values on each axis; more than one only for ``feedback``."""
    return {"feedback": feedback(method), "access": (access(method),), "granularity": (granularity(method),)}


def on_axis(method: Method, axis: str) -> tuple[str, ...]:
    """The method's values on one axis.

    Raises:
        LimbeckError: for an unknown axis, with the nearest.
    """
    return place(method)[known_axis(axis)]


def known_axis(axis: str) -> str:
    """The axis, if it is one.

    Raises:
        LimbeckError: with the nearest.
    """
    if axis not in AXES:
        raise LimbeckError(f"--by {axis}: no such axis{nearest(axis, AXES)}; use one of {', '.join(AXES)}.")
    return axis


def feedback(method: Method) -> tuple[str, ...]:
    """What the student is told."""
    terms = [term for _, term in method.parts]
    read = {r for term in terms for r in _readers(term, method)}
    fields = {f for term in terms for v in term.exprs for f in v.fields} | {
        f for v in _choices(method) for f in v.fields
    }
    found = {
        "logit-based": any(not r.weights.of_student for r in read),
        "outcome-based": bool(fields & OUTCOMES),
        "self-play": any(r.weights.of_student and r.context for r in read) or any(map(_own_text, _sources(method))),
    }
    return tuple(name for name, holds in found.items() if holds) or ("none",)


def access(method: Method) -> str:
    """What a teacher has to serve."""
    asked = asked_of_teachers(method)
    if not asked:
        return "teacher-free"
    return "white-box" if asked & WHITE else "black-box"


def asked_of_teachers(method: Method) -> set[str]:
    """Abilities that the method asks of readers whose weights are not the student's."""
    return {ability for reader, ability in method.needs if not reader.weights.of_student}


def granularity(method: Method) -> str:
    """Of what the loss is made."""
    terms = [term for _, term in method.parts]
    telling = [term for term in terms if not _anchor(term, method)]
    grains = {grain for term in telling or terms for grain in _grains(term)}
    return grains.pop() if len(grains) == 1 else "hybrid"


def needs_verifier(method: Method) -> bool:
    """Whether somebody must verify answers: for a term, for the choice of text, or for what a context shows."""
    shown = {name for context in method.contexts for name in context.reads}
    chosen = {f for v in _choices(method) for f in v.fields}
    return bool((method.fields | chosen | shown) & {"reward", "correct", "sibling", "feedback"})


def _sources(method: Method) -> Iterable[Source]:
    return (part for source in method.sources.values() for part in source.walk())


def _choices(method: Method) -> Iterable[Expr]:
    """What decides which text is learnt from."""
    for source in _sources(method):
        match source:
            case Select():
                yield from source.by
            case Resample():
                yield source.until
            case Patch():
                yield source.when
            case Recast() if source.keep is not None:
                yield source.keep


def _own_text(source: Source) -> bool:
    """Whether the student is put under another prompt for what it wrote itself."""
    if not isinstance(source, Recast):
        return False
    return source.copies or "turn_" in source.response or "reply" in source.response


def _readers(term: Term, method: Method) -> set[Reader]:
    """Whom a term reads; a stored column is its reader."""
    scores = [s.score for s in _sources(method) if isinstance(s, Once) and s.score is not None]
    columns = {node.name for v in term.exprs for node in v.walk() if isinstance(node, Column)}
    return {r for r, _ in term.needs} | {r for r in scores if score_column(r) in columns}


def _anchor(term: Term, method: Method) -> bool:
    """Whether it only holds the student to its own weights in its own prompt."""
    read = _readers(term, method)
    judged = any(v.fields & OUTCOMES for v in term.exprs)
    return bool(read) and not judged and all(r.weights.of_student and not r.context for r in read)


def _grains(term: Term) -> set[str]:
    """``token``, ``sequence`` or both."""
    surrogate, signal = term.surrogate, term.signal
    whole = surrogate.scope > Level.TOKEN
    if not isinstance(signal, Expr) or isinstance(signal, Const):  # a law at every position, or plain likelihood
        return {"sequence"} if whole else {"token"}
    whole = whole or signal.level > Level.TOKEN or any(node.scope > Level.TOKEN for node in signal.walk())
    whole = whole or bool(signal.fields & OUTCOMES)
    single = signal.level == Level.TOKEN and surrogate.signal_level == Level.TOKEN
    return {name for name, holds in (("token", single), ("sequence", whole)) if holds}
