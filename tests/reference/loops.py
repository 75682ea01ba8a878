"""Every method's loss as plain loops, read off the papers. Shares no code with the library.

What carries gradient (the student's logits) is a PyTorch number in float64; everything detached is a Python float, so
what is a constant can be seen. Laws are lists over the vocabulary; p is the teacher, q the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Number = Any
"""A float, or a float64 scalar tensor where the gradient matters."""


@dataclass
class Data:
    """A padded batch as nested lists; ``logits[i][t]`` scores ``tokens[i][t]``, and ``mask`` may have holes."""

    logits: torch.Tensor
    tokens: list[list[int]]
    mask: list[list[int]]
    teacher: list[list[list[float]]]
    ref: list[list[list[float]]]
    old: list[list[float]]
    behavior: list[list[float]]
    reward: list[float]
    correct: list[bool]
    group: list[int]
    label: list[float] = field(default_factory=list)
    source: list[str] = field(default_factory=list)

    def kept(self, i: int) -> list[int]:
        return [t for t, m in enumerate(self.mask[i]) if m]

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(i, t) for i in range(len(self.mask)) for t in self.kept(i)]

    @property
    def sequences(self) -> list[int]:
        """Those with a token that counts."""
        return [i for i in range(len(self.mask)) if self.kept(i)]

    def mates(self, i: int) -> list[int]:
        return [j for j, g in enumerate(self.group) if g == self.group[i]]

    def q(self, i: int, t: int, tau: float = 1.0) -> list[Number]:
        return law(list(self.logits[i, t]), tau)

    def logq(self, i: int, t: int) -> Number:
        return log(self.q(i, t)[self.tokens[i][t]])

    def logp(self, whose: list[list[list[float]]], i: int, t: int) -> float:
        return math.log(law(whose[i][t])[self.tokens[i][t]])


def log(x: Number) -> Number:
    return x.log() if isinstance(x, torch.Tensor) else math.log(x)


def exp(x: Number) -> Number:
    return x.exp() if isinstance(x, torch.Tensor) else math.exp(x)


def law(z: list[Number], tau: float = 1.0) -> list[Number]:
    weights = [exp(x / tau) for x in z]
    return [w / sum(weights) for w in weights]


def kl(a: list[Number], b: list[Number]) -> Number:
    return sum(x * (log(x) - log(y)) for x, y in zip(a, b, strict=True))


def jsd(p: list[float], q: list[Number], beta: float) -> Number:
    """GKD (arXiv:2306.13649) eq. 1; beta on the teacher."""
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def f_divergence(f: Callable[[Number], Number]) -> Callable[[list[float], list[Number]], Number]:
    """sum_v p f(q / p)."""
    return lambda p, q: sum(x * f(y / x) for x, y in zip(p, q, strict=True))


def mixed(p: list[Number], q: list[Number], a: float) -> list[Number]:
    return [a * x + (1 - a) * y for x, y in zip(p, q, strict=True)]


ROWS: dict[str, Callable[[list[float], list[Number]], Number]] = {
    "rkl": f_divergence(lambda u: u * log(u)),
    "fkl": f_divergence(lambda u: -log(u)),
    "jsd(0.3)": lambda p, q: jsd(p, q, 0.3),
    "skew_fkl(0.2)": lambda p, q: kl(p, mixed(p, q, 0.2)),
    "skew_rkl(0.2)": lambda p, q: kl(q, mixed(q, p, 0.2)),
    "alpha(0.3)": f_divergence(lambda u: (u**0.3 - 0.3 * u + 0.3 - 1) / (0.3 * (0.3 - 1))),
    "alpha(1.5)": f_divergence(lambda u: (u**1.5 - 1.5 * u + 1.5 - 1) / (1.5 * (1.5 - 1))),
    "tv": lambda p, q: 0.5 * sum(abs(x - y) for x, y in zip(p, q, strict=True)),
    "chi2": lambda p, q: sum((y - x) ** 2 / x for x, y in zip(p, q, strict=True)),
    "neyman_chi2": lambda p, q: sum((y - x) ** 2 / y for x, y in zip(p, q, strict=True)),
    "hellinger": lambda p, q: 0.5 * sum((y**0.5 - x**0.5) ** 2 for x, y in zip(p, q, strict=True)),
    "renyi(0.3)": lambda p, q: log(sum(y**0.3 * x**0.7 for x, y in zip(p, q, strict=True))) / (0.3 - 1),
    "soft_ce": lambda p, q: -sum(x * log(y) for x, y in zip(p, q, strict=True)),
}
"""The divergence table, one definition a row; q is the student, to the power of alpha in the alpha family."""


# ---------------------------------------------------------------- averages


def token_mean(d: Data, loss: Callable[[int, int], Number], places: list[tuple[int, int]] | None = None) -> Number:
    """Sum over tokens / number of tokens."""
    places = d.places if places is None else places
    return sum((loss(i, t) for i, t in places), start=0.0 * d.logits.sum()) / max(len(places), 1)


def sequence_mean(d: Data, loss: Callable[[int, int], Number]) -> Number:
    """1/B sum_i 1/|y_i| sum_t, over sequences with a token that counts."""
    return sum(sum(loss(i, t) for t in d.kept(i)) / len(d.kept(i)) for i in d.sequences) / len(d.sequences)


# ---------------------------------------------------------------- distillation


def sft(d: Data) -> Number:
    """Negative log-likelihood per token."""
    return token_mean(d, lambda i, t: -d.logq(i, t))


def kd(d: Data, weight: float, tau: float) -> Number:
    """Hinton et al. (arXiv:1503.02531) section 2: (1 - w) CE + w tau^2 KL(p_tau || q_tau)."""
    return token_mean(
        d, lambda i, t: (weight - 1) * d.logq(i, t) + weight * tau**2 * kl(law(d.teacher[i][t], tau), d.q(i, t, tau))
    )


def gkd(d: Data, beta: float, tau: float = 1.0) -> Number:
    """GKD (arXiv:2306.13649): eq. 1, averaged over tokens."""
    return token_mean(d, lambda i, t: jsd(law(d.teacher[i][t], tau), d.q(i, t, tau), beta))


def opd_full(d: Data, row: str = "rkl") -> Number:
    """A divergence at every visited state, KL(q || p) by default: GKD with lambda = 1."""
    return token_mean(d, lambda i, t: ROWS[row](law(d.teacher[i][t]), d.q(i, t)))


def opd(d: Data, coef: float, gamma: float) -> Number:
    """Thinking Machines, "On-policy distillation": -sum pi/mu A_t, A_t = c sum_{s>=t} gamma^(s-t) (log p - log mu)."""
    total = 0.0
    for i, t in d.places:
        rest = [s for s in d.kept(i) if s >= t]
        A = sum(gamma**k * (d.logp(d.teacher, i, s) - d.behavior[i][s]) for k, s in enumerate(rest))
        total = total - exp(d.logq(i, t) - d.behavior[i][t]) * coef * A
    return total


def minillm(d: Data, gamma: float, clip: float, scale: float, bound: float, lm_coef: float) -> Number:
    """MiniLLM (arXiv:2306.08543) section 2.2: long-term part, single-step part, language modelling."""
    roll = [(i, t) for i, t in d.places if d.source[i] == "roll"]
    returns = {}
    for i, t in roll:
        rest = [s for s in d.kept(i) if s >= t]
        r = [max(-bound, min(bound, (d.logp(d.teacher, i, s) - d.old[i][s]) / scale)) for s in rest]
        returns[i, t] = sum(gamma**k * x for k, x in enumerate(r)) / len(rest)
    mean, std = moments(list(returns.values()))

    def on_rollout(i: int, t: int) -> Number:
        ratio = exp(d.logq(i, t) - d.behavior[i][t])  # the behavior is the mixture of student and teacher
        step = kl(d.q(i, t), law(d.teacher[i][t]))
        return ppo(ratio, (returns[i, t] - mean) / (std + 1e-8), clip, clip) + ratio.item() * step

    def on_text(i: int, t: int) -> Number:
        soft = -sum(p * log(q) for p, q in zip(law(d.teacher[i][t]), d.q(i, t), strict=True))
        return 0.5 * -d.logq(i, t) + 0.5 * soft

    text = [(i, t) for i, t in d.places if d.source[i] == "lm"]
    return token_mean(d, on_rollout, roll) + lm_coef * token_mean(d, on_text, text)


# ---------------------------------------------------------------- rewards


def moments(x: list[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation (0 for one value)."""
    mean = sum(x) / len(x)
    return mean, math.sqrt(sum((y - mean) ** 2 for y in x) / max(len(x) - 1, 1))


