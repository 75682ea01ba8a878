"""Inputs of a run other than its settings (data, models, templates, code): in run.json, compared on resume."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..space.registry import REGISTRY
from ..tasks import Task
from .config import RunConfig
from .session import Session
from .storage.fingerprint import as_bytes, of_spec, of_task


def specs(config: RunConfig) -> dict[str, str]:
    """The names of a run's models, by role."""
    named = {"student": config.student, "teacher": config.teacher, "ref": config.ref, **config.others}
    return {role: spec for role, spec in named.items() if spec}


def before_loading(config: RunConfig, tasks: Mapping[str, Task], objects: Collection[str]) -> dict[str, Any]:
    """Digests of data and models, as far as they are known without loading a model.

    Args:
        config: of the run.
        tasks: by name.
        objects: roles whose model is, or was, an object; its tensors are compared later.
    """
    models = {role: of_spec(spec, role) for role, spec in specs(config).items() if role not in objects}
    return {
        "data": {name: of_task(task) for name, task in tasks.items()},
        "models": {role: record for role, record in models.items() if record},
    }


def of_run(session: Session, tensors: Mapping[str, str], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All inputs of a run whose session is built, for ``run.json``.

    ``{"data": {name: {name, train, test, digest}}, "models": {role: {by, digest, files}}, "chat_template": text,
    "teacher_template": text or None, "contexts": {name: text}, "generation": {...}, "code": {file name: text}}``

    Args:
        session: before its first step.
        tensors: digests of models that were objects, whose weights no folder need hold, by role.
        known: the result of ``before_loading``.
    """
    known = known or before_loading(session.config, session.tasks, tensors)
    student = session.student
    late = {role: of_spec(spec, role) for role, spec in specs(session.config).items() if role not in tensors}
    models = {**known["models"], **{role: record for role, record in late.items() if record}}
    models |= {role: {"by": "tensors", "digest": digest} for role, digest in tensors.items()}
    generation = student.model.generation_config
    settings = generation.to_diff_dict() if generation is not None else {}
    teacher = session.policies["teacher"] if "teacher" in session.renderer.formats else None
    inputs = {
        "data": known["data"],
        "models": models,
        "chat_template": student.template or student.tokenizer.chat_template,
        "teacher_template": teacher and (teacher.template or teacher.tokenizer.chat_template),
        "contexts": dict(session.templates),
        "generation": {k: v for k, v in settings.items() if not k.startswith("_") and k != "transformers_version"},
        "code": _code(session),
    }
    return dict(json.loads(as_bytes(inputs)))


def _code(session: Session) -> dict[str, str]:
    """The user's own files that define the method and the tasks, by name."""
    recipe = REGISTRY.get(session.config.method)
    out = {}
    tasks = session.tasks.values()
    rewards = [function for task in tasks for function in getattr(task, "code", ())]
    for thing in (recipe.factory if recipe else None, *map(type, tasks), *rewards):
        try:
            file = Path(inspect.getsourcefile(thing) or "")
            if not getattr(thing, "__module__", "").startswith("limbeck.") and file.is_file():
                out[file.name] = file.read_text(encoding="utf-8")
        except (TypeError, OSError, ValueError):  # typed in an interpreter, or None
            continue
    return out


# ---------------------------------------------------------------- what has changed


def changes(config: RunConfig, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A clause for each input that has changed; inputs that are missing from ``now`` are not compared."""
    out = []
    old, new = _table(was, "data"), _table(now, "data")
    for name, is_now in new.items():
        before = _table(old, name)
        if before.get("digest") != is_now["digest"]:
            spec = f"task={config.task!r}" if name == "task" else f"datasets.{name}={config.datasets.get(name)!r}"
            had = f"{before.get('train')} prompts and {before.get('test')} held out"
            has = f"{is_now['train']} and {is_now['test']}"
            out.append(f"{spec} gives other data (then {had}, now {has})")
    for role, is_now in _table(now, "models").items():
        before = _table(_table(was, "models"), role)
        if before.get("by") == is_now["by"] and before.get("digest") != is_now["digest"]:
            then, now_there = _table(before, "files"), _table(is_now, "files")
            odd = sorted(f for f in {*then, *now_there} if then.get(f) != now_there.get(f))
            which = f"another {', another '.join(odd[:3])}" if odd else "other weights, tokenizer or configuration"
            out.append(f"the {role} ({specs(config).get(role, role)}) has {which}")
    single = {
        "chat_template": "the student's chat template",
        "teacher_template": "the teacher's chat template",
        "generation": "the student's generation_config.json",
    }
    out += [f"{what} has changed" for key, what in single.items() if key in now and was.get(key) != now[key]]
    for key, what in (("contexts", "the template of context"), ("code", "the code in")):
        then = _table(was, key)
        out += [f"{what} {name!r} has changed" for name, text in _table(now, key).items() if then.get(name) != text]
    return out


def models(inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The record of each model, by role."""
    return {role: record for role, record in _table(inputs, "models").items() if isinstance(record, dict)}


def _table(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}
