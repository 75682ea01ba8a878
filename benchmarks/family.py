"""Claims of the on-policy and self-distillation family at small scale, on the embedded pair.

Every experiment has five seeds, equal written tokens and a table with 95 % Student intervals::

    python benchmarks/family.py tokens    --out runs/family     # TIP: which tokens matter
    python benchmarks/family.py extra     --out runs/family     # ExOPD: below, at and beyond the teacher
    python benchmarks/family.py direction --out runs/family     # forward or reverse KL, whose prefix, and RL afterwards
    python benchmarks/family.py self      --out runs/family     # privileged self-distillation against GRPO
    python benchmarks/family.py gentle    --out runs/family     # the same at a fifth of the learning rate
    python benchmarks/family.py variance  --out runs/family     # gradient variance of three estimators

A finished run in --out is not run again. ``--only 0 2 4`` runs some seeds (for several processes). ``drift.py`` has the
multi-turn experiment, which is tabular.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import privileged_student
import torch
import variance
from limbeck.space.term import Term
from rich.console import Console
from rich.progress import track

import limbeck as lb
from limbeck.axes import divergence_loss, entropy, old, sample, student, teacher, token_mean, top
from limbeck.evaluate import mean_interval, paired_interval
from limbeck.math.divergence import rkl
from limbeck.space.method import Method

COMMON: dict[str, Any] = {
    "student": "embedded",
    "teacher": "embedded",
    "task": "two_digit_sums",
    "prompts": 16,
    "max_tokens": 40,
    "lr": 3e-4,
    "warmup": 10,
    "eval_size": 500,
    "save_every": 0,
    "steps": 10_000,
}


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: in the table.
        method: a registered name, or a value.
        settings: that differ from ``COMMON``.
        after: an arm whose student it starts from.
    """

    name: str
    method: str | Method
    settings: dict[str, Any] = field(default_factory=dict)
    after: str = ""


def _bottom_half() -> Method:
    """The control of TIP: the half of the tokens with the least entropy."""
    return Method(
        sample(student, 8, check=False), Term(teacher, divergence_loss(rkl), top(0.0 - entropy(old), 0.5)), token_mean
    )


GROUP = {"group": 8}
RL = {"ref_coef": 0.0, "reduction": "token_mean", "lr": 1e-4}

EXPERIMENTS: dict[str, tuple[int, list[Arm]]] = {
    "tokens": (
        60_000,
        [
            Arm("all tokens", "opd_full", GROUP),
            Arm("50 % by entropy", "tip_entropy", GROUP),
            Arm("50 % by Soft-OR", "tip", GROUP),
            Arm("10 % confidently wrong", "tip_q3", {**GROUP, "rho": 0.1}),
            Arm("50 % least entropy", _bottom_half()),
        ],
    ),
    "extra": (
        80_000,
        [Arm(f"λ = {lam:g}", "exopd", {**GROUP, "lam": lam}) for lam in (1.0, 0.5, 1.25, 2.0, 4.0)],
    ),
    "direction": (
        100_000,
        [
            Arm("student prefix, forward", "decoupled_kl", {**GROUP, "lam": 0.0}),
            Arm("student prefix, reverse", "decoupled_kl", {**GROUP, "lam": 1.0}),
            Arm("teacher prefix, forward", "decoupled_kl", {**GROUP, "lam": 0.0, "student_prefix": False}),
            Arm("teacher prefix, reverse", "decoupled_kl", {**GROUP, "lam": 1.0, "student_prefix": False}),
            Arm("GRPO after forward", "grpo", RL, after="student prefix, forward"),
            Arm("GRPO after reverse", "grpo", RL, after="student prefix, reverse"),
        ],
    ),
    "self": (
        60_000,
        [
            Arm("GRPO", "grpo", RL),
            Arm("OPSD", "opsd", {**GROUP, "lr": 1e-4}),
            Arm("SDPO", "sdpo", {"lr": 1e-4}),
            Arm("SRPO", "srpo", {"lr": 1e-4}),
        ],
    ),
    "gentle": (
        60_000,
        [
            Arm("GRPO", "grpo", {**RL, "lr": 2e-5}),
            Arm("OPSD", "opsd", {**GROUP, "lr": 2e-5}),
            Arm("SDPO", "sdpo", {"lr": 2e-5}),
            Arm("SRPO", "srpo", {"lr": 2e-5}),
        ],
    ),
}
SELF = ("self", "gentle")
"""Experiments on a student that can read what stands in its prompt."""


