"""``limbeck train`` and ``limbeck demo``."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LimbeckError
from ..terminal import screen
from .app import is_main_process, stoppable
from .dry_run import document, show
from .out import listening, plain, print_json
from .settings import check, defaults, output_folder, run_config, run_record
from .threads import settle

if TYPE_CHECKING:
    from ..engine import Result
    from ..engine.config import RunConfig
    from ..space.method import Method

DEMO: dict[str, Any] = {
    "method": "kdrl",
    "student": "embedded",
    "teacher": "embedded",
    "task": "two_digit_sums",
    "steps": 140,
    "prompts": 32,
    "max_tokens": 40,
    "lr": 5e-4,
    "schedule": "cosine",
    "warmup": 10,
    "eval_size": 200,
    "eval_every": 35,
    "save_every": 70,
    "seed": 0,
    "arguments": {"kdrl": {"coef": 1.0, "group": 4}},
}
"""Settings of the demo; ``arguments`` are by method, so that another one runs with its own defaults."""

DEMO_OUT = Path("runs/demo")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting or argument of the method; may be repeated."),
]


def train(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The method; `limbeck methods` lists them.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Folder, hub name, or 'embedded' (default).", rich_help_panel="Models and task")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder, hub name, or 'embedded'.", rich_help_panel="Models and task")
    ] = None,
    ref: Annotated[
        str | None, typer.Option(help="Default: the student before training.", rich_help_panel="Models and task")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="JSONL file, data set folder, or a reasoning-gym name.", rich_help_panel="Models and task"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="How many batches of prompts; default 100.", rich_help_panel="The run")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run.", rich_help_panel="The run")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/NAME-DATE-TIME.", rich_help_panel="The run")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with a run that stopped.", rich_help_panel="The run")
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With --resume: go on though data, models or templates are not what they were.",
            rich_help_panel="The run",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run.", rich_help_panel="The run")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings in a TOML file.", rich_help_panel="Settings")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting; may be repeated, wins over all.",
            rich_help_panel="Settings",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show models, data, prompts, memory and time; train nothing."),
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a student with a method, and write checkpoints, a report and the student itself to a folder.

    [bold]Examples[/]

    [cyan]limbeck train kdrl --student small --teacher big --task problems.jsonl[/]
    [cyan]limbeck train gkd --config run.toml --set lam=1 --set lora_rank=16[/]
    [cyan]limbeck train kdrl --student small --teacher big --dry-run[/]
    [cyan]limbeck train --resume runs/kdrl-20260102-101500 --steps 400[/]

    [bold]Settings[/]

    Those that matter most:

    lr=1e-5          peak learning rate of AdamW
    prompts=32       prompts a step
    max_tokens=128   limit of a response, in tokens
    lora_rank=0      train adapters of this rank; 0 trains all weights
    precision=no     bf16 or fp16 for mixed precision

    --set wins over the options, these over --config, that over the defaults.
    Names of Transformers and TRL (learning_rate, save_steps) are accepted.
    A TOML file holds the same names, and the method: [cyan]method = "kdrl"[/].
    The method's own arguments are settings too: [cyan]limbeck explain NAME[/]
    lists them. A dot reaches into a table: [cyan]--set task_options.size=500[/].
    A method of your own: [cyan]limbeck train my_method --import FILE.py[/].
    """
    flags = {"student": student, "teacher": teacher, "ref": ref, "task": task, "seed": seed}
    if resume is not None:
        others = {**flags, "out": out, "config": config, "set": settings or None, "overwrite": overwrite or None}
        others |= {"dry-run": dry_run or None}
        _check_resume(resume, name, others)
        with listening(as_json=as_json, quiet=_quiet(quiet)) as console, stoppable(resume):
            from .. import engine

            settle()
            result = engine.resume(
                resume, steps=steps, command=_typed(ctx), console=console, accept_changes=accept_changes
            )
    elif accept_changes:
        raise LimbeckError("--accept-changes is for a run that goes on: add --resume DIR, or leave it out.")
    else:
        made = run_config(name, {**flags, "steps": steps}, config, settings or [])
        method = check(made)
        folder = output_folder(out, made.method, overwrite=overwrite)
        if dry_run:
            _dry_run(made, method, as_json, quiet)
            return
        with listening(as_json=as_json, quiet=_quiet(quiet)) as console, stoppable(folder):
            from .. import engine

            settle()
            for sentence in defaults(made):
                console.print(sentence, style="dim")
            result = engine.train(
                made, folder, command=_typed(ctx), overwrite=overwrite, console=console, method=method
            )
    if as_json and is_main_process():
        print_json(dataclasses.asdict(result))


def _dry_run(config: RunConfig, method: Method, as_json: bool, quiet: bool) -> None:
    with listening(as_json=as_json, quiet=_quiet(quiet)) as console:
        from ..engine.dry_run import dry_run

        settle()
        for sentence in defaults(config):
            console.print(sentence, style="dim")
        found = dry_run(config, method)
        if not as_json:
            show(console, found)
    if as_json and is_main_process():
        print_json(document(found))


