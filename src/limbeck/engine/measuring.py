"""Measuring a model without training it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from ..errors import LimbeckError, whole
from ..tasks import load_task
from ..terminal import screen
from .build import accelerator_for, build_method, few_problems, open_session
from .config import MOST, checked
from .evaluation import Evaluator


def evaluate(
    student: str,
    *,
    teacher: str | None = None,
    task: str = "two_digit_sums",
    task_options: Mapping[str, Any] | None = None,
    size: int = 200,
    seed: int = 0,
    max_tokens: int = 128,
    samples: int = 1,
    template: str | None = None,
    remote_code: bool = False,
    skip_overlong: bool = False,
    cpu: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a model on a task's held-out problems.

    Returns:
        ``accuracy`` (greedy) with ``low`` and ``high`` (95 % Wilson), ``n``, ``reward``, ``length`` (tokens),
        ``entropy`` (nats), ``kl_forward`` and ``kl_reverse`` (nats a token, with a teacher), ``perplexity``,
        ``correct`` per problem, and ``pass_at`` (k to value) where ``samples`` is above 1. What is not known is absent.
    """
    settings: dict[str, Any] = {
        "method": "sft",
        "student": student,
        "teacher": teacher,
        "task": task,
        "task_options": dict(task_options or {}),
        "seed": seed,
        "max_tokens": max_tokens,
        "eval_size": size,
        "template": template,
        "remote_code": remote_code,
        "skip_overlong": skip_overlong,
        "cpu": cpu,
    }
    config = checked(settings)
    refuse_too_many(samples, size)
    tasks = {"task": load_task(task, seed=seed, **config.task_options)}
    if samples > 1 and "reward" not in tasks["task"].serves:
        raise LimbeckError(f"--samples {samples}: pass@k needs a verifier, but {task!r} has none; give answers.")
    quiet = screen(console, stderr=True)
    with quiet.status("measuring"):
        session = open_session(config, build_method(config), tasks, {}, accelerator_for("no", cpu), learns=False)
        evaluator = Evaluator(session.desk, size, config.micro_tokens)
        if not evaluator.prompts:
            raise LimbeckError(f"{task!r} holds out no problem (size is {size}); give more of them, or test=FILE.")
        for sentence in (*session.read, *few_problems(tasks["task"], size)):
            quiet.print(sentence, style="yellow", highlight=False)
        out = evaluator.measure()
        if samples > 1:
            torch.manual_seed(seed)
            out["pass_at"] = evaluator.pass_at(samples, [2**i for i in range(12)])
    return out


def refuse_too_many(samples: int, problems: int) -> None:
    """Refuse more responses than are held in memory at once.

    Raises:
        LimbeckError: where ``samples`` is no whole number of at least 1, or times ``problems`` is more than ``MOST``.
    """
    whole("--samples", samples, 1)
    if samples * max(problems, 1) > MOST:
        raise LimbeckError(
            f"--samples {samples} for each of {problems:,} problems is more responses than can be held at once "
            f"({MOST:,}); ask for fewer samples or fewer problems."
        )
