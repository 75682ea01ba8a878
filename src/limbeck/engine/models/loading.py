"""The models of a run: every role that the method names, loaded and fitted to the student."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...axes.reader import Weights
from ...errors import LimbeckError
from ...space.method import Method
from ..config import RunConfig
from .chat import template_file
from .checks import checkpointing, hold_in_full, refuse_chance, refuse_quantised
from .following import FollowingModel
from .generate import check_writing
from .policy import Policy, add_lora, freeze, load_policy, share_vocabulary, speaking
from .written import refuse_unread, refuse_unusable

Models = Mapping[str, PreTrainedModel]
"""Model objects by role, for callers who have them in memory."""

Load = Callable[..., Policy]
"""``load(spec, role, template=..., remote_code=...)``: a model by its name or as an object."""


def load_policies(
    config: RunConfig,
    method: Method,
    models: Models,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Policy]:
    """Models by role, on their device: the student ready to be trained, the others frozen.

    Args:
        config, method: of the run.
        models: objects that replace the names in the configuration.
        device: where they are put.
        tokenizer: of a student that is an object, and of other objects that were not loaded from anywhere.

    Raises:
        LimbeckError: where a model cannot be read, or cannot be used together with the student.
    """
    policies = _load(config, method, models, functools.partial(_load_one, models=models, tokenizer=tokenizer))
    student = policies["student"]
    _share(policies)
    for role, policy in policies.items():
        policy.scorer.to(device)
        if role != "student":
            freeze(policy)
    if not any(p.requires_grad for p in student.scorer.parameters()):  # the object was a teacher before
        raise LimbeckError(
            f"student={student.name!r}: none of its parameters can be trained; call requires_grad_(True) on it first."
        )
    check_writing(student)  # other models are checked when they first write
    if config.lora_rank:
        add_lora(student, config.lora_rank, config.lora_alpha)
    if config.gradient_checkpointing:
        checkpointing(student.model)
    refuse_chance(student.model, f"student={student.name!r}")
    return policies


def structures(config: RunConfig, method: Method) -> dict[str, Policy]:
    """The same models with their structure and tokenizer and without weights; none of them can be run."""
    policies = _load(config, method, {}, functools.partial(load_policy, weights=False))
    _share(policies)
    if config.lora_rank:
        add_lora(policies["student"], config.lora_rank, config.lora_alpha)
    return policies


def following_models(method: Method, policies: Mapping[str, Policy]) -> dict[str, FollowingModel]:
    """Moving copies of the student that some reader names, by role; ``synced(1)`` is the student itself."""
    named = set(method.views) | {r for s in method.sources.values() for r, _ in s.needs}
    followers: dict[str, FollowingModel] = {}
    for reader in sorted(named, key=str):
        if reader.weights is Weights.STUDENT_FOLLOWING and reader.role not in followers:
            assert reader.follow is not None
            followers[reader.role] = FollowingModel(policies["student"], reader.role, reader.follow)
            freeze(followers[reader.role].policy)
    return followers


def _share(policies: Mapping[str, Policy]) -> None:
    share_vocabulary(policies["student"], *(p for role, p in policies.items() if role != "student"))


def _load_one(
    spec: str | PreTrainedModel, role: str, models: Models, tokenizer: PreTrainedTokenizerBase | None, **shared: Any
) -> Policy:
    """A model; one that is an object may need the tokenizer that came with the call."""
    placeless = role in models and not getattr(spec, "name_or_path", "")
    own = tokenizer if role in models and (role == "student" or placeless) else None
    return load_policy(spec, role, tokenizer=own, **shared)


def _load(config: RunConfig, method: Method, models: Models, load: Load) -> dict[str, Policy]:
    _refuse_templates(config)
    shared: dict[str, Any] = {"template": config.template, "remote_code": config.remote_code}
    models = {role: _own(model, role, models) for role, model in models.items()}
    student = _load_student(config, models, load, shared)
    policies = {"student": student}
    if config.teacher or "teacher" in models:
        policies["teacher"] = load(models.get("teacher", config.teacher or ""), "teacher", **shared)
        if config.teacher_template:
            policies["teacher"] = speaking(policies["teacher"], config.teacher_template)
            policies["teacher"].chat.keywords = config.chat_template_kwargs
            templates = {p.name: (p.tokenizer, p.chat.sources) for p in policies.values()}
            refuse_unread(config.chat_template_kwargs, templates)
    for role in sorted(set(method.roles) - {"teacher", "ref", "init", "student"}):
        if role in models or role in config.others:
            policies[role] = load(models.get(role, config.others.get(role, "")), role, **shared)
    for role in ("ref", "init"):
        if role not in method.roles:
            continue
        if role in models or (role == "ref" and config.ref):
            policies[role] = load(models.get(role, config.ref or ""), role, **shared)
        else:
            before = copy.deepcopy(student.scorer)
            policies[role] = Policy(before, student.tokenizer, f"{config.student} before training")
    for role, policy in policies.items():
        if role != "teacher" or not config.teacher_template:
            policy.format = student.chat
    return policies


def _refuse_templates(config: RunConfig) -> None:
    """Refuse template files and keywords that cannot be used, before a model is loaded."""
    for setting in ("template", "teacher_template"):
        text = getattr(config, setting)
        if text is not None and text != "own":
            template_file(text, setting)
    refuse_unusable(config.chat_template_kwargs)


def _load_student(config: RunConfig, models: Models, load: Load, shared: Mapping[str, Any]) -> Policy:
    # A teacher's own template may be the one that reads a keyword; it is known once the teacher is loaded.
    keywords = {} if config.teacher_template else config.chat_template_kwargs
    student = load(models.get("student", config.student), "student", keywords=keywords, **shared)
    student.chat.keywords = config.chat_template_kwargs
    refuse_quantised(student.model, f"student={student.name!r}", config.lora_rank)
    if not config.lora_rank:  # before the reference copies it
        student.was = hold_in_full(student.model)
    return student


def _own(model: PreTrainedModel, role: str, models: Models) -> PreTrainedModel:
    """The model, or a copy where it is the student's own object: a teacher is frozen, and the student is trained."""
    return copy.deepcopy(model) if role != "student" and model is models.get("student") else model
