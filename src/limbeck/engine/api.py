"""Entry points from Python: ``distill`` trains a student with any method, ``evaluate`` measures a model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias, Unpack, overload

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import LimbeckError, shown, whole
from ..space.method import Method
from ..space.registry import THEIR_ARGUMENTS, Recipe
from ..tasks import Task, load_task
from ..terminal import screen
from .aliases import in_our_words, unknown_setting
from .build import accelerator_for, build_method, name_of, open_session, task_object
from .checks import check_models
from .config import MOST, RunConfig, configure
from .evaluation import Evaluator
from .notices import few_problems
from .options import RunSettings
from .run import Result, train
from .storage.run_folder import folder_of

ModelSpec: TypeAlias = str | Path | PreTrainedModel
"""A model folder, a hub name, ``"embedded"``, or a Hugging Face model object."""


@overload
def distill(
    method: Method | str | Recipe,
    student: ModelSpec,
    teacher: ModelSpec | None = None,
    *,
    task: str | Path | Task,
    ref: ModelSpec | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: RunConfig | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Unpack[RunSettings],
) -> Result: ...


@overload
def distill(  # a name, with arguments of the method among the settings, which no type checker can know
    method: str | Recipe,
    student: ModelSpec,
    teacher: ModelSpec | None = None,
    *,
    task: str | Path | Task,
    ref: ModelSpec | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: RunConfig | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result: ...


@overload
def distill(
    method: Method | str | Recipe | None = None,
    student: ModelSpec | None = None,
    teacher: ModelSpec | None = None,
    *,
    config: RunConfig,
    task: str | Path | Task | None = None,
    ref: ModelSpec | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Unpack[RunSettings],
) -> Result: ...


def distill(
    method: Method | str | Recipe | None = None,
    student: ModelSpec | None = None,
    teacher: ModelSpec | None = None,
    *,
    task: str | Path | Task | None = None,
    ref: ModelSpec | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: RunConfig | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train a student with any method.

    Args:
        method: a registered name or recipe, whose arguments may be among ``settings``, or a value that has its
            arguments already, such as ``lb.methods.kdrl(coef=1.0)``.
        student, teacher, ref: a model folder, a hub name, ``"embedded"``, or a Hugging Face model object. The student
            is required; ``ref`` is the student before training unless it is given.
        task: a reasoning-gym data set, a JSONL file, a dataset folder, a preset, or a Task object; required. A data set
            in memory becomes one by ``lb.task(dataset, reward=function, prompt="question")``.
        tokenizer: of a student that is a model object; also of a teacher or reference object that was not loaded from a
            folder or the hub. Default: the one at the object's ``name_or_path``.
        config: a whole ``RunConfig``. Other arguments override it; tables are merged entry by entry.
        out: folder of the run; default ``runs/METHOD-DATE``.
        overwrite: replace a run that the folder holds.
        quiet: no progress on standard error.
        **settings: fields of ``RunConfig`` (``lr``, ``prompts``, ``max_tokens`` ...), by their own names or those of
            Transformers and TRL (``learning_rate`` ...), and, with a method's name, arguments of the method.

    Raises:
        LimbeckError: one sentence that names the field, the value and the remedy.
    """
    # Paths are accepted, because ``Result.student`` is one.
    named: dict[str, Any] = {"student": student, "teacher": teacher, "ref": ref, "task": task}
    named = {k: str(v) if isinstance(v, Path) else v for k, v in named.items() if v is not None}
    _refuse_other_models(named)
    own_task = task_object(named.get("task", ""))
    models = {role: x for role, x in named.items() if isinstance(x, PreTrainedModel)}
    texts = {k: v if isinstance(v, str) else name_of(v) for k, v in named.items()}
    made, value = _configured(method, config, texts, settings)
    _refuse_tokenizer(tokenizer, models)
    folder = folder_of(out) if out not in (None, "") else Path("runs") / f"{made.method}-{datetime.now():%Y%m%d-%H%M%S}"
    command = f"lb.distill({made.method!r}, student={made.student!r}, teacher={made.teacher!r}, ...)"
    return train(
        made,
        folder,
        command=command,
        overwrite=overwrite,
        console=screen(quiet=True) if quiet else None,
        method=value,
        models=models,
        task=own_task,
        tokenizer=tokenizer,
    )


