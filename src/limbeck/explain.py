"""What a method says of itself: ``explain``, ``diff`` and ``cite``, from its value alone."""

from __future__ import annotations

from .axes.reader import old
from .axes.signal import everywhere
from .axes.surrogate import Pathwise
from .method import Method, Term
from .registry import Recipe, as_method


def cite(method: Method | Recipe | str) -> str:
    """Where the method is published, as one line."""
    method = as_method(method)
    return f"{method.title} ({method.paper})" if method.paper else method.title or "unpublished"


def explain(method: Method | Recipe | str) -> str:
    """The formula, the axes, what is read from whom, the denominators and the citation, as plain text."""
    method = as_method(method)
    lines = [f"{method.name} — {cite(method)}" if method.name else "a method", "", f"  L = {method.terms}", ""]
    lines += [f"  {label:<13}{text}" for label, text in axes(method).items()]
    lines += [f"  {'confidence':<13}{method.confidence}"] if method.confidence else []
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
    out["curriculum"] = str(method.curriculum)
    out["updates"] = f"{method.updates} a batch"
    reads = [f"{role}: {', '.join(sorted(abilities))}" for role, abilities in method.roles.items()]
    if (method if method.updates > 1 else method.on_policy()).reads(old.role):
        reads.append("old: a pass before the first update")
    out["reads"] = "; ".join(reads) or "nobody but the student"
    out["evaluation"] = "separable: loss and gradient in one pass" if method.separable else "general: two passes"
    supports = [
        t.surrogate.support for _, t in method.parts if isinstance(t.surrogate, Pathwise) and t.surrogate.support
    ]
    if any(s.tail for s in supports):
        out["exactness"] = "biased low: top-k and one tail bucket, a lower bound of the full divergence"
    if any(not s.tail for s in supports):
        out["exactness"] = "biased: both laws normalised within the top-k, no bound of the full divergence"
    return out


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
    per = "all" if term.per == "kept" and term.where == everywhere else term.per  # nothing is left out
    looks = {"kept": str(term.where), "all": "", "weight": f"{term.where}, weight {term.weight}"}[per]
    return reduction, per, "" if looks == "1" else looks


def diff(a: Method | Recipe | str, b: Method | Recipe | str) -> list[tuple[str, str, str]]:
    """(axis, a's, b's) for every axis in which two methods differ; empty where they are the same objective."""
    left, right = axes(as_method(a)), axes(as_method(b))
    keys = [*left, *(k for k in right if k not in left)]
    return [(k, left.get(k, "—"), right.get(k, "—")) for k in keys if left.get(k) != right.get(k)]
