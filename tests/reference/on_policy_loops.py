"""On-policy and self-distillation as plain loops, read off the papers. Shares no code with the library.

As in ``loops``: what carries gradient is a PyTorch number in float64, everything detached a Python float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from loops import Data, Number, advantages, exp, jsd, kl, law, log, ppo, ratio, token_mean


@dataclass
class Talk(Data):
    """A batch with turns, and with a view that sees what the student does not.

    ``view`` are the logits of that view, ``has`` whether there was anything to see; ``first`` is a column.
    """

    turn: list[list[int]] = field(default_factory=list)
    turn_reward: list[list[float]] = field(default_factory=list)
    view: list[list[list[float]]] = field(default_factory=list)
    has: list[bool] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def turns(self, i: int) -> list[list[int]]:
        """The kept tokens of each turn that has some, in order."""
        names = sorted({self.turn[i][t] for t in self.kept(i)})
        return [[t for t in self.kept(i) if self.turn[i][t] == k] for k in names]

    def paid(self, i: int) -> list[float]:
        """The rewards of those turns; a sequence with no kept token has one turn with all of its rewards."""
        names = sorted({self.turn[i][t] for t in self.kept(i)})
        return [self.turn_reward[i][k] for k in names] or [sum(self.turn_reward[i])]

    def now(self, i: int, t: int) -> float:
        return float(self.logq(i, t).detach())


def sod(d: Talk, coef: float, delta: float, low: float, high: float) -> Number:
    """SOD (arXiv:2605.07725): A + c w_k (log p - log old), w_k the clipped product of ratios of neighbouring drifts."""
    A, weight = advantages(d, d.reward), {}
    for i in d.sequences:
        drifts = [sum(abs(d.old[i][t] - d.logp(d.teacher, i, t)) for t in own) / len(own) for own in d.turns(i)]
        product = 1.0
        for k, own in enumerate(d.turns(i)):
            if k:
                product *= (drifts[k - 1] + 1e-6) / (drifts[k] + 1e-6)
            for t in own:
                weight[i, t] = min(product, 1 + delta) if k else 1.0

    def loss(i: int, t: int) -> Number:
        told = A[i] + coef * weight[i, t] * (d.logp(d.teacher, i, t) - d.old[i][t])
        return ppo(ratio(d, i, t), told, low, high)

    return token_mean(d, loss)


def tip(d: Talk, rho: float) -> Number:
    """TIP (arXiv:2604.14084): the rho tokens with the largest h + delta - h delta, both scaled to 0...1; on-policy."""
    h, gap = {}, {}
    for i, t in d.places:
        q = [float(x.detach()) for x in d.q(i, t)]
        h[i, t], gap[i, t] = -sum(x * math.log(x) for x in q), kl(q, law(d.teacher[i][t]))

    def scaled(x: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
        low, high = min(x.values()), max(x.values())
        return {at: (v - low) / (high - low) for at, v in x.items()}

    h, gap = scaled(h), scaled(gap)
    order = sorted(d.places, key=lambda at: -(1 - (1 - h[at]) * (1 - gap[at])))
    chosen = order[: max(1, int(rho * len(order)))]
    return token_mean(d, lambda i, t: kl(d.q(i, t), law(d.teacher[i][t])), chosen)


def exopd(d: Talk, lam: float, clip: float, dual: float, cap: float) -> Number:
    """G-OPD (arXiv:2602.12125): lambda (log T - log ref) - (log old - log ref) in a dual clip, times a weight."""

    def loss(i: int, t: int) -> Number:
        lt, lr = d.logp(d.teacher, i, t), d.logp(d.ref, i, t)
        A = lam * (lt - lr) - (d.old[i][t] - lr)
        value = ppo(ratio(d, i, t), A, clip, clip)
        if A < 0 and float(value) > -dual * A:
            value = torch.tensor(-dual * A, dtype=torch.float64)
        return min(math.exp(d.old[i][t] - d.behavior[i][t]), cap) * value

    return token_mean(d, loss)


def vopd(d: Talk, k: int) -> Number:
    """vOPD (arXiv:2605.07865): log T - log pi + KL_k at the student's k entries, normalised within; ratio."""

    def loss(i: int, t: int) -> Number:
        q, p = [float(x.detach()) for x in d.q(i, t)], law(d.teacher[i][t])
        top = sorted(range(len(q)), key=lambda v: -q[v])[:k]
        qk, pk = [q[v] / sum(q[w] for w in top) for v in top], [p[v] / sum(p[w] for w in top) for v in top]
        A = d.logp(d.teacher, i, t) - d.now(i, t) + kl(qk, pk)
        return -ratio(d, i, t) * A

    return token_mean(d, loss)


def bucketed(d: Talk, i: int, t: int, k: int) -> tuple[list[float], list[Number]]:
    """The view's and the student's laws over the student's k likeliest entries and the rest."""
    q, p = d.q(i, t), law(d.view[i][t])
    top = sorted(range(len(q)), key=lambda v: -float(q[v]))[:k]
    return [*(p[v] for v in top), 1 - sum(p[v] for v in top)], [*(q[v] for v in top), 1 - sum(q[v] for v in top)]


