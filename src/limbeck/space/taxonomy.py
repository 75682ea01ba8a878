"""The place of a method on the three axes of the survey of on-policy distillation (arXiv:2604.00626).

We read the abstract of the survey, which names the axes and their values; the rules are ours. They look at the value of
a method alone, so a new method, or a method with other arguments, is placed automatically. A method may have several
values of ``feedback``.

A **teacher** is a reader whose weights are not the student's: neither the student now or before (``student``, ``old``,
``behavior``, ``init``, ``ref``) nor a copy that moves with it (``ema``, ``synced``).

``feedback``, the signal that the student gets:

* *logit-based*: a term reads probabilities of a teacher, directly or from a stored column;
* *outcome-based*: a term reads a reward, a verdict or a preference, or one of these decides which text is trained on
  (``select``, ``patch``, ``resample``, ``recast(keep=...)``);
* *self-play*: a term reads the student's own weights in a context that the student does not see, or the student is
  trained on its own text under another prompt (``recast``);
* *none* of these: likelihood of given text, as in supervised fine-tuning.

``access``, the abilities that a teacher must serve:

* *white-box*: full distributions at every position, log-probs of the entries that the student chose, or the top k;
* *black-box*: text and log-probs of sampled tokens, which an API can give;
* *teacher-free*: there is no teacher. (The value does not say whether a teacher wrote the data.)

``granularity``, the unit of the signal and the loss:

* *token*: every value of the signal belongs to one token, and the loss depends on no other;
* *sequence*: the signal has one value per turn, sequence or group, or the loss takes a ratio of whole sequences;
* *hybrid*: both, in one signal or in two terms.

A term that only keeps the student near its own weights in its own prompt (the KL to the reference in GRPO) is an
anchor. It counts for neither feedback nor granularity. A mask does not change the granularity either.
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
"""The axes and their values, in the order of the survey."""

OUTCOMES = frozenset({"reward", "correct", "label"})
"""Record fields that hold an outcome."""

WHITE = frozenset({"dense", "topk", "at"})
"""Abilities that an API of sampled tokens does not serve."""


def place(method: Method) -> dict[str, tuple[str, ...]]:
    """The method's values on each axis; more than one only for ``feedback``."""
    return {"feedback": feedback(method), "access": (access(method),), "granularity": (granularity(method),)}


def on_axis(method: Method, axis: str) -> tuple[str, ...]:
    """The method's values on one axis.

    Raises:
        LimbeckError: for an unknown axis, with the nearest one.
    """
    return place(method)[known_axis(axis)]


def known_axis(axis: str) -> str:
    """The axis itself, after a check of its name.

    Raises:
        LimbeckError: for an unknown axis, with the nearest one.
    """
    if axis not in AXES:
        raise LimbeckError(f"--by {axis}: no such axis{nearest(axis, AXES)}; use one of {', '.join(AXES)}.")
    return axis


def feedback(method: Method) -> tuple[str, ...]:
    """The kinds of signal that the student gets."""
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
    """The access to a teacher that the method needs."""
    asked = asked_of_teachers(method)
    if not asked:
        return "teacher-free"
    return "white-box" if asked & WHITE else "black-box"


def asked_of_teachers(method: Method) -> set[str]:
    """Abilities that the method asks of readers whose weights are not the student's."""
    return {ability for reader, ability in method.needs if not reader.weights.of_student}


def granularity(method: Method) -> str:
    """The unit of the signal and the loss."""
    terms = [term for _, term in method.parts]
    telling = [term for term in terms if not _anchor(term, method)]
    grains = {grain for term in telling or terms for grain in _grains(term)}
    return grains.pop() if len(grains) == 1 else "hybrid"


def needs_verifier(method: Method) -> bool:
    """Whether responses must be verified: for a term, for a choice among responses, or for the text of a context."""
    shown = {name for context in method.contexts for name in context.reads}
    chosen = {f for v in _choices(method) for f in v.fields}
    return bool((method.fields | chosen | shown) & {"reward", "correct", "sibling", "feedback"})


def _sources(method: Method) -> Iterable[Source]:
    return (part for source in method.sources.values() for part in source.walk())


def _choices(method: Method) -> Iterable[Expr]:
    """The expressions that decide which text is trained on."""
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
    """Whether the student is trained under another prompt on text that it wrote itself."""
    if not isinstance(source, Recast):
        return False
    return source.copies or "turn_" in source.response or "reply" in source.response


def _readers(term: Term, method: Method) -> set[Reader]:
    """The readers of a term; a stored column counts as its reader."""
    scores = [s.score for s in _sources(method) if isinstance(s, Once) and s.score is not None]
    columns = {node.name for v in term.exprs for node in v.walk() if isinstance(node, Column)}
    return {r for r, _ in term.needs} | {r for r in scores if score_column(r) in columns}


def _anchor(term: Term, method: Method) -> bool:
    """Whether a term only keeps the student near its own weights in its own prompt."""
    read = _readers(term, method)
    judged = any(v.fields & OUTCOMES for v in term.exprs)
    return bool(read) and not judged and all(r.weights.of_student and not r.context for r in read)


def _grains(term: Term) -> set[str]:
    """The granularities of one term: ``token``, ``sequence`` or both."""
    surrogate, signal = term.surrogate, term.signal
    whole = surrogate.scope > Level.TOKEN
    if not isinstance(signal, Expr) or isinstance(
        signal, Const
    ):  # a target distribution at every position, or plain likelihood
        return {"sequence"} if whole else {"token"}
    whole = whole or signal.level > Level.TOKEN or any(node.scope > Level.TOKEN for node in signal.walk())
    whole = whole or bool(signal.fields & OUTCOMES)
    single = signal.level == Level.TOKEN and surrogate.signal_level == Level.TOKEN
    return {name for name, holds in (("token", single), ("sequence", whole)) if holds}