def advantages(d: Data, reward: list[float], scale: bool = True) -> list[float]:
    """DeepSeekMath (arXiv:2402.03300) section 4.1.2: rewards standardised in their group."""
    out = []
    for i, r in enumerate(reward):
        mean, std = moments([reward[j] for j in d.mates(i)])
        out.append((r - mean) / (std + 1e-6) if scale else r - mean)
    return out


def ppo(ratio: Number, A: float, low: float, high: float) -> Number:
    """-min(rho A, clip(rho) A)."""
    bounded = min(max(ratio.item(), 1 - low), 1 + high)
    held = ratio if bounded == ratio.item() else bounded
    return -ratio * A if ratio.item() * A <= bounded * A else -held * A


def k3(d: Data, whose: list[list[list[float]]], i: int, t: int) -> Number:
    """DeepSeekMath eq. 4: e^R - R - 1 with R = log pi_ref - log pi."""
    R = d.logp(whose, i, t) - d.logq(i, t)
    return exp(R) - R - 1


def k2(d: Data, whose: list[list[list[float]]], i: int, t: int) -> Number:
    """KDRL appendix A.3: R^2 / 2."""
    return 0.5 * (d.logp(whose, i, t) - d.logq(i, t)) ** 2


def ratio(d: Data, i: int, t: int) -> Number:
    return exp(d.logq(i, t) - d.old[i][t])


