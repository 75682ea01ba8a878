"""Multi-turn drift, tabular: does on-policy distillation degrade with the horizon, and do SOD and TCOD repair it?

A chain of T turns of ``K`` tokens. One action out of V is right; a turn with a wrong token derails, and a derailed
episode stays so. The teacher knows the track and knows nothing off it: there its law is random and sharp, another one
at every turn (the papers' premise: a teacher is reliable only near its own trajectories). The student is a table with
shared parts: logits = W[turn] + S[turn // 4] + C, plus D where derailed, so what it learns off the track moves it on
the track too. It starts with a chance of ``START`` of surviving a turn.

The result is the exact chance of reaching the end. Everything goes through ``lb.objective``::

    python benchmarks/drift.py            # a quarter of an hour on one core
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

import limbeck as lb
from limbeck.evaluate import mean_interval

V, K, EPISODES, STEPS, LR, START = 6, 4, 32, 800, 0.03, 0.8
HORIZONS = (4, 16, 32)


class Table(torch.nn.Module):
    """Logits per turn, on or off the track."""

    def __init__(self, horizon: int):
        super().__init__()
        self.own = torch.nn.Parameter(torch.zeros(horizon, V))
        self.shared = torch.nn.Parameter(torch.zeros(math.ceil(horizon / 4), V))
        self.common = torch.nn.Parameter(torch.zeros(V))
        self.off = torch.nn.Parameter(torch.zeros(horizon, V))
        token = START ** (1 / K)
        right = math.log(token / (1 - token) * (V - 1))
        with torch.no_grad():
            self.common[0] = right  # action 0 is right

    def forward(self) -> Tensor:
        """``[2, T, V]``: on the track, and off it."""
        on = self.own + self.shared.repeat_interleave(4, 0)[: self.own.shape[0]] + self.common
        return torch.stack([on, on + self.off])


def teacher(horizon: int, seed: int) -> Tensor:
    """``[2, T, V]`` log-probs: nearly sure on the track, sharp and random off it."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.zeros(horizon, V)
    on[:, 0] = 6.0
    off = 4.0 * torch.randn(horizon, V, generator=generator)
    return torch.stack([on, off]).log_softmax(-1)


def play(logits: Tensor, turns: int) -> tuple[Tensor, Tensor]:
    """Actions and derailment ``[B, turns * K]`` of a batch of episodes."""
    law = logits.detach().softmax(-1)
    off, actions, derailed = torch.zeros(EPISODES, dtype=torch.int64), [], []
    for t in range(turns):
        action = torch.multinomial(law[off, t], K, replacement=True)
        derailed.append(off[:, None].expand(-1, K))
        actions.append(action)
        off = torch.maximum(off, (action != 0).any(1).long())
    return torch.cat(actions, 1), torch.cat(derailed, 1)


def run(name: str, horizon: int, seed: int) -> float:
    """Train by one method; the chance of reaching the end."""
    torch.manual_seed(seed)
    student, guide = Table(horizon), teacher(horizon, seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=LR)
    method = {
        "OPD": lb.methods.tcod(start=horizon),
        "SOD": lb.methods.sod(coef=1.0),
        "OPD + GRPO": lb.methods.kdrl_shaping(coef=1.0),
        "GRPO": lb.methods.sod(coef=0.0),
        "TCOD": lb.methods.tcod(start=1, every=max(1, STEPS // horizon)),
    }[name]
    objective = lb.objective(method)
    for step in range(STEPS):
        limit = method.sources["main"].turns.at(step)  # type: ignore[attr-defined]
        turns = horizon if name != "TCOD" else max(1, min(horizon, int(limit)))
        actions, off = play(student(), turns)
        t = torch.arange(turns).repeat_interleave(K).expand_as(actions)
        reward = ((off[:, -1] == 0) & (actions[:, -K:] == 0).all(1)).float()
        extra = {} if name in ("GRPO",) else {"teacher_logits": guide[off, t]}
        given = {"reward": reward} if name in ("SOD", "OPD + GRPO", "GRPO") else {}
        loss = objective(student()[off, t], actions, turn=t, step=step, **extra, **given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((K * student()[0].detach().softmax(-1)[:, 0].log().sum()).exp())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    print("| method | " + " | ".join(f"T = {h}" for h in HORIZONS) + " |\n| --- |" + " --- |" * len(HORIZONS))
    print("| before | " + " | ".join(f"{START**h:.3f}" for h in HORIZONS) + " |")
    reached: dict[str, list[list[float]]] = {}
    for name in ("OPD", "TCOD", "GRPO", "OPD + GRPO", "SOD"):
        reached[name] = [[run(name, horizon, seed) for seed in range(arguments.seeds)] for horizon in HORIZONS]
        cells = [mean_interval(x) for x in reached[name]]
        print(f"| {name} | {' | '.join(f'{m.mean:.3f} [{max(m.low, 0):.3f}, {min(m.high, 1):.3f}]' for m in cells)} |")
    for name, other in (("TCOD", "OPD"), ("SOD", "OPD + GRPO")):
        pairs = zip(reached[name], reached[other], strict=True)
        cells = [mean_interval([x - y for x, y in zip(*pair, strict=True)]) for pair in pairs]
        text = " | ".join(f"{m.mean:+.3f} [{m.low:+.3f}, {m.high:+.3f}]" for m in cells)
        print(f"| {name} − ({other}), by seed | {text} |")


if __name__ == "__main__":
    main()