def weight(d: Talk, i: int, t: int, cap: float) -> float:
    """SDPO's two capped importance weights."""
    return min(math.exp(d.now(i, t) - d.old[i][t]), cap) * min(math.exp(d.old[i][t] - d.behavior[i][t]), cap)


def sdpo(d: Talk, k: int, cap: float) -> Number:
    """SDPO (arXiv:2601.20802): JSD_.5 to the view on the samples that have one, over their tokens."""
    told = [(i, t) for i, t in d.places if d.has[i]]
    return token_mean(d, lambda i, t: weight(d, i, t, cap) * jsd(*bucketed(d, i, t, k), 0.5), told)


def srpo(d: Talk, beta: float, k: int, cap: float) -> Number:
    """SRPO (arXiv:2604.02288): wrong samples with a view are distilled by its certainty, others get GRPO; one sum."""
    A = advantages(d, d.reward)
    routed = [(i, t) for i, t in d.places if d.has[i] and not d.correct[i]]

    def sure(i: int, t: int) -> float:
        p = law(d.view[i][t])
        return math.exp(-beta * -sum(x * math.log(x) for x in p))

    mean = sum(sure(i, t) for i, t in routed) / max(len(routed), 1)

    def loss(i: int, t: int) -> Number:
        if (i, t) in routed:
            return sure(i, t) / mean * weight(d, i, t, cap) * jsd(*bucketed(d, i, t, k), 0.5)
        return ppo(ratio(d, i, t), A[i], 0.2, 0.28)

    return token_mean(d, loss)


def skill_sd(d: Talk, lam: float) -> Number:
    """Skill-SD (arXiv:2604.10674): GRPO + lambda rho k3(l), l = log pi - log view."""
    A = advantages(d, d.reward)

    def loss(i: int, t: int) -> Number:
        gap = d.logq(i, t) - d.logp(d.view, i, t)
        rho = ratio(d, i, t)
        return ppo(rho, A[i], 0.2, 0.28) + lam * rho * (exp(-gap) - 1 + gap)

    return token_mean(d, loss)


def distil(d: Talk) -> Number:
    """DistIL (arXiv:2606.05152): sum of H_t + log pi(y_t) sg[sum_{s>t} H_s], over the sequences that have a view."""
    told, total = [i for i in d.sequences if d.has[i]], 0.0

    def cost(i: int, t: int) -> Number:
        return -sum(p * log(q) for p, q in zip(law(d.view[i][t]), d.q(i, t), strict=True))

    for i in told:
        for t in d.kept(i):
            later = sum(float(cost(i, s)) for s in d.kept(i) if s > t)
            total = total + cost(i, t) + d.logq(i, t) * later
    return total / len(told)


def vpd(d: Talk, step: int, every: int, beta: float) -> Number:
    """VPD (arXiv:2605.15113): BCO on ``read`` each F-th step, else reverse KL on ``roll``; the view is the prior."""
    if step % every:
        told = [(i, t) for i, t in d.places if d.source[i] == "roll" and d.has[i]]
        return token_mean(d, lambda i, t: kl(d.q(i, t), law(d.view[i][t])), told)
    read = [i for i in d.sequences if d.source[i] == "read"]
    rewards = {i: beta * sum(d.logq(i, t) - d.logp(d.view, i, t) for t in d.kept(i)) for i in read}
    right, wrong = [i for i in read if d.correct[i]], [i for i in read if not d.correct[i]]
    middle = 0.5 * sum(sum(float(rewards[i]) for i in side) / len(side) for side in (right, wrong))
    losses = [sum(log(1 + exp(middle - rewards[i])) for i in right) / len(right)]
    losses += [sum(log(1 + exp(rewards[i] - middle)) for i in wrong) / len(wrong)]
    return losses[0] + losses[1]


def rltf_sd(d: Talk, coef: float, gamma: float, threshold: float) -> Number:
    """RLTF-SD (arXiv:2602.02482): centred returns of turns on ``talk``; second answers taught on ``first``."""
    returns = {}
    for i in range(len(d.mask)):
        r = d.paid(i)
        returns[i] = [sum(gamma**k * x for k, x in enumerate(r[t:])) for t in range(len(r))]
    total = 0.0
    for i in d.sequences:
        if d.source[i] == "talk":
            for k, own in enumerate(d.turns(i)):
                reached = [returns[j][k] for j in d.mates(i) if k < len(returns[j])]
                A = returns[i][k] - sum(reached) / len(reached)
                total = total - sum(ratio(d, i, t) * A for t in own)
        else:
            A = sum(d.paid(i)) - d.first[i]
            total = total - coef * sum(A * d.logq(i, t) for t in d.kept(i) if d.old[i][t] >= threshold)
    return total
