"""Limbeck distils language models: methods are values, one loop runs them all.

``lb.methods`` holds every method; ``lb.objective(method)`` is its loss on plain tensors; ``lb.distill(...)`` runs it.
"""

from __future__ import annotations

from typing import Any

from . import methods
from .axes.scalar import anneal, linear
from .errors import LimbeckError
from .explain import cite, diff, explain
from .method import Method, Term, get, method
from .plain import Objective, objective

__version__ = "0.1.0"

__all__ = [
    "LimbeckError",
    "Method",
    "Objective",
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
]


def __getattr__(name: str) -> Any:
    """``distill`` brings the engine, and with it transformers, only when it is asked for."""
    if name == "distill":
        from .engine import distill

        return distill
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
