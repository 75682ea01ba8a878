"""From a configuration to what a run works with, every cheap check first."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..axes.reader import Weights
from ..errors import LimbeckError
from ..loss.terms import refuse_shared
from ..space.method import Method
from ..tasks import DatasetTask, Task, load_task
from .checks import (
    arguments_of,
    check_models,
    check_served,
    data_names,
    lacking,
    reads_verdicts,
    same_for_all,
    samples,
)
from .config import RunConfig
from .forecast import too_short, unfamiliar
from .models.chat import template_file
from .models.checks import checkpointing, hold_in_full, losses_left_out, refuse_chance, refuse_quantised
from .models.following import FollowingModel
from .models.generate import check_writing
from .models.policy import Policy, add_lora, freeze, load_policy, own_end, share_vocabulary, speaking
from .models.written import refuse_unread, refuse_unusable
from .prompt_checks import check_prompts
from .prompt_stream import PromptStream
from .scoring.templates import read_template
from .session import Desk, Session
from .storage import provenance as lineage

Models = Mapping[str, PreTrainedModel]
"""Model objects by role, for callers who have them in memory."""

FEW_PROBLEMS = 20
"""Held-out problems below which an accuracy gets a word of warning."""


def build_method(config: RunConfig) -> Method:
    """The method with its arguments; both were checked against the registry."""
    return config.recipe(**config.arguments)


def prepare_tasks(config: RunConfig, method: Method, task: Task | None = None) -> dict[str, Task]:
    """The run's task and the further data sets that the method's sources name.

    Raises:
        LimbeckError: where a task does not serve what the method reads.
    """
    tasks: dict[str, Task] = {"task": task or load_task(config.task, seed=config.seed, **config.task_options)}
    for name in sorted(data_names(method) - {"task"}):
        if name not in config.datasets:
            raise LimbeckError(
                f"{config.method} reads a data set named {name!r}; name one with --set datasets.{name}=FILE.jsonl"
                f"{' (or --set lm_coef=0 to do without)' if 'lm_coef' in arguments_of(config) else ''}."
            )
        tasks[name] = load_task(config.datasets[name], seed=config.seed)
    check_served(config, method, tasks)
    return tasks


def accelerator_for(precision: str, cpu: bool, **own: Any) -> Accelerator:
    """Accelerate's state belongs to the Python process, precision and device to a run."""
    try:
        return Accelerator(mixed_precision=precision, cpu=cpu, **own)
    except ValueError as e:
        if "already been initialized" not in str(e):
            raise
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(mixed_precision=precision, cpu=cpu, **own)


