"""``limbeck demo``: a short run of the embedded models, with a summary in plain sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LimbeckError
from ..processes import is_main_process
from ..terminal import screen
from .exits import stoppable
from .options import Json, typed_command
from .output import engine_console, print_json, print_line
from .settings import check, run_config, run_record
from .threads import limit_threads

if TYPE_CHECKING:
    from ..engine import Result

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
"""Settings of the demo (ours); ``arguments`` are by method, so that another method runs with its own defaults."""

DEMO_OUT = Path("runs/demo")


def demo(
    ctx: typer.Context,
    method: Annotated[str, typer.Option(help="The method; `limbeck methods` lists them.")] = DEMO["method"],
    steps: Annotated[int, typer.Option(help="Number of training steps.")] = DEMO["steps"],
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same run.")] = DEMO["seed"],
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier demo in it is replaced.")] = DEMO_OUT,
    as_json: Json = False,
) -> None:
    """Train a small student on sums with a small teacher. Both come with Limbeck, and a laptop is enough.

    It shows what a run prints and writes, and then how to use your own models.

    [bold]Examples[/]

    [cyan]limbeck demo[/]
    [cyan]limbeck demo --method gkd --steps 30[/]
    """
    settings = {k: v for k, v in DEMO.items() if k not in ("method", "arguments")}
    own = DEMO["arguments"].get(method, {})
    made = run_config(method, {**settings, "steps": steps, "seed": seed, "arguments": own}, None, [])
    value = check(made)
    _check_folder(out)
    with engine_console(as_json=as_json, quiet=not is_main_process()) as console, stoppable(out):
        from .. import engine

        limit_threads()
        result = engine.train(made, out, command=typed_command(ctx), overwrite=True, console=console, method=value)
    if not is_main_process():
        return
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        _print_result(result, made.recipe.title, method)


def _check_folder(out: Path) -> None:
    """Refuse a folder with anything but an earlier demo, because the demo replaces it."""
    if not is_main_process():
        return
    from ..engine.storage.run_folder import empty, refuse_impossible

    refuse_impossible(out)
    if empty(out):
        return
    if not str(run_record(out).get("command", "")).startswith("limbeck demo"):
        raise LimbeckError(f"--out {out}: the folder holds something other than an earlier demo; name another folder.")


def _print_result(result: Result, title: str, method: str) -> None:
    console = screen()
    print_line(console)
    for line in story(title, result):
        print_line(console, line)
    print_line(console)
    nexts = [
        (f"open {result.report}", "the report: curves, intervals, and the tokens where student and teacher disagree")
        if result.report
        else None,
        (f"limbeck explain {method}", "what this method computes, and from which paper"),
        ("limbeck methods", "the other methods; `limbeck demo --method NAME` tries one"),
        ("limbeck train --help", "train your own models on your own problems:"),
    ]
    print_line(console, "What next", "bold")
    for command, why in filter(None, nexts):
        print_line(console, f"  {command}", "cyan")
        print_line(console, f"      {why}")
    own = f"limbeck train {method} --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B --task problems.jsonl"
    print_line(console, f"      {own}", "cyan")


def story(title: str, result: Result) -> list[str]:
    """The result in plain sentences; measures that were not taken are left out."""
    before, after = result.before or {}, result.after or {}
    lines = [f"{title}, {result.steps:,} steps. The trained student is in {result.student}."]
    if "accuracy" in before and "accuracy" in after:
        lines.append(
            f"It solved {_share(before)} of {after.get('n', 'the')} held-out problems before training and "
            f"{_share(after)} after (95% intervals in brackets)."
        )
        lines += _verdict(before.get("correct") or [], after.get("correct") or [])
    if before.get("kl_reverse") is not None and after.get("kl_reverse") is not None:
        nearer = "closer to" if after["kl_reverse"] < before["kl_reverse"] else "further from"
        lines.append(
            f"It is {nearer} its teacher than before: the reverse KL was {before['kl_reverse']:.3f} nats per token and "
            f"is now {after['kl_reverse']:.3f} (0 means identical to the teacher)."
        )
    return lines


def _verdict(before: Sequence[float], after: Sequence[float]) -> list[str]:
    """Whether the paired change is larger than chance; empty where the verdicts of each problem are not known."""
    from ..evaluate import paired_interval

    if len(before) != len(after) or len(before) < 2:
        return []
    change = paired_interval(before, after)
    if change.low <= 0 <= change.high:
        return ["The change may be chance: its 95% interval contains 0. More steps would help."]
    return [f"The student is {'better' if change.mean > 0 else 'worse'}, by more than chance."]


def _share(numbers: Mapping[str, Any]) -> str:
    text = f"{numbers['accuracy']:.1%}"
    return f"{text} [{numbers['low']:.1%} to {numbers['high']:.1%}]" if {"low", "high"} <= numbers.keys() else text
