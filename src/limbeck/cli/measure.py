"""``limbeck eval``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from ..errors import LimbeckError, nearest
from ..terminal import screen
from .app import is_main_process
from .out import listening, print_json, row, table
from .run import Json, Sets
from .settings import check_model, check_task
from .threads import settle

SETTINGS = ("max_tokens", "template", "remote_code", "skip_overlong", "cpu", "task_options")
"""Fields of a run that ``--set`` may name here."""

ROWS = (
    ("reward", "reward", "{:.3f}"),
    ("kl_forward", "KL(teacher ‖ student)", "{:.4f} nats a token"),
    ("kl_reverse", "KL(student ‖ teacher)", "{:.4f} nats a token"),
    ("entropy", "entropy", "{:.3f} nats a token"),
    ("length", "length", "{:.1f} tokens"),
    ("perplexity", "perplexity", "{:.3f}"),
)


def evaluate(
    student: Annotated[str, typer.Option(help="Folder, hub name, or 'embedded'.", rich_help_panel="Models and task")],
    teacher: Annotated[
        str | None, typer.Option(help="Measures the distance to it too.", rich_help_panel="Models and task")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="JSONL file, data set folder, or a reasoning-gym name.", rich_help_panel="Models and task"),
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Held-out problems.", rich_help_panel="How much")] = 200,
    samples: Annotated[
        int, typer.Option(min=1, help="Answers a problem; more than 1 gives pass@k.", rich_help_panel="How much")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same answers.", rich_help_panel="How much")] = 0,
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure a model on problems it was not trained on: accuracy with its interval, and the distance to a teacher.

    [bold]Examples[/]

    [cyan]limbeck eval --student embedded --teacher embedded[/]
    [cyan]limbeck eval --student runs/mine/student --task problems.jsonl --samples 8[/]

    --set takes the names of a run: max_tokens, template, remote_code,
    skip_overlong, cpu, task_options.NAME.
    """
    arguments = _arguments(task, settings or [])
    check_model("student", student)
    check_model("teacher", teacher)
    check_task(arguments["task"])
    with listening(as_json=as_json, quiet=not is_main_process()) as console:
        from .. import engine

        settle()
        if task is None:
            console.print(f"note: without --task, the task is {arguments['task']!r}.", style="dim")
        found = engine.evaluate(
            student, teacher=teacher, size=size, samples=samples, seed=seed, console=console, **arguments
        )
    if not is_main_process():
        return
    if as_json:
        print_json(found)
        return
    made = table("", "")
    for name, text in lines(found):
        row(made, name, text)
    screen().print(made)


def _arguments(task: str | None, pairs: list[str]) -> dict[str, Any]:
    """Task and ``--set``, checked as a run's settings are."""
    from ..engine.config import configure, parse_settings

    given = parse_settings(pairs)
    for key in given:
        if key not in SETTINGS:
            raise LimbeckError(
                f"--set {key}: an evaluation has no such setting{nearest(key, SETTINGS)}; it takes "
                f"{', '.join(SETTINGS)}."
            )
    config = configure("sft", {**given, **({"task": task} if task else {})})
    return {key: getattr(config, key) for key in ("task", *SETTINGS)}


def lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of every measure there is."""
    if found.get("accuracy") is not None:
        text = f"{found['accuracy']:.1%}"
        if found.get("low") is not None and found.get("high") is not None:
            text += f"  (95% interval {found['low']:.1%} to {found['high']:.1%})"
        yield "accuracy", text
    if found.get("n") is not None:
        yield "problems", f"{found['n']:,}"
    for key, name, form in ROWS:
        if found.get(key) is not None:
            yield name, form.format(found[key])
    for k, value in (found.get("pass_at") or {}).items():
        yield f"pass@{k}", f"{value:.1%}"
