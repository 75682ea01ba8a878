"""Refusal of runs whose method compares the responses of a prompt but writes only one response per prompt."""

from __future__ import annotations

from collections.abc import Mapping

from ..axes.comparisons import compared
from ..axes.derived_source import Patch, Recast, Select
from ..axes.levels import Level
from ..axes.source import Source
from ..errors import LimbeckError
from .method import Method
from .term import Term


def refuse_lone(method: Method) -> None:
    """Raise LimbeckError where a comparison of the responses of a prompt gets only one, in a run that writes them.

    The value of a method alone cannot tell, because ``lb.objective`` is given groups of any size.
    """
    for _, term in method.parts:
        _refuse_lone(term, method)


def _refuse_lone(term: Term, method: Method) -> None:
    names = term.named_sources & set(method.sources) or set(method.sources)
    if max(_group(method.sources[name], method.sources) for name in names) > 1:
        return
    node = next((node for v in term.exprs for node in compared(v)), None)
    what = term.surrogate if term.surrogate.loss_level == Level.GROUP else node
    if what is not None:
        read = "; ".join(str(method.sources[name]) for name in sorted(names))
        raise LimbeckError(
            f"{what} compares the responses of one prompt, but there is only one per prompt ({read}), so its gradient "
            "would be zero; take 2 or more, with n of sample or the method's own argument (group)."
        )


def _group(source: Source, sources: Mapping[str, Source]) -> int:
    """The largest number of sequences that one prompt may have."""
    if isinstance(source, Patch):
        return _group(source.source, sources) + _group(source.new, sources)
    if isinstance(source, Recast):
        return _group(sources[source.of], sources)
    if isinstance(source, Select):
        return source.keep
    return max([source.group, *(_group(part, sources) for part in source.parts)])
