"""``limbeck sample``: print responses of one model, or of two models side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LimbeckError, nearest
from ..processes import is_main_process
from ..terminal import screen
from ..types import Prompt
from .named_models import NamedModel, chat_template_of, find_model, student_before_training, teacher_of
from .options import TASK, Json, Sets
from .output import engine_console, print_json
from .settings import check_task
from .show_responses import print_responses
from .threads import limit_threads

if TYPE_CHECKING:
    from ..engine.config import RunConfig
    from ..tasks import Task

SETTINGS = (
    "template",
    "chat_template_kwargs",
    "remote_code",
    "skip_overlong",
    "verify_seconds",
    "episode_turns",
    "generate_batch",
)
"""Settings of a run that ``--set`` accepts here, in addition to the options of the task."""

PROBLEMS = 5
"""Number of held-out problems without ``--n`` (ours): they fit on a screen or two."""

PROMPTS, SAMPLING = "Prompts and models", "Sampling"


@dataclass(frozen=True)
class PromptSet:
    """The prompts that the models respond to.

    Attributes:
        task: judges the responses if it has a verifier.
        prompts: of the task.
        notes: sentences to print.
    """

    task: Task
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()


def sample_responses(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_MODEL", help="One or two of: a run's folder, a model's folder, a hub name, 'embedded'."
        ),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="A prompt of your own (a user message); may be repeated.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"Use held-out problems of this task. {TASK} Default: the run's task.", rich_help_panel=PROMPTS
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Number of held-out problems. Default: 5.", rich_help_panel=PROMPTS)
    ] = None,
    before: Annotated[
        bool, typer.Option("--before", help="Also show the run's student before training.", rich_help_panel=PROMPTS)
    ] = False,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Also show the run's teacher.", rich_help_panel=PROMPTS)
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each prompt.", rich_help_panel=SAMPLING)] = 1,
    temperature: Annotated[
        float,
        typer.Option(
            help="Sampling temperature; 0 always takes the most likely token, as evaluations do.",
            rich_help_panel=SAMPLING,
        ),
    ] = 1.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum length of a response in tokens. Default: the run's, else 128.", rich_help_panel=SAMPLING
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed; the same seed gives the same responses.", rich_help_panel=SAMPLING)
    ] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1 or mps. Default: a GPU if there is one.", rich_help_panel=SAMPLING),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the responses to this JSONL file.")
    ] = None,
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Show a model's responses to prompts of your own, or to held-out problems of a task.

    For a run's folder, the model is its final student, or its newest checkpoint
    while the run is not finished; the output says which. Two models get the
    same prompts and are shown side by side in a wide terminal.

    [bold]Examples[/]

    [cyan]limbeck sample runs/mine --before[/]
    [cyan]limbeck sample runs/mine --teacher --n 10 --temperature 0[/]
    [cyan]limbeck sample runs/a runs/b --prompt "What is 7 * 8?" --samples 4[/]
    [cyan]limbeck sample embedded --task two_digit_sums --json[/]

    --set accepts template, chat_template_kwargs, remote_code, skip_overlong,
    verify_seconds, episode_turns, generate_batch, and task_options.NAME.
    """
    chosen = _chosen(models, before, teacher)
    if out is not None:
        _check_out(out)
    _refuse_both(prompts, task, n)
    config = _config(chosen, max_tokens, seed, settings or [])
    question = prompt_set(chosen, prompts or [], task, PROBLEMS if n is None else n, config)
    with engine_console(as_json=as_json, quiet=not is_main_process()) as console:
        from ..engine import responses as engine
        from ..engine.storage.atomic import write_lines

        limit_threads()
        for sentence in question.notes:
            console.print(sentence, style="yellow")
        written = engine.write_responses(
            [
                engine.Subject(m.label, m.spec, m.checkpoint, _lora(m), chat_template_of(m, teacher=teacher and i == 1))
                for i, m in enumerate(chosen)
            ],
            question.task,
            question.prompts,
            config,
            samples=samples,
            temperature=temperature,
            device=device,
            console=console,
        )
        lines = _lines(written, question)
        if out is not None and is_main_process():
            write_lines(out, lines)
    if not is_main_process():
        return
    if as_json:
        how = {"temperature": temperature, "max_tokens": config.max_tokens, "seed": seed}
        named_models = [{"label": m.label, "model": m.spec, "checkpoint": m.checkpoint} for m in chosen]
        print_json({"models": named_models, "task": question.task.name, **how, "responses": lines})
        return
    print_responses(screen(), [m.label for m in chosen], question.prompts, written)
    if out is not None:
        screen().print(f"responses  {out}")


def _chosen(words: Sequence[str], before: bool, teacher: bool) -> list[NamedModel]:
    """The one or two models that were named."""
    if len(words) > 2:
        raise LimbeckError(f"sample shows one or two models, and {len(words)} were named; leave some out.")
    if before + teacher + len(words) > 2:
        raise LimbeckError("sample shows at most two models; give a second one, or --before, or --teacher, not more.")
    first = find_model(words[0])
    chosen = [first, *(find_model(word) for word in words[1:])]
    chosen += [student_before_training(first, words[0])] if before else []
    chosen += [teacher_of(first, words[0])] if teacher else []
    if len(chosen) == 2 and chosen[0] == chosen[1]:
        raise LimbeckError(f"{words[0]} was named twice; name two models, or one.")
    return chosen


