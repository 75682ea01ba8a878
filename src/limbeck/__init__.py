"""Limbeck distils language models: methods are values, one loop runs them all.

``lb.methods`` holds every method; ``lb.objective(method)`` is its loss on plain tensors; ``lb.distill(...)`` runs it.
``lb.run_pipeline(...)`` runs several in a row; ``lb.pipelines`` holds those with names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import methods, pipelines
from .axes.scalar import anneal, linear
from .errors import LimbeckError
from .functional.objective import Objective, objective
from .space.explain import cite, diff, explain
from .space.method import Method
from .space.pipeline import Pipeline, run
from .space.registry import get, method
from .space.term import Term

if TYPE_CHECKING:  # so that editors complete their arguments; they are imported when they are first used
    from .engine import RunConfig, distill, run_pipeline

__version__ = "0.1.0"

__all__ = [
    "LimbeckError",
    "Method",
    "Objective",
    "Pipeline",
    "RunConfig",
    "Term",
    "anneal",
    "cite",
    "diff",
    "distill",
    "explain",
    "get",
    "linear",
    "method",
    "methods",
    "objective",
    "pipelines",
    "run",
    "run_pipeline",
]


def __getattr__(name: str) -> Any:
    """The engine, and with it transformers, is imported only when it is asked for."""
    if name in ("RunConfig", "distill", "run_pipeline"):
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
