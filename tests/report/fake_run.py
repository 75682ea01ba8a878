"""A run folder as the engine writes it, made up from smooth curves and a fixed seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RUN: dict[str, Any] = {
    "method": "kdrl",
    "title": "KDRL",
    "paper": "arXiv:2506.02208",
    "formula": "J = E_y~student [ clip(ρ, 1±0.2) · A ]\n    − coef · k2(log student − log teacher)",
    "command": "limbeck run kdrl --student tiny --teacher small --task arithmetic --set coef=0.002 --seed 7",
    "config": {"optimiser": {"lr": 1e-4, "betas": [0.9, 0.95]}, "group": 8, "steps": 120},
    "seed": 7,
    "versions": {"limbeck": "0.1.0", "torch": "2.13.0"},
    "machine": {"cpu": "Xeon", "cores": 2, "gpu": None},
    "student": "tiny",
    "teacher": "small",
    "task": "arithmetic",
    "started": "2026-01-02T10:00:00+00:00",
    "finished": "2026-01-02T10:09:10+00:00",
    "parameters": {"student": 1_234_567, "teacher": 12_345_678},
    "git": "abc1234",
    "terms": {"1": "clip(0.2, 0.2)[standardise_group(sum_sequence(reward))]", "2": "sampled(k2)[log π_teacher]"},
    "notices": ["note: without --student, the student is 'tiny'."],
    "warnings": [
        {
            "what": "groups",
            "sentence": "No group had a signal: all responses to a prompt earned the same reward.",
            "first_step": 3,
            "steps": 7,
        }
    ],
    "teacher_accuracy": {"accuracy": 0.75, "n": 256, "interval": [0.693, 0.799]},
}


def metrics(steps: int) -> list[dict[str, Any]]:
    """One row for each step; accuracy rises and KL falls."""
    dice = random.Random(0)
    rows = []
    for step in range(1, steps + 1):
        x = step / max(steps, 1)
        accuracy = 0.12 + 0.5 / (1 + math.exp(6 - 12 * x)) + dice.gauss(0, 0.04)
        rows.append(
            {
                "step": step,
                "loss": 0.3 - 0.2 * x + dice.gauss(0, 0.03),
                "reward": accuracy + 0.1,
                "accuracy": min(max(accuracy, 0), 1),
                "kl_forward": 0.9 * math.exp(-2 * x) + dice.gauss(0, 0.02),
                "kl_reverse": 0.6 * math.exp(-2 * x) + dice.gauss(0, 0.02) if step % 7 else None,
                "entropy": 1.2 - 0.7 * x + dice.gauss(0, 0.03),
                "length": 40 - 10 * x + dice.gauss(0, 1),
                "lr": 1e-4,
                "grad_norm": 1 + dice.random() if step != 5 else math.nan,
                "seconds": 4.0,
                "seconds_write": 2.5,
                "seconds_read": 0.5,
                "seconds_train": 0.9,
                "tokens_written": 2000,
                "tokens_read": 2100,
                "coef/1": 5e-3 - 4e-3 * x,
                "term/1/loss": 0.1,
                "term/1/gradient_share": 0.7 - 0.2 * x,
                "term/2/gradient_share": 0.3 + 0.2 * x,
                "groups_with_signal": 0.3 + 0.4 * x,
                "truncated": 0.0,
                "ended": 1.0,
                "term/2/loss": 0.2 - 0.1 * x,
            }
        )
    return rows


def evaluations(steps: int) -> list[dict[str, Any]]:
    """Five held-out evaluations of 256 problems."""
    points = [(round(steps * i / 4), (32, 50, 90, 140, 160)[i]) for i in range(5)]
    return [
        {
            "step": step,
            "accuracy": correct / 256,
            "n": 256,
            "reward": correct / 256 + 0.1,
            "kl_forward": 0.9 - 0.15 * i,
            "kl_reverse": 0.6 - 0.1 * i,
            "entropy": 1.2 - 0.15 * i,
            "length": 40 - 2.5 * i,
            "perplexity": 1.4 - 0.05 * i,
            "kl_forward_interval": [0.82 - 0.15 * i, 0.98 - 0.15 * i],
            "kl_reverse_interval": [0.55 - 0.1 * i, 0.65 - 0.1 * i],
            "entropy_interval": [1.1 - 0.15 * i, 1.3 - 0.15 * i],
        }
        for i, (step, correct) in enumerate(points)
    ]


def samples(count: int = 10) -> list[dict[str, Any]]:
    """Rollouts with a few tokens on which student and teacher disagree."""
    dice = random.Random(1)
    sentence = "First , add 17 and 25 .\n17 + 25 = 42 , so the total is 42 .\n#### 42 <|im_end|>"
    words = sentence.split(" ")
    rows = []
    for i in range(count):
        tokens = [("" if j == 0 else " ") + w for j, w in enumerate(words * (1 + i % 3))]
        kl = [dice.expovariate(1) ** 3 * 0.05 for _ in tokens]
        student = [-dice.expovariate(3) for _ in tokens]
        rows.append(
            {
                "prompt": f"What is {i} + 42?\nThink, then answer.",
                "response": "".join(tokens),
                "tokens": tokens,
                "student_logp": student,
                "teacher_logp": [
                    s - k if dice.random() < 0.5 else s + min(k, -s) for s, k in zip(student, kl, strict=True)
                ],
                "kl": kl,
                "entropy": [dice.random() for _ in tokens],
                "reward": float(i % 3 > 0),
                "correct": i % 3 > 0,
                "answer": "42" if i else None,
            }
        )
    return rows


def write(
    folder: Path,
    run: Mapping[str, Any] = RUN,
    metrics: Iterable[Any] = (),
    evaluations: Iterable[Any] = (),
    samples: Iterable[Any] = (),
) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    for name, rows in (("metrics", metrics), ("evaluations", evaluations), ("samples", samples)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def whole(folder: Path, steps: int = 120) -> Path:
    """A run that finished."""
    return write(folder, RUN, metrics(steps), evaluations(steps), samples())
