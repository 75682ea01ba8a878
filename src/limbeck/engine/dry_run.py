"""A dry run: the description of a run from configurations, headers of weights and some prompts, without a pass."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .. import embedded
from ..space.method import Method
from .build import accelerator_for, check_run, without_weights
from .config import RunConfig
from .estimate import Estimate, estimate, lengths, size_of, sources_in_words
from .models.policy import causal_model
from .models.unloaded import stored_weights
from .notices import notices
from .session import Session

READ = 1000
"""Number of prompts of each split that are rendered and measured (ours); a run reads all of them."""

SHOWN = 3
"""Number of rendered prompts in the result (ours)."""


def dry_run(config: RunConfig, method: Method | None = None) -> dict[str, Any]:
    """Describe a run and estimate its cost. Nothing is trained, and no file is written.

    The configuration and tokenizer of a model on the hub are fetched into its cache where they are not there yet.

    Args:
        config: of the run.
        method: its value; None builds it from the configuration.

    Returns:
        ``method`` (name, title, doc, paper), ``models`` (by role: spec, parameters, trained, bytes, types),
        ``data`` (by name: task, training, held_out, serves), ``prompts`` (id, text, tokens, as the student reads the
        first of the run), ``step`` (sources, sequences and tokens), ``memory`` (bytes), ``time`` (seconds, with
        ``factor`` and the measured ``speed``), ``settings`` (that differ from the defaults) and ``notes``.

    Raises:
        LimbeckError: as for a run, before it loads the weights.
    """
    method, tasks = check_run(config, method)
    sizes = _stored(config)
    session = without_weights(config, method, tasks, accelerator_for(config.precision, config.cpu), READ)
    found = lengths(session)
    cost = estimate(session, found)
    return {
        "method": {"name": config.method, "title": method.title, "doc": config.recipe.doc, "paper": method.paper},
        "models": {role: _model(role, session, sizes.get(role)) for role in session.policies},
        "data": {
            name: {
                "task": task.name,
                "training": len(task.train),
                "held_out": len(task.test),
                "serves": sorted(task.serves),
            }
            for name, task in tasks.items()
        },
        "prompts": _prompts(session),
        "step": _step(session, cost, found.longest),
        "memory": {
            "models": cost.bytes_models,
            "training": cost.bytes_training,
            "work": cost.bytes_work,
            "total": cost.bytes_models + cost.bytes_training + cost.bytes_work,
        },
        "time": {
            "step": cost.seconds_step,
            "evaluation": cost.seconds_evaluation,
            "total": cost.seconds,
            "factor": cost.factor,
            "speed": vars(cost.speed),
        },
        "settings": settings_given(config),
        "notes": notices(session),
    }


def settings_given(config: RunConfig) -> dict[str, Any]:
    """The settings whose values are not the defaults, without the method's name."""
    given = config.model_dump(mode="json")
    plain = RunConfig(method=config.method).model_dump(mode="json")
    return {name: value for name, value in given.items() if value != plain[name]}


def _stored(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Size and types of the stored weights of every named model, by role."""
    named = {"student": config.student, "teacher": config.teacher, "ref": config.ref, **config.others}
    out = {}
    for role, spec in named.items():
        if spec:
            own = embedded.path(role if role in embedded.NAMES else "student") if spec == "embedded" else spec
            weights = stored_weights(str(own), f"{role}={spec!r}")
            out[role] = {} if weights is None else {"bytes": weights.size, "types": dict(weights.types)}
    return out


def _model(role: str, session: Session, on_disk: Mapping[str, Any] | None) -> dict[str, Any]:
    policy = session.policies[role]
    size = size_of(policy.model)
    return {
        "spec": policy.name,
        "kind": type(causal_model(policy.model)).__name__,
        "parameters": size.parameters,
        "trained": size.trained if role == "student" else 0,
        "bytes": None,
        "types": {},
        **(on_disk or {}),
    }


def _prompts(session: Session) -> list[dict[str, Any]]:
    """The first prompts of the first step, as the student's chat template renders them."""
    chat, stream = session.student.chat, session.streams["task"]
    shown = stream.take(min(SHOWN, len(stream.prompts)))
    return [{"id": p.id, "text": chat.text(p), "tokens": len(session.renderer.prompt_ids(p))} for p in shown]


def _step(session: Session, cost: Estimate, longest: int) -> dict[str, Any]:
    return {
        "steps": session.config.steps,
        "processes": int(os.environ.get("WORLD_SIZE") or 1),
        "sources": sources_in_words(session),
        "updates": session.method.updates,
        "sequences": cost.sequences,
        "prompt_tokens": cost.prompt_tokens,
        "longest_prompt": longest,
        "response_tokens": cost.response_tokens,
        "written_tokens": cost.written_tokens,
    }