def _refuse_both(prompts: Sequence[str] | None, task: str | None, n: int | None) -> None:
    for option, given in (("--task", task), ("--n", n)):
        if prompts and given is not None:
            raise LimbeckError(
                f"{option} {given} selects held-out problems and cannot be combined with --prompt; leave one out."
            )


def _check_out(out: Path) -> None:
    """Refuse a file that exists, or that cannot be written."""
    if out.exists():
        kind = "is a folder" if out.is_dir() else "already exists"
        raise LimbeckError(f"--out {out}: it {kind}; name a new file.")
    there = next((p for p in out.absolute().parents if p.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise LimbeckError(f"--out {out}: {there} is not a folder that can be written to; name another file.")


def _config(chosen: Sequence[NamedModel], max_tokens: int | None, seed: int, pairs: list[str]) -> RunConfig:
    """The settings for sampling: those that were typed, which override those of the first run."""
    from ..engine.config import RunConfig, parse_settings

    given = parse_settings(pairs)
    for key in given:
        if key not in (*SETTINGS, "task_options"):
            raise LimbeckError(
                f"--set {key}: sampling has no such setting{nearest(key, SETTINGS)}; it accepts {', '.join(SETTINGS)} "
                "and task_options."
            )
    run = next((m.config for m in chosen if m.run), {})
    kept = {
        k: run[k]
        for k in ("max_tokens", "chat_template_kwargs", "remote_code", "verify_seconds", "episode_turns")
        if k in run
    }
    typed = {} if max_tokens is None else {"max_tokens": max_tokens}
    return RunConfig(**{**kept, **given, **typed, "seed": seed, "method": "sft"})


def prompt_set(
    chosen: Sequence[NamedModel], texts: Sequence[str], task: str | None, n: int, config: RunConfig
) -> PromptSet:
    """The prompts that were typed, or held-out problems of the given task, else of the run's task.

    Raises:
        LimbeckError: a prompt is empty or not valid text, there is neither a prompt nor a task, or the task has no
            held-out problems.
    """
    from ..engine.responses import TypedPrompts
    from ..tasks import load_task

    if texts:
        for i, text in enumerate(texts, 1):
            _check_prompt(i, text)
        typed = tuple(Prompt(f"prompt {i}", ({"role": "user", "content": text},)) for i, text in enumerate(texts, 1))
        return PromptSet(TypedPrompts(typed), typed)
    run = next((m for m in chosen if m.run), None)
    if task is None and run is None:
        raise LimbeckError(
            "there is no prompt and no task; give --prompt TEXT, or --task NAME for held-out problems of a task."
        )
    data_seed = config.seed if run is None else int(run.config.get("seed") or 0)
    notes: tuple[str, ...] = ()
    if task is not None:
        check_task(task)
        loaded = load_task(task, seed=data_seed, **config.task_options)
    else:
        assert run is not None
        loaded, notes = _own_task(run, data_seed, config.task_options)
    prompts = tuple(loaded.test[i] for i in range(min(n, len(loaded.test))))
    if not prompts:
        raise LimbeckError(f"{loaded.name!r} has no held-out problems; give --prompt TEXT, or another --task.")
    if len(prompts) < n:
        few = "1 held-out problem" if len(prompts) == 1 else f"{len(prompts)} held-out problems"
        notes = (*notes, f"note: {loaded.name!r} has only {few}.")
    return PromptSet(loaded, prompts, notes)


def _own_task(run: NamedModel, seed: int, typed: Mapping[str, Any]) -> tuple[Task, tuple[str, ...]]:
    """The task of a run, loaded again, and a note if its data has changed since the run."""
    from ..engine.resumption import refuse_task_of_python
    from ..engine.storage.fingerprint import of_task
    from ..tasks import load_task

    name, options = str(run.config.get("task") or ""), run.config.get("task_options")
    options = {**(options if isinstance(options, dict) else {}), **typed}
    refuse_task_of_python(run.label, name, "give --task, or --prompt TEXT")
    try:
        check_task(name)
        loaded = load_task(name, seed=seed, **options)
    except LimbeckError as e:
        raise LimbeckError(
            f"the task of {run.label} cannot be loaded again ({str(e).rstrip('.')}); give --task, or --prompt TEXT."
        ) from None
    data = run.run.get("inputs")
    recorded = data.get("data", {}).get("task", {}) if isinstance(data, dict) else {}
    if typed or recorded.get("digest") in (None, of_task(loaded)["digest"]):
        return loaded, ()
    note = (
        f"note: the data of {name!r} has changed since the run, so the student may have been trained on these problems."
    )
    return loaded, (note,)


def _check_prompt(i: int, text: str) -> None:
    from ..tasks.base import half_character

    if not text.strip():
        raise LimbeckError(f"--prompt number {i} is empty; give a text.")
    if half_character(text) is not None:
        raise LimbeckError(f"--prompt number {i} holds half a character, which no tokenizer can read; give UTF-8 text.")


def _lora(model: NamedModel) -> tuple[int, int]:
    """Rank and alpha of the LoRA adapters in a run's checkpoint; a rank of 0 means none."""
    return int(model.config.get("lora_rank") or 0), int(model.config.get("lora_alpha") or 32)


def _lines(written: Sequence[Sequence[Mapping[str, Any]]], question: PromptSet) -> list[dict[str, Any]]:
    """Every response with its prompt and answer, so that each line of the file can be read alone."""
    of = {
        p.id: {"messages": [dict(m) for m in p.messages], "answer": p.privileged.get("answer")}
        for p in question.prompts
    }
    return [{**row, **of[row["prompt"]]} for rows in written for row in rows]
