"""KDRL's claims at small scale: GRPO, distillation, and KDRL constant, annealed and gated, on the embedded pair.

Every method gets the same number of written tokens, the same prompts and the same learning rate; five seeds each; the
table holds 95 % Student intervals and the paired difference to GRPO. About 20 minutes on two idle cores, as two
processes with one thread each (--only)::

    python benchmarks/claims.py --out runs/claims
    python benchmarks/claims.py --out runs/claims --seeds 1 --tokens 50000    # a quick look

A finished run in --out is not run again, so a stopped benchmark goes on where it was. The table is written to
``claims.md`` and ``claims.json`` in --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

import limbeck as lb
from limbeck.evaluate import mean_interval, paired_interval

# KDRL's coefficients times 100: the paper's (2e-3; 5e-3 to 1e-3) belong to rewards and log-ratios of long maths
# reasoning. The ratios between them, and the share of training after which the floor is reached (80 of 280 steps), are
# the paper's. The follow-up on logic tasks took 0.2 too. The learning rate was chosen on seed 100, which is not among
# the five, as the best of 1e-4, 2e-4, 3e-4 and 5e-4 for GRPO; it was KD-RKL's best too.
CONSTANT = 0.2
ANNEALED = "anneal(0.5, 0.1, 0.013)"

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRPO": ("grpo", {"ref_coef": 0.0, "reduction": "token_mean"}),
    "KD-RKL": ("opd", {"group": 8}),
    "KDRL constant": ("kdrl", {"coef": CONSTANT}),
    "KDRL annealed": ("kdrl", {"coef": ANNEALED}),
    "KDRL response gate": ("kdrl", {"coef": CONSTANT, "gate": "response"}),
}
COMMON: dict[str, Any] = {
    "student": "embedded",
    "teacher": "embedded",
    "task": "two_digit_sums",
    "prompts": 16,
    "max_tokens": 40,
    "lr": 1e-4,
    "warmup": 10,
    "eval_size": 500,
    "save_every": 0,
}


def run(name: str, seed: int, tokens: int, out: Path) -> dict[str, Any]:
    """One run, or its result where it is already there."""
    method, arguments = METHODS[name]
    folder = out / f"{name.replace(' ', '_').replace('(', '').replace(')', '')}-{seed}"
    done = folder / "result.json"
    if not done.exists():
        settings = {**COMMON, **arguments, "seed": seed, "token_budget": tokens, "steps": 10_000}
        result = lb.distill(method, out=folder, overwrite=True, quiet=True, **settings)
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert result.before is not None
        assert result.after is not None
        keys = ("accuracy", "kl_reverse", "kl_forward", "entropy", "length")
        record = {
            "method": name,
            "seed": seed,
            "steps": result.steps,
            "tokens": sum(m["tokens_written"] for m in metrics),
            "seconds": sum(m["seconds"] for m in metrics),
            "before": {k: result.before[k] for k in keys},
            "after": {k: result.after[k] for k in keys},
        }
        done.write_text(json.dumps(record, indent=1))
    loaded: dict[str, Any] = json.loads(done.read_text())
    return loaded


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| method | seeds | accuracy after | minus GRPO (paired) | KL reverse, nats | entropy | length | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = {r["seed"]: r["after"]["accuracy"] for r in results if r["method"] == "GRPO"}
    for name in METHODS:
        rows = [r for r in results if r["method"] == name]
        if not rows:
            continue
        accuracy = mean_interval([r["after"]["accuracy"] for r in rows])
        paired = [(base[r["seed"]], r["after"]["accuracy"]) for r in rows if r["seed"] in base]
        gain = "—"
        if name != "GRPO" and len(paired) > 1:
            d = paired_interval([a for a, _ in paired], [b for _, b in paired])
            gain = f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        mean = {k: mean_interval([r["after"][k] for r in rows]).mean for k in ("kl_reverse", "entropy", "length")}
        tokens = mean_interval([float(r["tokens"]) for r in rows]).mean
        lines.append(
            f"| {name} | {len(rows)} | {accuracy.mean:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] | {gain} | "
            f"{mean['kl_reverse']:.3f} | {mean['entropy']:.3f} | {mean['length']:.1f} | {tokens:,.0f} |"
        )
    before = mean_interval([r["before"]["accuracy"] for r in results])
    lines += ["", f"Before training: accuracy {before.mean:.3f} (the same student; held-out problems differ by seed)."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="run these seeds alone (to use several processes)")
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens the student writes in a run")
    arguments = parser.parse_args()
    jobs = [(name, seed) for seed in arguments.only or range(arguments.seeds) for name in METHODS]
    results = []
    for name, seed in track(jobs, "runs", console=Console(stderr=True)):
        results.append(run(name, seed, arguments.tokens, arguments.out))
        (arguments.out / "claims.json").write_text(json.dumps(results, indent=1))
        (arguments.out / "claims.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
