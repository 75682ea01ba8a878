"""``limbeck train --dry-run``: what a run would do, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from .docstrings import read
from .out import plain

LONGEST = 1500
"""Characters of a rendered prompt that are shown; ``--json`` has all of them."""


def document(found: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document: what the engine found, with the method's docstring cut to its sentence."""
    method = {k: v for k, v in found["method"].items() if k != "doc"}
    return {**found, "method": {**method, "sentence": _sentence(found["method"]["doc"])}}


def _sentence(doc: str) -> str:
    return read(doc).summary


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print it in sections."""
    method = found["method"]
    plain(console, f"Dry run of {method['title'] or method['name']}", "bold")
    paper = f" ({method['paper']})" if method["paper"] else ""
    plain(console, f"{_sentence(method['doc'])}{paper}")
    for title, lines in (
        ("Models", _models(found["models"])),
        ("Data", _data(found["data"])),
        ("One step", _step(found["step"])),
        ("Memory", _memory(found["memory"])),
        ("Time", _time(found["time"], found["step"]["steps"])),
        ("Settings that differ from the defaults", [f"{k} = {v!r}" for k, v in found["settings"].items()] or ["none"]),
    ):
        plain(console)
        plain(console, title, "bold")
        for line in lines:
            plain(console, f"  {line}")
    _prompts(console, found["prompts"])
    for note in found["notes"]:
        plain(console)
        plain(console, note, "yellow")
    plain(console)
    plain(console, "Nothing was trained or written. Leave out --dry-run to start the run.")


def _models(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for role, model in models.items():
        size = f"{model['parameters']:,} parameters"
        if model["bytes"] is not None:
            types = " and ".join(sorted(model["types"]))
            size += f", {_bytes(model['bytes'])} on disk ({types})"
        trained = f", {model['trained']:,} of them trained" if model["trained"] else ""
        yield f"{role}: {model['spec']} ({model['kind']}, {size}{trained})"


def _data(data: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, split in data.items():
        what = "" if name == "task" else f"{name}: "
        serves = f"; it gives {', '.join(split['serves'])}" if split["serves"] else ""
        yield f"{what}{split['task']}, {split['training']:,} training prompts, {split['held_out']:,} held out{serves}"


def _step(step: Mapping[str, Any]) -> Iterator[str]:
    yield from step["sources"]
    tokens = f"{step['prompt_tokens']:,} tokens of prompts (the longest has {step['longest_prompt']:,})"
    limit = "at most " if step["written_tokens"] else ""
    yield f"{step['sequences']:,} sequences: {tokens} and {limit}{step['response_tokens']:,} of responses"
    updates = step["updates"]
    yield f"{updates} optimiser update{'' if updates == 1 else 's'} a step, {step['steps']:,} steps"


def _memory(memory: Mapping[str, int]) -> Iterator[str]:
    total, training, models, work = (_bytes(memory[k]) for k in ("total", "training", "models", "work"))
    yield (
        f"about {total}: {training} for what is trained (weights, gradients, AdamW), {models} for other weights, and "
        f"up to {work} for activations or the cache of generation"
    )
    yield (
        "weights are held in float32; for less, lower micro_tokens or generate_batch, or set gradient_checkpointing or "
        "lora_rank"
    )


def _time(time: Mapping[str, Any], steps: int) -> Iterator[str]:
    factor, speed = time["factor"], time["speed"]
    low, high = time["total"] / factor, time["total"] * factor
    yield (
        f"about {_duration(time['total'])} for {steps:,} steps ({_duration(time['step'])} each) and the evaluations "
        f"({_duration(time['evaluation'])} each); between {_duration(low)} and {_duration(high)}"
    )
    yield (
        f"estimated from the numbers above, with responses at their full length, and the speed of this machine "
        f"({speed['device']}: {speed['flops'] / 1e9:,.0f} GFLOP/s in matrix products, "
        f"{speed['bytes'] / 1e9:,.3g} GB/s of memory); "
        f"right within a factor of {factor}, and too high where responses end early"
    )


def _prompts(console: Console, prompts: Sequence[Mapping[str, Any]]) -> None:
    plain(console)
    plain(console, "The first prompts, as the student reads them", "bold")
    for prompt in prompts:
        text = prompt["text"]
        cut = f"\n... ({len(text) - LONGEST:,} more characters)" if len(text) > LONGEST else ""
        plain(console, f"  {prompt['id']} ({prompt['tokens']:,} tokens)", "cyan")
        for line in f"{text[:LONGEST]}{cut}".splitlines():
            plain(console, f"    {line}")


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if n >= 10 or unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:,.0f} days"
