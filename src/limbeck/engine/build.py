"""From a configuration to a session: everything that can be refused without a model first, then the models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedTokenizerBase

from ..errors import LimbeckError, shown
from ..loss.terms import refuse_shared
from ..space.method import Method
from ..tasks import Task, load_task
from .aliases import TASK_OF_DATA
from .checks import (
    check_models,
    check_served,
    check_trackers,
    data_names,
    reads_verdicts,
    registered_arguments,
    samples,
)
from .config import RunConfig
from .models.following import FollowingModel
from .models.loading import Models, following_models, load_policies, structures
from .models.policy import Policy
from .prompt_checks import check_prompts
from .prompt_stream import PromptStream
from .rendering import PromptRenderer
from .scoring.templates import read_template
from .session import Session


def build_method(config: RunConfig) -> Method:
    """The method with its arguments; both were checked against the registry."""
    return config.recipe(**config.arguments)


def check_run(
    config: RunConfig,
    method: Method | None = None,
    models: Models | None = None,
    task: Task | None = None,
    later: Collection[str] = (),
) -> tuple[Method, dict[str, Task]]:
    """Refuse everything that can be refused without a model; the method and the tasks of a run.

    Args:
        config: of the run.
        method: its value; None builds it from the configuration.
        models: objects that replace the names in the configuration.
        task: an object that replaces the name in the configuration.
        later: roles whose model does not exist yet and is not looked for.

    Raises:
        LimbeckError: one sentence that names the setting, the value and the remedy.
    """
    value = method or build_method(config)
    check_trackers(config)
    check_models(config, value, models or {}, later)
    return value, prepare_tasks(config, value, task)


TASK_PARTS = ("name", "serves", "train", "test", "verify", "responses")
"""Attributes and methods that every task has (``limbeck.tasks.Task``)."""


def task_object(task: object) -> Task | None:
    """A task that is given as an object; None where it is given by its name.

    Raises:
        LimbeckError: for an object that is not a task.
    """
    if isinstance(task, str):
        return None
    if inspect.isclass(task):
        raise LimbeckError(f"task={shown(task)} is a class; give an object of it: task={task.__name__}(...).")
    plays = "episodes" in getattr(task, "serves", ())
    lacks = [name for name in (*TASK_PARTS, *(["open"] if plays else [])) if not hasattr(task, name)]
    if lacks:
        raise LimbeckError(
            f"task={shown(task)} is not a task, because it has no {lacks[0]!r}; of data or a reward function make one "
            f"with {TASK_OF_DATA}, or give a name, a file, or an object with what limbeck.tasks.Task asks for."
        )
    return cast("Task", task)


def name_of(thing: object) -> str:
    """The name of a model object or a task object, for the configuration."""
    return str(getattr(thing, "name_or_path", "") or getattr(thing, "name", "") or type(thing).__name__)


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
                f"{' (or --set lm_coef=0 to do without)' if 'lm_coef' in registered_arguments(config) else ''}."
            )
        tasks[name] = load_task(config.datasets[name], seed=config.seed)
    check_served(config, method, tasks)
    return tasks


def accelerator_for(precision: str, cpu: bool, **own: Any) -> Accelerator:
    """An accelerator of this precision and device, although an earlier run of this process may have had others."""
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
    """Load the models, check that they fit together, read the prompts, and build the session.

    Args:
        config, method, tasks, models, accelerator: of the run.
        tell: called with progress messages.
        learns: whether training prompts are read too.
        tokenizer: of a student that is an object, and of other objects that were not loaded from anywhere.
    """
    refuse_shared(method, accelerator.num_processes)
    policies = load_policies(config, method, models, accelerator.device, tokenizer)
    followers = following_models(method, policies)
    policies |= {role: follower.policy for role, follower in followers.items()}
    session = _session(config, method, tasks, policies, accelerator, followers)
    return session.with_notices(check_prompts(session, data_names(method) if learns else (), tell, learns))


def without_weights(
    config: RunConfig, method: Method, tasks: dict[str, Task], accelerator: Accelerator, most: int
) -> Session:
    """The same with models that have a structure and no weights, for a dry run; nothing can be run with it.

    Args:
        config, method, tasks, accelerator: of the run.
        most: prompts of each split that are read.
    """
    refuse_shared(method, accelerator.num_processes)
    session = _session(config, method, tasks, structures(config, method), accelerator, {})
    return session.with_notices(check_prompts(session, data_names(method), lambda _: None, most=most))


def _session(
    config: RunConfig,
    method: Method,
    tasks: dict[str, Task],
    policies: dict[str, Policy],
    accelerator: Accelerator,
    followers: Mapping[str, FollowingModel],
) -> Session:
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
    longest = [int(s.max_tokens.most(config.steps)) for s in samples(method) if s.max_tokens]
    formats = frozenset({"teacher"} if config.teacher_template and "teacher" in policies else ())
    renderer = PromptRenderer(policies, max([config.max_tokens, *longest]), formats)
    streams = {name: PromptStream(task.train, config.seed, rank, world) for name, task in tasks.items()}
    if config.skip_overlong:
        for stream in streams.values():
            stream.fits = renderer.fits
    return Session(
        config=config,
        method=method,
        accelerator=accelerator,
        policies=policies,
        tasks=tasks,
        streams=streams,
        renderer=renderer,
        templates={name: read_template(name, text) for name, text in config.contexts.items()},
        followers=followers,
        reads_verdicts=reads_verdicts(method),
    )