def grpo(d: Data, clip: float, beta: float) -> Number:
    """DeepSeekMath eq. 3."""
    A = advantages(d, d.reward)
    return sequence_mean(d, lambda i, t: ppo(ratio(d, i, t), A[i], clip, clip) + beta * k3(d, d.ref, i, t))


def dr_grpo(d: Data, clip: float, max_length: int) -> Number:
    """Dr. GRPO (arXiv:2503.20783) section 3: no std, a constant in place of |y_i|."""
    A = advantages(d, d.reward, scale=False)
    total = sum(ppo(ratio(d, i, t), A[i], clip, clip) for i, t in d.places)
    return total / (len(d.sequences) * max_length)


def dapo(d: Data, low: float, high: float, max_length: int | None, buffer: int) -> Number:
    """DAPO (arXiv:2503.14476) eq. 8 with the overlong penalty of eq. 13."""
    reward = list(d.reward)
    for i in range(len(reward)):
        n = len(d.kept(i))
        if max_length is not None and n > max_length - buffer:
            reward[i] += -1.0 if n > max_length else (max_length - buffer - n) / buffer
    A = advantages(d, reward)
    return token_mean(d, lambda i, t: ppo(ratio(d, i, t), A[i], low, high))


def gspo(d: Data, low: float, high: float) -> Number:
    """GSPO (arXiv:2507.18071) eq. 5 with the ratio of eq. 7: the geometric mean over the sequence."""
    A = advantages(d, d.reward)
    total = 0.0
    for i in d.sequences:
        s = exp(sum(d.logq(i, t) - d.old[i][t] for t in d.kept(i)) / len(d.kept(i)))
        total = total + ppo(s, A[i], low, high)
    return total / len(d.sequences)


def dpo(d: Data, beta: float) -> Number:
    """DPO (arXiv:2305.18290) eq. 7."""
    groups = sorted(set(d.group))
    total = 0.0
    for g in groups:
        margin = 0.0
        for i in (j for j, own in enumerate(d.group) if own == g):
            sign = 1 if d.label[i] == 1 else -1
            margin = margin + sign * beta * sum(d.logq(i, t) - d.logp(d.ref, i, t) for t in d.kept(i))
        total = total + log(1 + exp(-margin))
    return total / len(groups)


# ---------------------------------------------------------------- both


def gates(d: Data, gate: str) -> list[bool]:
    """KDRL (arXiv:2506.02208) section 3.4: everywhere, on wrong responses, in groups with no right one."""
    wrong = [not c for c in d.correct]
    group = [not any(d.correct[j] for j in d.mates(i)) for i in range(len(wrong))]
    return {"none": [True] * len(wrong), "response": wrong, "group": group}[gate]


def kdrl(d: Data, beta: float, estimator: str, gate: str, denominator: str, clip: float) -> Number:
    """KDRL eq. 8: L_GRPO + beta L_KD, token means."""
    A, c = advantages(d, d.reward), gates(d, gate)
    kept = [(i, t) for i, t in d.places if c[i]]
    k = {"k2": k2, "k3": k3}[estimator]
    rl = token_mean(d, lambda i, t: ppo(ratio(d, i, t), A[i], clip, clip))
    distil = sum((k(d, d.teacher, i, t) for i, t in kept), start=0.0 * d.logits.sum())
    return rl + beta * distil / max(len(kept) if denominator == "kept" else len(d.places), 1)


def kdrl_shaping(d: Data, beta: float, gate: str, clip: float) -> Number:
    """KDRL section 3.1: A_i + beta c_i (log p - log pi_old) inside the clip."""
    A, c = advantages(d, d.reward), gates(d, gate)

    def loss(i: int, t: int) -> Number:
        shaped = A[i] + beta * c[i] * (d.logp(d.teacher, i, t) - d.old[i][t])
        return ppo(ratio(d, i, t), shaped, clip, clip)

    return token_mean(d, loss)


def kdrl_reward(d: Data, beta: float, clip: float) -> Number:
    """The other reading: r_i + beta sum_t (log p - log pi_old), standardised afterwards."""
    gap = [sum(d.logp(d.teacher, i, t) - d.old[i][t] for t in d.kept(i)) for i in range(len(d.reward))]
    A = advantages(d, [r + beta * x for r, x in zip(d.reward, gap, strict=True)])
    return token_mean(d, lambda i, t: ppo(ratio(d, i, t), A[i], clip, clip))
