"""The engine: trains any method. ``distill`` is the entry point from Python, ``train`` that of the command line.

A start (``run``): ``config`` reads the settings, ``checks`` refuses those that cannot work, and ``build`` loads models
and makes a ``session``: the configuration, everything built from it, and the state that changes during the run.
``rendering`` turns prompts into token ids; ``console``, ``messages`` and ``notices`` print messages for the user.

A step (``loop``), in five calls:

1. ``rollout.sources.write``   prompts become responses with rewards: one record                  ``rollout/``
2. ``scoring.contexts``        each reader's view of the record (its prompt, its context)         ``scoring/``
3. ``scoring.forward``         each reader's log-probs or hidden states, without gradient         ``scoring/``
4. ``loss.terms``              signals and totals of the batch, then the loss a micro-batch       (outside, in ``loss``)
5. the optimiser               and the moving copies of the student                               ``models/``

``evaluation`` measures held-out problems, ``watch`` finds faults that keep a run from learning, and ``storage/`` holds
the files from which ``resumption`` continues a stopped run exactly. No code of the engine depends on the name of a
method.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import RunConfig, configure

if TYPE_CHECKING:
    from .api import distill, evaluate
    from .pipeline import run_pipeline
    from .run import Result, resume, train

__all__ = ["Result", "RunConfig", "configure", "distill", "evaluate", "resume", "run_pipeline", "train"]

_LATER = {
    "Result": "run",
    "distill": "api",
    "evaluate": "api",
    "resume": "run",
    "run_pipeline": "pipeline",
    "train": "run",
}
"""Names whose modules import PyTorch and Transformers, so that a mistyped setting is refused without them."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'limbeck.engine' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
