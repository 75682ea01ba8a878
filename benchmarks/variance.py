"""Gradient variance of three estimators of the same reverse KL: full vocabulary, vOPD, sampled token.

At the embedded student's first weights, on the same prompts, ``DRAWS`` gradients each; the trace of their covariance
over the squared norm of their mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from limbeck.axes import log_ratio, ratio, sample, student, teacher, token_mean
from limbeck.engine.build import prepare_tasks
from limbeck.engine.config import configure
from limbeck.engine.run import _Run
from limbeck.evaluate import mean_interval, paired_interval
from limbeck.space.method import Method
from limbeck.space.registry import get
from limbeck.space.term import Term

DRAWS = 24
ARMS: dict[str, Method] = {
    "full vocabulary": get("opd_full")(group=8),
    "vOPD": get("vopd")(group=8),
    "sampled token": Method(sample(student, 8, check=False), Term(log_ratio(teacher, student), ratio), token_mean),
}


def measure(name: str, seed: int, out: Path) -> float:
    """log10 of the relative variance."""
    settings: dict[str, Any] = {
        "student": "embedded",
        "teacher": "embedded",
        "task": "two_digit_sums",
        "prompts": 8,
        "max_tokens": 40,
        "clip_norm": 1e9,
        "seed": seed,
        "diagnostics": False,
        "eval_size": 0,
    }
    config = configure("opd_full", settings)
    run = _Run(config, ARMS[name], prepare_tasks(config, ARMS[name]), {}, out, Console(quiet=True))
    run.optimizer.step = lambda *_, **__: None
    gradients = []
    for draw in range(DRAWS):
        run.session.streams["task"].cursor = 0
        run.loop.step(draw)
        gradients.append(
            torch.cat([p.grad.flatten() for p in run._module().parameters() if p.grad is not None]).double()
        )
    stacked = torch.stack(gradients)
    return float((stacked.var(0).sum() / stacked.mean(0).square().sum()).log10())


def table(seeds: list[int], out: Path) -> str:
    """The results as Markdown; stored, so that a second call only prints."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "variance.json"
    known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    for seed in seeds:
        for name in ARMS:
            if str(seed) not in known.get(name, {}):
                known.setdefault(name, {})[str(seed)] = measure(name, seed, out / "variance")
                file.write_text(json.dumps(known, indent=1))
    lines = ["| estimator | log10 relative variance | minus sampled token |", "| --- | --- | --- |"]
    for name, values in known.items():
        m = mean_interval(list(values.values()))
        d = paired_interval([known["sampled token"][s] for s in values], list(values.values()))
        gain = "–" if name == "sampled token" else f"{d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"
        lines.append(f"| {name} | {m.mean:.2f} [{m.low:.2f}, {m.high:.2f}] | {gain} |")
    return "\n".join(lines) + "\n"