_TABLES = ("arguments", "task_options", "datasets", "others", "contexts")


def _configured(
    method: Method | str | Recipe | None,
    config: RunConfig | None,
    texts: Mapping[str, str],
    settings: Mapping[str, Any],
) -> tuple[RunConfig, Method | None]:
    """The configuration of a call, and the method where it was given as a value."""
    if config is not None and not isinstance(config, RunConfig):
        raise LimbeckError(
            f"config={shown(config)} is not a RunConfig; give lb.RunConfig(method=..., student=..., ...)."
        )
    below = {k: getattr(config, k) for k in sorted(config.model_fields_set)} if config is not None else {}
    arguments: Mapping[str, object] = {}
    if isinstance(method, Method):
        name, below = method.name or "custom", {**below, "arguments": {}}
        _refuse_arguments(settings)
    else:
        named = method.name if isinstance(method, Recipe) else method
        name = named if named is not None else below.get("method", "")
        if name == "":
            raise LimbeckError(
                "method=None: the method is missing; give a name (`limbeck methods` lists them), or a config."
            )
        if name != below.get("method"):
            below["arguments"] = {}  # those of another method
        arguments = configure(name, {"imports": settings.get("imports", ())}).recipe.arguments
    given = {**texts, **in_our_words(settings, arguments, name)}
    own = {k: given.pop(k) for k in list(given) if k in arguments}
    if own or "arguments" in given:
        given["arguments"] = _laid(given.get("arguments", {}), own)
    merged = {**below, **{k: _laid(below[k], v) if k in _TABLES and below.get(k) else v for k, v in given.items()}}
    merged.pop("method", None)
    if not isinstance(method, Method):
        made = configure(name, merged)  # first, because a misspelt task= is better named than missed
        _refuse_missing(merged)
        return made, None
    unknown = sorted(set(merged) - set(RunConfig.model_fields))
    if unknown:
        opening = unknown_setting(unknown[0], merged[unknown[0]], RunConfig.model_fields)
        raise LimbeckError(
            f"{opening}; a method value takes its arguments when it is built, and docs/settings.md lists the settings "
            "of a run."
        )
    made = RunConfig(**{"method": name, **merged})
    _refuse_missing(merged)
    return made, method


def _laid(below: Any, above: Any) -> Any:
    """The entries of two tables, the upper ones winning; other values are left to the checks of the configuration."""
    if not isinstance(below, Mapping):
        return below
    return {**below, **above} if isinstance(above, Mapping) else above


def _refuse_arguments(settings: Mapping[str, Any]) -> None:
    """Refuse TRL's names for arguments of a method beside a method that has its arguments already."""
    for name, ours in THEIR_ARGUMENTS.items():
        if name in settings:
            raise LimbeckError(
                f"{name}={shown(settings[name])} is the argument {ours!r} of a method, and a method value takes its "
                f"arguments when it is built; give {ours} there, where the method has it."
            )


def _refuse_missing(given: Mapping[str, Any]) -> None:
    """Refuse a run without a student or a task: their defaults are for a first try on the command line."""
    if given.get("student") is None:
        raise LimbeckError(
            "the student is missing; give a model folder, a hub name or a model object, or student='embedded' for the "
            "toy model that comes with Limbeck."
        )
    if given.get("task") is None:
        raise LimbeckError(
            "the task is missing; give task= a JSONL file, a data set folder, a reasoning-gym name or a Task object, "
            "or 'two_digit_sums' with the embedded models."
        )


def _refuse_tokenizer(tokenizer: object, models: Mapping[str, PreTrainedModel]) -> None:
    """Refuse an object that is not a tokenizer, or a tokenizer that no model would use."""
    if tokenizer is None:
        return
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise LimbeckError(f"tokenizer={shown(tokenizer)} is not a tokenizer; give a PreTrainedTokenizerBase.")
    if "student" not in models and all(getattr(model, "name_or_path", "") for model in models.values()):
        raise LimbeckError(
            "tokenizer= is for a model that is given as an object, and every model here has its own; leave it out."
        )


