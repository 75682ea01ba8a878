"""What a method says of itself: ``explain``, ``diff`` and ``cite``, from its value alone."""

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
    """Where the method is published, as one line."""
    method = as_method(method)
    return f"{method.title} ({method.paper})" if method.paper else method.title or "unpublished"


def explain(method: Method | Recipe | str) -> str:
    """The formula, the axes, what is read from whom, the denominators and the citation, as plain text."""
    method = as_method(method)
    lines = [f"{method.name} — {cite(method)}" if method.name else "a method", "", f"  L = {method.terms}", ""]
    told = axes(method) | ({"confidence": method.confidence} if method.confidence else {})
    width = max(13, *(len(label) + 2 for label in told))
    lines += [f"  {label:<{width}}{text}" for label, text in told.items()]
    return "\n".join(lines)


def axes(method: Method) -> dict[str, str]:
    """One line of text an axis; two methods differ where their lines do."""
    out: dict[str, str] = {}
    for name, source in method.sources.items():
        out["source" if name == "main" else f"source {name}"] = str(source)
    totals = denominators(method)
    for i, (coefficient, term) in enumerate(method.parts, 1):
        out[f"term {i}"] = f"{coefficient} · {term}"
        out[f"  ÷ Z{i}"] = totals[i - 1]
    out["reduction"] = str(method.reduction)
    out["updates"] = f"{method.updates} a batch"
    reads = [f"{role}: {', '.join(sorted(abilities))}" for role, abilities in method.roles.items()]
    if (method if method.updates > 1 else method.on_policy()).reads(old.role):
        reads.append("old: a pass before the first update")
    out["reads"] = "; ".join(reads) or "nobody but the student"
    kept = {"contexts": _contexts(method), "weights": _weights(method), "remembers": _remembers(method)}
    out |= {label: "; ".join(texts) for label, texts in kept.items() if texts}
    out["evaluation"] = "separable: loss and gradient in one pass" if method.separable else "general: two passes"
    supports = [
        t.surrogate.support for _, t in method.parts if isinstance(t.surrogate, DivergenceLoss) and t.surrogate.support
    ]
    if any(s.tail for s in supports):
        out["exactness"] = "biased low: top-k and one tail bucket, a lower bound of the full divergence"
    if any(not s.tail for s in supports):
        out["exactness"] = "biased: both laws normalised within the top-k, no bound of the full divergence"
    return out


def _parts(method: Method) -> Iterator[tuple[str, Source]]:
    """Every source, with the name of the one that it is part of."""
    return ((name, part) for name, source in method.sources.items() for part in source.walk())


def _contexts(method: Method) -> list[str]:
    """Each context by its name, with the first line of its template; what stands between turns is one too."""
    return [f"{c.name} ({_opening(c)})" for c in sorted(method.all_contexts, key=lambda c: c.name)]


def _opening(context: Context) -> str:
    first, *more = context.block.strip().split("\n")
    asked = ", ".join(dict.fromkeys(ask.by for ask in context.asks))
    text = f'"{first}{" …" if more else ""}"' if first else "the prompt alone"
    return text + (f"; asks {asked} first" if asked else "")


def _weights(method: Method) -> list[str]:
    """Weights that are derived from the student's."""
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
    """What a run keeps from batch to batch besides weights."""
    out = []
    for name, part in _parts(method):
        if isinstance(part, Once):
            scored = f" with {part.score}'s log-probs" if part.score is not None else ""
            out.append(f"what {name} wrote{scored}" if name != "main" else f"what was written{scored}")
    banks = [c.bank for c in sorted(method.contexts, key=str) if c.bank]
    by = [f", summarised by {bank.summary.by}" if bank.summary else "" for bank in banks]
    out += [f"skills for each prompt ({bank.size} at most{who})" for bank, who in zip(banks, by, strict=True)]
    exprs = (node for _, term in method.parts for v in term.exprs for node in v.walk())
    out += dict.fromkeys(f"a moving average ({node.rate:g} of the past)" for node in exprs if isinstance(node, Running))
    return out + [f"a controller: {controller}" for controller in method.controllers]


def denominators(method: Method) -> list[str]:
    """Each term's denominator in words, saying which coincide."""
    keys = [_denominator(term, method) for _, term in method.parts]
    out = []
    for i, key in enumerate(keys):
        reduction, per, looks = key
        same = [f"Z{j + 1}" for j, other in enumerate(keys) if other == key and j != i]
        counts = {"kept": "kept ", "all": "all ", "weight": "weighted "}[per]
        text = f"{reduction.formula().replace('Σ ', 'Σ ' + counts)}{f' where {looks}' if looks else ''}"
        out.append(text + (f" (= {', '.join(same)})" if same else ""))
    return out


def _denominator(term: Term, method: Method) -> tuple:
    """Two terms share a denominator iff these are equal."""
    reduction = term.reduction or method.reduction
    if not reduction.per_unit:
        return reduction, "all", ""  # a constant counts nothing
    per = "all" if term.per == "kept" and term.where == everywhere else term.per  # nothing is left out
    looks = {"kept": str(term.where), "all": "", "weight": f"{term.where}, weight {term.weight}"}[per]
    return reduction, per, "" if looks == "1" else looks


def diff(a: Method | Recipe | str, b: Method | Recipe | str) -> list[tuple[str, str, str]]:
    """(axis, a's, b's) for every axis in which two methods differ; empty where they are the same objective."""
    left, right = axes(as_method(a)), axes(as_method(b))
    keys = [*left, *(k for k in right if k not in left)]
    return [(k, left.get(k, "—"), right.get(k, "—")) for k in keys if left.get(k) != right.get(k)]
