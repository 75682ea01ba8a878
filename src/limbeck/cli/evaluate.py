"""``limbeck eval``: measure a model on held-out problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from ..errors import LimbeckError, nearest
from ..processes import is_main_process
from ..terminal import screen
from .options import MODEL, MODELS_AND_TASK, TASK, Json, Sets
from .output import add_row, engine_console, make_table, print_json
from .settings import check_model, check_task
from .threads import limit_threads

SETTINGS = ("max_tokens", "template", "chat_template_kwargs", "remote_code", "skip_overlong", "cpu", "task_options")
"""Settings of a run that ``--set`` accepts here."""

ROWS = (
    ("reward", "reward", "{:.3f}"),
    ("kl_forward", "KL(teacher ‖ student)", "{:.4f} nats per token"),
    ("kl_reverse", "KL(student ‖ teacher)", "{:.4f} nats per token"),
    ("entropy", "entropy", "{:.3f} nats per token"),
    ("length", "length", "{:.1f} tokens"),
    ("perplexity", "perplexity", "{:.3f}"),
)


def evaluate(
    student: Annotated[str, typer.Option(help=f"The model to measure. {MODEL}", rich_help_panel=MODELS_AND_TASK)],
    teacher: Annotated[
        str | None, typer.Option(help="Also measure the KL divergence to this model.", rich_help_panel=MODELS_AND_TASK)
    ] = None,
    task: Annotated[str | None, typer.Option(help=TASK, rich_help_panel=MODELS_AND_TASK)] = None,
    size: Annotated[int, typer.Option(min=1, help="Number of held-out problems.", rich_help_panel="How much")] = 200,
    samples: Annotated[
        int, typer.Option(min=1, help="Samples per problem; above 1 also reports pass@k.", rich_help_panel="How much")
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed; the same seed gives the same answers.", rich_help_panel="How much")
    ] = 0,
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure a model on held-out problems: accuracy with its interval, and the KL divergence to a teacher.

    [bold]Examples[/]

    [cyan]limbeck eval --student embedded --teacher embedded[/]
    [cyan]limbeck eval --student runs/mine/student --task problems.jsonl --samples 8[/]

    --set accepts these settings of a run: max_tokens, template,
    chat_template_kwargs, remote_code, skip_overlong, cpu, task_options.NAME.
    """
    arguments = _arguments(task, settings or [])
    check_model("student", student)
    check_model("teacher", teacher)
    check_task(arguments["task"])
    with engine_console(as_json=as_json, quiet=not is_main_process()) as console:
        from .. import engine

        limit_threads()
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
    made = make_table("", "")
    for name, text in measures(found):
        add_row(made, name, text)
    screen().print(made)


def _arguments(task: str | None, pairs: list[str]) -> dict[str, Any]:
    """The task and the settings of ``--set``, checked as those of a run."""
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


def measures(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of every measure that was taken."""
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