def run(experiment: str, arm: Arm, seed: int, out: Path) -> dict[str, Any]:
    """One run, or its result where it is already there."""
    tokens = EXPERIMENTS[experiment][0]
    folder = out / experiment / f"{_slug(arm.name)}-{seed}"
    done = folder / "result.json"
    if not done.exists():
        settings = {**COMMON, **arm.settings, "seed": seed, "token_budget": tokens}
        if experiment in SELF:
            settings |= privileged_student.settings(out, lb.get(arm.method)())
        if arm.after:
            settings["student"] = str(out / experiment / f"{_slug(arm.after)}-{seed}" / "student")
        settings |= {"eval_size": {"direction": 500, "extra": 300}.get(experiment, 200)}
        settings |= {"eval_every": 10} if experiment in (*SELF, "extra") else {}
        result = lb.distill(arm.method, out=folder, overwrite=True, quiet=True, **settings)
        evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        keys = ("accuracy", "kl_reverse", "kl_forward", "entropy", "length")
        record = {
            "arm": arm.name,
            "seed": seed,
            "steps": result.steps,
            "before": {k: (result.before or {}).get(k) for k in keys},
            "after": {k: (result.after or {}).get(k) for k in keys},
            "curve": [[e["step"], e["accuracy"]] for e in evaluations],
        }
        done.write_text(json.dumps(record, indent=1))
    loaded: dict[str, Any] = json.loads(done.read_text())
    return loaded


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in name)


def table(experiment: str, results: list[dict[str, Any]]) -> str:
    """The results as Markdown; differences are to the first arm, paired by seed."""
    arms = [a.name for a in EXPERIMENTS[experiment][1]]
    by = {(r["arm"], r["seed"]): r["after"] for r in results}
    lines = [
        f"| arm | seeds | accuracy | minus {arms[0]} | entropy, nats | reverse KL, nats | best − last accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in arms:
        rows = [r for r in results if r["arm"] == name]
        if not rows:
            continue
        a = mean_interval([r["after"]["accuracy"] for r in rows])
        pairs = [
            (by[arms[0], r["seed"]]["accuracy"], r["after"]["accuracy"]) for r in rows if (arms[0], r["seed"]) in by
        ]
        gain = "–"
        if name != arms[0] and len(pairs) > 1:
            d = paired_interval([x for x, _ in pairs], [y for _, y in pairs])
            gain = f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        fall = mean_interval([max(y for _, y in r["curve"]) - r["curve"][-1][1] for r in rows]).mean
        mean = {k: mean_interval([r["after"][k] or 0.0 for r in rows]).mean for k in ("entropy", "kl_reverse")}
        lines.append(
            f"| {name} | {len(rows)} | {a.mean:.3f} [{a.low:.3f}, {a.high:.3f}] | {gain} | {mean['entropy']:.3f} | "
            f"{mean['kl_reverse']:.3f} | {fall:.3f} |"
        )
    before = mean_interval([r["before"]["accuracy"] for r in results if r["before"]["accuracy"] is not None])
    return "\n".join([*lines, "", f"Before: accuracy {before.mean:.3f}, mean over all runs."]) + "\n"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "variance"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="run these seeds alone (to use several processes)")
    arguments = parser.parse_args()
    seeds = list(arguments.only or range(arguments.seeds))
    if arguments.experiment == "variance":
        print(variance.table(seeds, arguments.out))
        return
    arms = EXPERIMENTS[arguments.experiment][1]
    jobs: list[Callable[[], dict[str, Any]]] = [
        lambda arm=arm, seed=seed: run(arguments.experiment, arm, seed, arguments.out)  # type: ignore[misc]
        for seed in seeds
        for arm in arms
    ]
    results = []
    for job in track(jobs, arguments.experiment, console=Console(stderr=True)):
        results.append(job())
        (arguments.out / f"{arguments.experiment}.md").write_text(table(arguments.experiment, results))
    print(table(arguments.experiment, results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
