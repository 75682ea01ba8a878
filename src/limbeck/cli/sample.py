"""``limbeck sample``: responses of one model, or of two side by side, to look at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LimbeckError, nearest
from ..terminal import screen
from ..types import Prompt
from .app import is_main_process
from .out import listening, print_json
from .responses import show
from .run import Json, Sets
from .settings import check_task
from .subjects import Named, beginning, chat_of, named
from .subjects import teacher as teacher_of
from .threads import settle

if TYPE_CHECKING:
    from ..engine.config import RunConfig
    from ..tasks import Task

SETTINGS = ("template", "remote_code", "skip_overlong", "verify_seconds", "episode_turns", "generate_batch")
"""Fields of a run that ``--set`` may name here, beside the options of the task."""

PROBLEMS = 5
"""Held-out problems without ``--n`` (ours): what a screen or two can show."""

WHAT, HOW = "What to write to", "How to write"


@dataclass(frozen=True)
class Question:
    """What the models write to.

    Attributes:
        task: judges the responses where it has a verifier.
        prompts: of the task.
        notes: for people.
    """

    task: Task
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()


def sample(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_MODEL...", help="One or two: a run's folder, a model's, a hub name, 'embedded'."
        ),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="A user's message; may be repeated.", rich_help_panel=WHAT),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Held-out problems of a task; default: the run's own.", rich_help_panel=WHAT),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="How many held-out problems; default 5.", rich_help_panel=WHAT)
    ] = None,
    before: Annotated[
        bool, typer.Option("--before", help="Beside a run's student, show it before training.", rich_help_panel=WHAT)
    ] = False,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Beside a run's student, show its teacher.", rich_help_panel=WHAT)
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each prompt.", rich_help_panel=HOW)] = 1,
    temperature: Annotated[
        float, typer.Option(help="0: always the most likely token, as evaluations do.", rich_help_panel=HOW)
    ] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Limit of a response; default: the run's, else 128.", rich_help_panel=HOW)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same responses.", rich_help_panel=HOW)] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if any.", rich_help_panel=HOW)
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the responses as JSONL too.")] = None,
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Show what a model writes: to prompts of your own, or to problems it was not trained on.

    Of a run, the final student writes, or the newest checkpoint while there
    is no final one; the output says which. Two models write to the same
    prompts and stand side by side in a wide terminal.

    [bold]Examples[/]

    [cyan]limbeck sample runs/mine --before[/]
    [cyan]limbeck sample runs/mine --teacher --n 10 --temperature 0[/]
    [cyan]limbeck sample runs/a runs/b --prompt "What is 7 * 8?" --samples 4[/]
    [cyan]limbeck sample embedded --task two_digit_sums --json[/]

    --set takes template, remote_code, skip_overlong, verify_seconds,
    episode_turns, generate_batch, and task_options.NAME.
    """
    chosen = _chosen(models, before, teacher)
    if out is not None:
        _check_out(out)
    _refuse_both(prompts, task, n)
    config = _config(chosen, max_tokens, seed, settings or [])
    question = asked(chosen, prompts or [], task, PROBLEMS if n is None else n, config)
    with listening(as_json=as_json, quiet=not is_main_process()) as console:
        from ..engine import responses as engine
        from ..engine.storage.atomic import write_lines

        settle()
        for sentence in question.notes:
            console.print(sentence, style="yellow")
        written = engine.write_responses(
            [
                engine.Subject(m.label, m.spec, m.checkpoint, _lora(m), chat_of(m, teacher=teacher and i == 1))
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
    show(screen(), [m.label for m in chosen], question.prompts, written)
    if out is not None:
        screen().print(f"responses  {out}")


def _chosen(words: Sequence[str], before: bool, teacher: bool) -> list[Named]:
    """One model, or two."""
    if len(words) > 2:
        raise LimbeckError(f"sample shows one or two models, and {len(words)} were named; leave some out.")
    if before + teacher + len(words) > 2:
        raise LimbeckError("sample shows at most two models: give a second one, or --before, or --teacher, not more.")
    first = named(words[0])
    chosen = [first, *(named(word) for word in words[1:])]
    chosen += [beginning(first, words[0])] if before else []
    chosen += [teacher_of(first, words[0])] if teacher else []
    if len(chosen) == 2 and chosen[0] == chosen[1]:
        raise LimbeckError(f"{words[0]} was named twice; name two models, or one.")
    return chosen


def _refuse_both(prompts: Sequence[str] | None, task: str | None, n: int | None) -> None:
    for option, given in (("--task", task), ("--n", n)):
        if prompts and given is not None:
            raise LimbeckError(
                f"{option} {given} is for a task's held-out problems and does not fit --prompt; leave one of them out."
            )


def _check_out(out: Path) -> None:
    """Refuse a file that is there, or that cannot be made."""
    if out.exists():
        kind = "a folder" if out.is_dir() else "a file of this name already"
        raise LimbeckError(f"--out {out}: there is {kind}; name a new file.")
    there = next((p for p in out.absolute().parents if p.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise LimbeckError(f"--out {out}: {there} is not a folder that can be written to; name another file.")


def _config(chosen: Sequence[Named], max_tokens: int | None, seed: int, pairs: list[str]) -> RunConfig:
    """The settings for writing: those that were typed, over those of the first run."""
    from ..engine.config import RunConfig, parse_settings

    given = parse_settings(pairs)
    for key in given:
        if key not in (*SETTINGS, "task_options"):
            raise LimbeckError(
                f"--set {key}: sampling has no such setting{nearest(key, SETTINGS)}; it takes {', '.join(SETTINGS)} "
                "and task_options."
            )
    run = next((m.config for m in chosen if m.run), {})
    kept = {k: run[k] for k in ("max_tokens", "remote_code", "verify_seconds", "episode_turns") if k in run}
    typed = {} if max_tokens is None else {"max_tokens": max_tokens}
    return RunConfig(**{**kept, **given, **typed, "seed": seed, "method": "sft"})


def asked(chosen: Sequence[Named], texts: Sequence[str], task: str | None, n: int, config: RunConfig) -> Question:
    """The prompts that were typed, or held-out problems of a task: of the given one, else of the run's own.

    Raises:
        LimbeckError: a prompt that no model can read, no prompt and no task, or a task without held-out problems.
    """
    from ..engine.responses import TypedPrompts
    from ..tasks import load_task

    if texts:
        for i, text in enumerate(texts, 1):
            _check_prompt(i, text)
        typed = tuple(Prompt(f"prompt {i}", ({"role": "user", "content": text},)) for i, text in enumerate(texts, 1))
        return Question(TypedPrompts(typed), typed)
    run = next((m for m in chosen if m.run), None)
    if task is None and run is None:
        raise LimbeckError(
            "there is no prompt and no task: give --prompt TEXT, or --task NAME for a task's held-out problems."
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
        raise LimbeckError(f"{loaded.name!r} holds out no problem; give --prompt TEXT, or another --task.")
    if len(prompts) < n:
        notes = (*notes, f"note: {loaded.name!r} holds out only {len(prompts)} problems.")
    return Question(loaded, prompts, notes)


def _own_task(run: Named, seed: int, typed: Mapping[str, Any]) -> tuple[Task, tuple[str, ...]]:
    """The task of a run as it is today, and a note where its data is no longer what the run read."""
    from ..engine.storage.fingerprint import of_task
    from ..tasks import load_task

    name, options = str(run.config.get("task") or ""), run.config.get("task_options")
    options = {**(options if isinstance(options, dict) else {}), **typed}
    try:
        check_task(name)
        loaded = load_task(name, seed=seed, **options)
    except LimbeckError as e:
        raise LimbeckError(
            f"the task of {run.label} cannot be read again ({str(e).rstrip('.')}); give --task, or --prompt TEXT."
        ) from None
    data = run.run.get("inputs")
    recorded = data.get("data", {}).get("task", {}) if isinstance(data, dict) else {}
    if typed or recorded.get("digest") in (None, of_task(loaded)["digest"]):
        return loaded, ()
    note = (
        f"note: the data of {name!r} is not what the run read, so the student may have been trained on these problems."
    )
    return loaded, (note,)


def _check_prompt(i: int, text: str) -> None:
    from ..tasks.base import half_character

    if not text.strip():
        raise LimbeckError(f"--prompt number {i} is empty; give a text.")
    if half_character(text) is not None:
        raise LimbeckError(f"--prompt number {i} holds half a character, which no tokenizer reads; give UTF-8 text.")


def _lora(model: Named) -> tuple[int, int]:
    """Rank and alpha of the adapters that a run's checkpoint holds."""
    return int(model.config.get("lora_rank") or 0), int(model.config.get("lora_alpha") or 32)


def _lines(written: Sequence[Sequence[Mapping[str, Any]]], question: Question) -> list[dict[str, Any]]:
    """Every response with what it answers, so that each line of a file can be read alone."""
    of = {
        p.id: {"messages": [dict(m) for m in p.messages], "answer": p.privileged.get("answer")}
        for p in question.prompts
    }
    return [{**row, **of[row["prompt"]]} for rows in written for row in rows]