def _check_resume(folder: Path, name: str | None, others: Mapping[str, Any]) -> None:
    from ..tasks.base import found

    if found(folder, "folder") is None:
        raise LimbeckError(f"--resume {folder}: there is no such folder; name the folder of a run.")
    record = run_record(folder)
    if not record:
        raise LimbeckError(f"--resume {folder}: it is not the folder of a run, because it has no readable run.json.")
    if name and name != record.get("method", name):
        raise LimbeckError(f"--resume {folder}: that run's method is {record['method']}, not {name}; leave {name} out.")
    for option, value in others.items():
        if value is not None:
            raise LimbeckError(
                f"--{option} does not fit --resume, which goes on with the run's own settings; only --steps may change."
            )


def demo(
    ctx: typer.Context,
    method: Annotated[str, typer.Option(help="The method; `limbeck methods` lists them.")] = DEMO["method"],
    steps: Annotated[int, typer.Option(help="How many batches of prompts.")] = DEMO["steps"],
    seed: Annotated[int, typer.Option(help="Same seed, same run.")] = DEMO["seed"],
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier demo in it is replaced.")] = DEMO_OUT,
    as_json: Json = False,
) -> None:
    """A small student learns sums from a small teacher: both come with Limbeck, and a laptop is enough.

    Shows what a run prints and leaves behind, then what to type for your own
    models.

    [bold]Examples[/]

    [cyan]limbeck demo[/]
    [cyan]limbeck demo --method gkd --steps 30[/]
    """
    settings = {k: v for k, v in DEMO.items() if k not in ("method", "arguments")}
    own = DEMO["arguments"].get(method, {})
    made = run_config(method, {**settings, "steps": steps, "seed": seed, "arguments": own}, None, [])
    value = check(made)
    _check_demo_folder(out)
    with listening(as_json=as_json, quiet=_quiet(False)) as console, stoppable(out):
        from .. import engine

        settle()
        result = engine.train(made, out, command=_typed(ctx), overwrite=True, console=console, method=value)
    if not is_main_process():
        return
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        _tell(result, made.recipe.title, method)


def _check_demo_folder(out: Path) -> None:
    """The demo replaces a demo, nothing else."""
    if not is_main_process():
        return
    from ..engine.storage.run_folder import empty, refuse_impossible

    refuse_impossible(out)
    if empty(out):
        return
    if not str(run_record(out).get("command", "")).startswith("limbeck demo"):
        raise LimbeckError(f"--out {out}: it holds something else than an earlier demo; name another folder.")


def _tell(result: Result, title: str, method: str) -> None:
    console = screen()
    plain(console)
    for line in story(title, result):
        plain(console, line)
    plain(console)
    nexts = [
        (f"open {result.report}", "the whole story: curves, intervals, where the two disagree")
        if result.report
        else None,
        (f"limbeck explain {method}", "what this method computes, and from which paper"),
        ("limbeck methods", "the other methods; `limbeck demo --method NAME` tries one"),
        ("limbeck train --help", "your own models and problems:"),
    ]
    plain(console, "What next", "bold")
    for command, why in filter(None, nexts):
        plain(console, f"  {command}", "cyan")
        plain(console, f"      {why}")
    own = f"limbeck train {method} --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B --task problems.jsonl"
    plain(console, f"      {own}", "cyan")


def story(title: str, result: Result) -> list[str]:
    """What happened, in plain words; only what was measured is told."""
    before, after = result.before or {}, result.after or {}
    lines = [f"{title}, {result.steps:,} steps. The student, as it is now, lies in {result.student}."]
    if "accuracy" in before and "accuracy" in after:
        lines.append(
            f"Of {after.get('n', 'the')} problems it had not seen it solved {_share(before)} before and "
            f"{_share(after)} after (95% intervals in brackets)."
        )
        lines += _verdict(before.get("correct") or [], after.get("correct") or [])
    if before.get("kl_reverse") is not None and after.get("kl_reverse") is not None:
        nearer = "nearer to" if after["kl_reverse"] < before["kl_reverse"] else "further from"
        lines.append(
            f"It is {nearer} its teacher than it was: {before['kl_reverse']:.3f} nats a token before, "
            f"{after['kl_reverse']:.3f} after (reverse KL; 0 is the teacher itself)."
        )
    return lines


def _verdict(before: Sequence[float], after: Sequence[float]) -> list[str]:
    """Whether the change is more than chance, problem by problem; nothing where that is not known."""
    from ..evaluate import paired_interval

    if len(before) != len(after) or len(before) < 2:
        return []
    change = paired_interval(before, after)
    if change.low <= 0 <= change.high:
        return ["That change may be chance: its own interval contains 0. More steps would tell."]
    return [f"That is {'better' if change.mean > 0 else 'worse'}, and more than chance."]


def _share(numbers: Mapping[str, Any]) -> str:
    text = f"{numbers['accuracy']:.1%}"
    return f"{text} [{numbers['low']:.1%} to {numbers['high']:.1%}]" if {"low", "high"} <= numbers.keys() else text


def _typed(ctx: typer.Context) -> str:
    """The command as it was typed, to be written into the run."""
    return shlex.join(["limbeck", *ctx.find_root().obj])


def _quiet(asked: bool) -> bool:
    return asked or not is_main_process()
