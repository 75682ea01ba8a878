"""Descriptions of a method that follow from its value alone: ``explain``, ``diff`` and ``cite``."""

from __future__ import annotations

from collections.abc import Iterator

from ..axes.choice import Running
from ..axes.context import Context
from ..axes.derived_source import Once
from ..axes.reader import Reader, Weights, old
from ..axes.signal import everywhere
from ..axes.source import Source
from ..axes.surrogate import DivergenceLoss
from .method import Method
from .registry import Recipe, as_method
from .term import Term


def cite(method: Method | Recipe | str) -> str:
    """The title and the paper of a method, as one line."""
    method = as_method(method)
    return f"{method.title} ({method.paper})" if method.paper else method.title or "unpublished"


def explain(method: Method | Recipe | str) -> str:
    """The formula, sources, terms with their denominators, needed models and citation of a method, as plain text."""
    method = as_method(method)
    lines = [f"{method.name} — {cite(method)}" if method.name else "a method", "", f"  L = {method.terms}", ""]
    described = axes(method) | ({"confidence": method.confidence} if method.confidence else {})
    width = max(13, *(len(label) + 2 for label in described))
    lines += [f"  {label:<{width}}{text}" for label, text in described.items()]
    return "\n".join(lines)


def axes(method: Method) -> dict[str, str]:
    """One line of text per axis; two methods differ in the axes whose lines differ."""
    out: dict[str, str] = {}
    for name, source in method.sources.items():
        out["source" if name == "main" else f"source {name}"] = str(source)
    totals = denominators(method)
    for i, (coefficient, term) in enumerate(method.parts, 1):
        out[f"term {i}"] = f"{coefficient} · {term}"
        out[f"  denominator {i}"] = totals[i - 1]
    out["reduction"] = str(method.reduction)
    out["updates"] = f"{method.updates} per batch"
    reads = [f"{role}: {', '.join(sorted(abilities))}" for role, abilities in method.roles.items()]
    if (method if method.updates > 1 else method.on_policy()).reads(old.role):
        reads.append("old: a pass before the first update")
    out["reads"] = "; ".join(reads) or "only the student"
    kept = {"contexts": _contexts(method), "weights": _weights(method), "remembers": _remembers(method)}
    out |= {label: "; ".join(texts) for label, texts in kept.items() if texts}
    out["computed"] = (
        "in one pass" if method.separable else "in two passes, because a loss depends on more than one token"
    )
    supports = [
        t.surrogate.support for _, t in method.parts if isinstance(t.surrogate, DivergenceLoss) and t.surrogate.support
    ]
    if any(s.tail for s in supports):
        out["exactness"] = "biased low: top-k entries and one tail bucket, a lower bound of the full divergence"
    if any(not s.tail for s in supports):
        out["exactness"] = "biased: both distributions normalised within the top-k, no bound of the full divergence"
    return out


def _parts(method: Method) -> Iterator[tuple[str, Source]]:
    """Every source, with the name of the source of the method that it is part of."""
    return ((name, part) for name, source in method.sources.items() for part in source.walk())


def _contexts(method: Method) -> list[str]:
    """Each context by its name, with the first line of its template; messages between turns are contexts too."""
    return [f"{c.name} ({_opening(c)})" for c in sorted(method.all_contexts, key=lambda c: c.name)]


def _opening(context: Context) -> str:
    first, *more = context.block.strip().split("\n")
    asked = ", ".join(dict.fromkeys(ask.by for ask in context.asks))
    text = f'"{first}{" …" if more else ""}"' if first else "the prompt alone"
    return text + (f"; asks {asked} first" if asked else "")


def _weights(method: Method) -> list[str]:
    """The rules of weights that are derived from the student's."""
    readers: set[Reader] = {r for r, _ in method.needs}
    return [f"{role}: {rule}" for role, rule in sorted({r.role: _rule(r) for r in readers if _rule(r)}.items())]


def _rule(reader: Reader) -> str:
    if reader.weights is Weights.INITIAL:
        return "a copy of the student before training" + (", unless another is named" if reader.kind == "ref" else "")
    follow = reader.follow
    if follow is None:
        return ""
    when = "batch" if follow.every == 1 else f"{follow.every} batches"
    if follow.rate == 1:
        return (
            f"the student at the start of every {when}" if follow.every > 1 else "the student at the start of a batch"
        )
    again = f", and becomes the student every {follow.reset} batches" if follow.reset else ""
    return f"moves {follow.rate:g} of the way to the student after every {when}{again}"


def _remembers(method: Method) -> list[str]:
    """The state that a run keeps from batch to batch in addition to weights."""
    out = []
    for name, part in _parts(method):
        if isinstance(part, Once):
            scored = f" with {part.score}'s log-probs" if part.score is not None else ""
            out.append(f"responses of {name}{scored}" if name != "main" else f"responses{scored}")
    banks = [c.bank for c in sorted(method.contexts, key=str) if c.bank]
    by = [f", summarised by {bank.summary.by}" if bank.summary else "" for bank in banks]
    out += [f"skills for each prompt ({bank.size} at most{who})" for bank, who in zip(banks, by, strict=True)]
    exprs = (node for _, term in method.parts for v in term.exprs for node in v.walk())
    out += dict.fromkeys(f"a moving average ({node.rate:g} of the past)" for node in exprs if isinstance(node, Running))
    return out + [f"a controller: {controller}" for controller in method.controllers]


def denominators(method: Method) -> list[str]:
    """The denominator of each term in words, with the terms that have the same one."""
    keys = [_denominator(term, method) for _, term in method.parts]
    out = []
    for i, key in enumerate(keys):
        reduction, per, looks = key
        same = [f"term {j + 1}" for j, other in enumerate(keys) if other == key and j != i]
        counted = {"kept": "the number of kept", "all": "the number of all", "weight": "the summed weights of kept"}
        text = reduction.divisor(counted[per]) + (f" where {looks}" if looks else "")
        out.append(text + (f" (the same as for {' and '.join(same)})" if same else ""))
    return out


def _denominator(term: Term, method: Method) -> tuple:
    """The properties that decide whether two terms share a denominator."""
    reduction = term.reduction or method.reduction
    if not reduction.per_unit:
        return reduction, "all", ""  # a constant does not depend on what is kept
    per = "all" if term.per == "kept" and term.where == everywhere else term.per  # every unit is kept
    looks = {"kept": str(term.where), "all": "", "weight": f"{term.where}, weight {term.weight}"}[per]
    return reduction, per, "" if looks == "1" else looks


def diff(a: Method | Recipe | str, b: Method | Recipe | str) -> list[tuple[str, str, str]]:
    """The axes in which two methods differ, each with both values; empty where the objectives are the same."""
    left, right = axes(as_method(a)), axes(as_method(b))
    keys = [*left, *(k for k in right if k not in left)]
    return [(k, left.get(k, "—"), right.get(k, "—")) for k in keys if left.get(k) != right.get(k)]