def _refuse_other_models(named: Mapping[str, Any]) -> None:
    """Refuse objects that are neither a model nor the name of one."""
    for role, x in named.items():
        if role != "task" and not isinstance(x, str | PreTrainedModel):
            raise LimbeckError(
                f"{role}={shown(x)} is not a model; give a folder, a hub name, or a Hugging Face model "
                "(PreTrainedModel; of a PEFT model, merge_and_unload())."
            )


def evaluate(
    student: str,
    *,
    teacher: str | None = None,
    task: str | Path | Task = "two_digit_sums",
    task_options: Mapping[str, Any] | None = None,
    size: int = 200,
    seed: int = 0,
    max_tokens: int = 128,
    samples: int = 1,
    template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    remote_code: bool = False,
    skip_overlong: bool = False,
    cpu: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a model on a task's held-out problems.

    Args:
        student: model folder, hub name or ``"embedded"``.
        teacher: model to which the distance is measured; None measures none.
        task: a name, a file, a folder, or a Task object, which has its options already.
        task_options: options of a task that is given by its name.
        size: held-out problems (default as in ``RunConfig.eval_size``).
        seed: of the task and of sampled responses.
        max_tokens: limit of a response.
        samples: responses a problem; more than 1 adds pass@k.
        template, chat_template_kwargs, remote_code, skip_overlong, cpu: as in ``RunConfig``.
        console: where progress goes; default: standard error.

    Returns:
        ``accuracy`` (greedy) with ``low`` and ``high`` (95 % Wilson), ``n``, ``reward``, ``length`` (tokens),
        ``entropy`` (nats), ``kl_forward`` and ``kl_reverse`` (nats a token, with a teacher), ``perplexity``,
        ``correct`` per problem, and ``pass_at`` (k to value) where ``samples`` is above 1. Unknown values are absent.
    """
    given = task_object(str(task) if isinstance(task, Path) else task)
    if given is not None and task_options:
        raise LimbeckError(
            "task_options are for a task that is given by its name; give them to the Task object itself."
        )
    settings: dict[str, Any] = {
        "method": "sft",
        "student": student,
        "teacher": teacher,
        "task": str(task) if given is None else name_of(given),
        "task_options": dict(task_options or {}),
        "seed": seed,
        "max_tokens": max_tokens,
        "eval_size": size,
        "template": template,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
        "remote_code": remote_code,
        "skip_overlong": skip_overlong,
        "cpu": cpu,
    }
    return _measured(RunConfig(**settings), given, samples, screen(console, stderr=True))


def _measured(config: RunConfig, task: Task | None, samples: int, console: Console) -> dict[str, Any]:
    """The measures of the student of a configuration, as ``evaluate`` returns them."""
    refuse_too_many(samples, config.eval_size)
    method = build_method(config)
    check_models(config, method, {})
    tasks = {"task": task or load_task(config.task, seed=config.seed, **config.task_options)}
    if samples > 1 and "reward" not in tasks["task"].serves:
        raise LimbeckError(f"--samples {samples}: pass@k needs a verifier, but {config.task!r} has none; give answers.")
    with console.status("measuring"):
        session = open_session(config, method, tasks, {}, accelerator_for("no", config.cpu), learns=False)
        evaluator = Evaluator(session)
        if not evaluator.prompts:
            raise LimbeckError(
                f"{config.task!r} holds out no problem (size is {config.eval_size}); give more of them, or test=FILE."
            )
        for sentence in (*session.notices, *few_problems(tasks["task"], config.eval_size)):
            console.print(sentence, style="yellow", highlight=False)
        out = evaluator.measure()
        if samples > 1:
            torch.manual_seed(config.seed)
            out["pass_at"] = evaluator.pass_at(samples, [2**i for i in range(12)])
    return out


def refuse_too_many(samples: int, problems: int) -> None:
    """Refuse more responses than can be held in memory at once.

    Raises:
        LimbeckError: where ``samples`` is below 1, or ``samples`` times ``problems`` is more than ``MOST``.
    """
    whole("--samples", samples, 1)
    if samples * max(problems, 1) > MOST:
        raise LimbeckError(
            f"--samples {samples} for each of {problems:,} problems is more responses than can be held at once "
            f"({MOST:,}); ask for fewer samples or fewer problems."
        )
