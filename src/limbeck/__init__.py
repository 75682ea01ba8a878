"""Limbeck distils language models: methods are values, one loop runs them all.

``lb.methods`` holds every method; ``lb.objective(method)`` is its loss on plain tensors; ``lb.distill(...)`` runs it.
``lb.run_pipeline(...)`` runs several in a row; ``lb.pipelines`` holds those with names.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import methods, pipelines
from .axes.scalar import anneal, linear
from .errors import LimbeckError
from .functional.objective import Objective, objective
from .space.explain import cite, diff, explain
from .space.method import Method
from .space.pipeline import Pipeline, run
from .space.registry import get, method
from .space.term import Term

__version__ = "0.1.0"

__all__ = [
    "LimbeckError",
    "Method",
    "Objective",
    "Pipeline",
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
    "task",
]


def __getattr__(name: str) -> Any:
    """The engine, and with it transformers, is imported only when it is asked for."""
    if name in ("distill", "run_pipeline"):
        from . import engine

        return getattr(engine, name)
    if name == "task":
        return importlib.import_module(".tasks", __name__).task
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