def open_session(
    config: RunConfig,
    method: Method,
    tasks: dict[str, Task],
    models: Models,
    accelerator: Accelerator,
    tell: Callable[[str], None] = lambda _: None,
    learns: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Session:
    """Load the models, check that they belong together, and lay everything ready.

    Args:
        config, method, tasks, models, accelerator: of the run.
        tell: hears what is being done.
        learns: whether training prompts are read too.
        tokenizer: of a student that is an object, and of other objects that were not loaded from anywhere.
    """
    refuse_shared(method, accelerator.num_processes)
    check_models(config, method, models)
    policies = _load(config, method, models, functools.partial(_load_one, models=models, tokenizer=tokenizer))
    share_vocabulary(policies["student"], *(p for role, p in policies.items() if role != "student"))
    for role, policy in policies.items():
        policy.scorer.to(accelerator.device)
        if role != "student":
            freeze(policy)
    _refuse_frozen(policies["student"])
    check_writing(policies["student"])  # the others when they first write
    if config.lora_rank:
        add_lora(policies["student"], config.lora_rank, config.lora_alpha)
    if config.gradient_checkpointing:
        checkpointing(policies["student"].model)
    refuse_chance(policies["student"].model, f"student={policies['student'].name!r}")
    followers = _followers(method, policies)
    desk = _desk(config, method, tasks, policies, accelerator)
    read = check_prompts(desk, config, data_names(method) if learns else (), tell, learns)
    return Session(config, method, accelerator, policies, desk, followers, tuple(read))


def without_weights(
    config: RunConfig, method: Method, tasks: dict[str, Task], accelerator: Accelerator, most: int
) -> Session:
    """The same with models that have a structure and no weights, for a dry run; nothing can be run with it.

    Args:
        config, method, tasks, accelerator: of the run.
        most: prompts of each split that are read.
    """
    refuse_shared(method, accelerator.num_processes)
    check_models(config, method, {})
    policies = _load(config, method, {}, functools.partial(load_policy, weights=False))
    share_vocabulary(policies["student"], *(p for role, p in policies.items() if role != "student"))
    if config.lora_rank:
        add_lora(policies["student"], config.lora_rank, config.lora_alpha)
    desk = _desk(config, method, tasks, policies, accelerator)
    read = check_prompts(desk, config, data_names(method), lambda _: None, most=most)
    return Session(config, method, accelerator, policies, desk, {}, tuple(read))


def _followers(method: Method, policies: dict[str, Policy]) -> dict[str, FollowingModel]:
    """Weights that follow the student, because a reader names them; what is synced at every batch is the student."""
    named = set(method.views) | {r for s in method.sources.values() for r, _ in s.needs}
    followers = {}
    for reader in sorted(named, key=str):
        if reader.weights is Weights.STUDENT_FOLLOWING and reader.role not in followers:
            assert reader.follow is not None
            followers[reader.role] = FollowingModel(policies["student"], reader.role, reader.follow)
            policies[reader.role] = freeze(followers[reader.role].policy)
    return followers


def _refuse_frozen(student: Policy) -> None:
    """A model object that was a teacher before has no gradients any more."""
    if not any(p.requires_grad for p in student.scorer.parameters()):
        raise LimbeckError(
            f"student={student.name!r}: none of its parameters can be trained; call requires_grad_(True) on it first."
        )


def notices(session: Session) -> list[str]:
    """What is allowed and worth knowing before the first step."""
    student, teacher = session.student, session.policies.get("teacher")
    few = [
        *session.read,
        *few_problems(session.desk.tasks["task"], session.config.eval_size),
        *lineage.consistency(session.method, session.policies),
    ]
    few += [*too_short(session.desk), *unfamiliar(session.desk, session.config)]
    few += [*same_for_all(session.method, session.desk.blocks), *lacking(session.method, session.desk.tasks["task"])]
    return [*few, *_of_models(session), *_ends(student, teacher)]


def _ends(student: Policy, teacher: Policy | None) -> list[str]:
    """Notes on the token that ends a turn: one that the student did not stop at, or that its teacher does not use."""

    def named(policy: Policy, *ids: int) -> str:
        return " ".join(map(repr, policy.tokenizer.convert_ids_to_tokens(list(ids))))

    notes = []
    if student.end not in student.stops:
        notes.append(
            f"note: the student's chat template ends a turn with {named(student, student.end)}, which is not among the "
            f"tokens at which it stops ({named(student, *student.stops)}); generation stops there too, and the "
            "student's generation_config.json will say so."
        )
    if teacher is None:
        return notes
    # A teacher that reads a format of its own ends as that does; else it ends as it was tuned, on its tokenizer's.
    foreign = teacher.chat is not student.chat
    own = teacher.chat.end if foreign else None if student.chat.plain else own_end(teacher)
    if student.end in (teacher.stops if own is None else (own,)):
        return notes
    theirs = named(teacher, *(teacher.stops if own is None else (own,)))
    return [
        *notes,
        f"note: the student ends a response with {named(student, student.end)} and the teacher with {theirs}, so the "
        "teacher finds every end unlikely and responses may grow; use a teacher tuned on the same chat format.",
    ]


def _of_models(session: Session) -> list[str]:
    """A word on models that are not trained or read quite as they were given."""
    student, notes = session.student, []
    if student.was is not None:
        notes.append(
            f"note: the student's weights were given in {str(student.was).removeprefix('torch.')}, in which most of "
            "them would not move; the object now holds them in float32."
        )
    for role, policy in session.policies.items():
        if policy.adapter:
            kept = " and trained on" if role == "student" else ""
            notes.append(f"note: {role}={policy.name!r} is an adapter; it is merged into its base model{kept}.")
    if student.writes != "padded":
        how = "prompts of one length" if student.writes == "alike" else "one prompt"
        notes.append(
            f"note: the student reads padding, or other rows of a batch, as text, so it writes for {how} at a time, "
            "which is slower."
        )
    if left_out := losses_left_out(student.model):
        notes.append(
            f"note: the student's config.json asks for a loss of its own ({', '.join(left_out)}), which is not added; "
            "watch that its experts stay in use, or train adapters (lora_rank)."
        )
    return notes


def few_problems(task: Task, size: int) -> list[str]:
    """A word where a task holds out so little that its accuracy says nothing."""
    n = len(task.test)
    if n >= min(FEW_PROBLEMS, size):  # size 0 asks for none
        return []
    few = "no problem" if not n else "1 problem" if n == 1 else f"{n} problems"
    why = "so nothing will be evaluated" if not n else "and an accuracy of so few is mostly chance"
    remedy = (
        "give held-out problems of their own (test=..., or --set task_options.test=FILE or SPLIT), or hold out a "
        "larger share (test_size=0.3, or --set task_options.test_size=0.3)"
        if isinstance(task, DatasetTask)
        else "give it more problems to hold out (test_size, where it has that option)"
    )
    return [f"note: {task.name!r} holds out {few}, {why}; {remedy}."]


Load = Callable[..., Policy]
"""``load(spec, role, template=..., remote_code=...)``: a model by its name or as an object."""


def _load_one(
    spec: str | PreTrainedModel, role: str, models: Models, tokenizer: PreTrainedTokenizerBase | None, **shared: Any
) -> Policy:
    """A model; one that is an object may need the tokenizer that came with the call."""
    placeless = role in models and not getattr(spec, "name_or_path", "")
    own = tokenizer if role in models and (role == "student" or placeless) else None
    return load_policy(spec, role, tokenizer=own, **shared)


def _load(config: RunConfig, method: Method, models: Models, load: Load) -> dict[str, Policy]:
    shared: dict[str, Any] = {"template": config.template, "remote_code": config.remote_code}
    for setting in ("template", "teacher_template"):
        text = getattr(config, setting)
        if text is not None and text != "own":
            template_file(text, setting)  # before a model is loaded
    keywords = config.chat_template_kwargs
    refuse_unusable(keywords)
    models = {role: _own(model, role, models) for role, model in models.items()}
    policies = {
        "student": load(
            models.get("student", config.student),
            "student",
            # A teacher's own template may be the one that reads a keyword, and is known once the teacher is loaded.
            keywords={} if config.teacher_template else keywords,
            **shared,
        )
    }
    student = policies["student"]
    student.chat.keywords = keywords
    tokenizer = student.tokenizer
    refuse_quantised(student.model, f"student={student.name!r}", config.lora_rank)
    if not config.lora_rank:  # before the reference copies it
        student.was = hold_in_full(student.model)
    if config.teacher or "teacher" in models:
        policies["teacher"] = load(models.get("teacher", config.teacher or ""), "teacher", **shared)
        if config.teacher_template:
            policies["teacher"] = speaking(policies["teacher"], config.teacher_template)
            policies["teacher"].chat.keywords = keywords
            refuse_unread(keywords, {p.name: (p.tokenizer, p.chat.sources) for p in policies.values()})
    for role in sorted(set(method.roles) - {"teacher", "ref", "init", "student"}):
        if role in models or role in config.others:
            policies[role] = load(models.get(role, config.others.get(role, "")), role, **shared)
    for role in ("ref", "init"):
        if role not in method.roles:
            continue
        if role in models or (role == "ref" and config.ref):
            policies[role] = load(models.get(role, config.ref or ""), role, **shared)
        else:  # the student before training
            before = copy.deepcopy(policies["student"].scorer)
            policies[role] = Policy(before, tokenizer, f"{config.student} before training")
    for role, policy in policies.items():
        if role != "teacher" or not config.teacher_template:
            policy.format = policies["student"].chat
    return policies


def _own(model: PreTrainedModel, role: str, models: Models) -> PreTrainedModel:
    """The model, or a copy where it is the student's own object: a teacher is frozen, and the student must move."""
    return copy.deepcopy(model) if role != "student" and model is models.get("student") else model


def _desk(
    config: RunConfig, method: Method, tasks: dict[str, Task], policies: dict[str, Policy], accelerator: Accelerator
) -> Desk:
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.prompts % world:
        raise LimbeckError(
            f"prompts={config.prompts} cannot be shared by {world} processes; use a multiple of {world}."
        )
    for name, task in tasks.items():
        if not len(task.train):
            raise LimbeckError(
                f"the training split of {name}={task.name!r} is empty; give data with at least one line."
            )
    streams = {name: PromptStream(task.train, config.seed, rank, world) for name, task in tasks.items()}
    desk = Desk(
        policies,
        tasks,
        streams,
        config.max_tokens,
        config.generate_batch,
        config.micro_tokens,
        blocks={name: read_template(name, text) for name, text in config.contexts.items()},
        formats=frozenset({"teacher"} if config.teacher_template and "teacher" in policies else ()),
        turns=config.episode_turns,
        verify_seconds=config.verify_seconds,
        judged_only=reads_verdicts(method),
        longest=max([int(s.max_tokens.most(config.steps)) for s in samples(method) if s.max_tokens], default=0),
        skip_overlong=config.skip_overlong,
    )
    if config.skip_overlong:
        for stream in streams.values():
            stream.fits = desk.fits
    return desk
