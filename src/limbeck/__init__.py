"""Limbeck distils language models: methods are objects, and one training loop runs all of them.

``lb.methods`` holds every method; ``lb.objective(method)`` is its loss on plain tensors; ``lb.distill(...)`` runs it.
``lb.run_pipeline(...)`` runs several in a row; ``lb.pipelines`` holds those with names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import methods
from .axes.scalar import anneal, linear
from .errors import LimbeckError
from .methods import pipelines
from .space.explain import cite, diff, explain
from .space.method import Method
from .space.pipeline import Pipeline, stage
from .space.registry import get, method
from .space.term import Term

if TYPE_CHECKING:  # so that editors complete their arguments; they are imported when they are first used
    from .engine import RunConfig, distill, run_pipeline
    from .functional.objective import Objective, objective

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
    "run_pipeline",
    "stage",
    "task",
]

_LATER = {
    "Objective": "functional.objective",
    "objective": "functional.objective",
    "distill": "engine",
    "RunConfig": "engine",
    "run_pipeline": "engine",
    "task": "tasks",
}
"""Names whose modules import PyTorch, and the engine Transformers too: each is imported when its name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
