"""A tabular student over sequences of two tokens from a vocabulary of three: everything can be enumerated.

``theta`` holds one row of logits per state: row 0 for the first token, row ``1 + y_1`` for the second. Expectations
over sequences are sums over nine, and the exact gradients below are autograd of formulas written in plain
probabilities, sharing no code with the library.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import limbeck as lb

V, T = 3, 2
Y = torch.tensor(list(itertools.product(range(V), repeat=T)))
"""All sequences, ``[9, 2]``."""
STATE = torch.stack([torch.zeros(len(Y), dtype=torch.int64), 1 + Y[:, 0]], dim=1)
"""The row of ``theta`` that scores each token, ``[9, 2]``."""
EXACT = {"rtol": 0.0, "atol": 1e-10}


def table(seed: int, scale: float = 1.0) -> Tensor:
    """Random logits, one row a state."""
    return scale * torch.randn(1 + V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


THETA, TEACHER, BEHAVIOUR, REF = table(1), table(2), table(3, 0.7), table(4)
REWARD = torch.tensor([0.0, 1, 0, 2, -1, 0, 1, 1, 0.5], dtype=torch.float64)


def token_logp(theta: Tensor) -> Tensor:
    """Log-prob of every token of every sequence, ``[9, 2]``."""
    return theta.log_softmax(-1)[STATE, Y]


def law(theta: Tensor) -> Tensor:
    """Probability of every sequence, ``[9]``."""
    return token_logp(theta).sum(-1).exp()


def visits(theta: Tensor) -> Tensor:
    """Probability of every state, ``[4]``: the start, and the three first tokens."""
    return torch.cat([torch.ones(1, dtype=theta.dtype), theta[0].softmax(-1)])


def gradient(of: Callable[[Tensor], Tensor], theta: Tensor = THETA) -> Tensor:
    """Autograd of a scalar function of ``theta``."""
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(of(leaf), leaf)[0]


def _of(x: Any, i: int) -> Any:
    """One sequence's share of an argument."""
    if isinstance(x, int):
        return x
    return {k: v[i : i + 1] for k, v in x.items()} if isinstance(x, dict) else x[i : i + 1]


def expected_gradient(method: lb.Method, behaviour: Tensor | None = None, **given: Any) -> Tensor:
    """Sum over sequences of mu(y) * grad loss(y), one call of ``lb.objective`` a sequence.

    Args:
        method: with ``token_sum``, so that a sequence's loss is its own.
        behaviour: logits of mu; None is on-policy, the student itself.
        **given: more arguments; ``[9, ...]`` tensors (and columns of them) are cut to the sequence.
    """
    mu = law(THETA if behaviour is None else behaviour)
    off = {} if behaviour is None else {"old_logp": token_logp(behaviour)}
    loss_of = lb.objective(method)
    total = torch.zeros_like(THETA)
    for i in range(len(Y)):
        theta = THETA.clone().requires_grad_()
        one = {k: _of(v, i) for k, v in {**off, **given}.items()}
        loss = loss_of(theta[STATE[i]].unsqueeze(0), Y[i : i + 1], **one).loss
        total += mu[i] * torch.autograd.grad(loss, theta)[0]
    return total


# ---------------------------------------------------------------- exact objectives, in probabilities


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def _jsd(q: Tensor, p: Tensor, b: float) -> Tensor:
    m = b * p + (1 - b) * q
    return b * _kl(p, m) + (1 - b) * _kl(q, m)


def _alpha(q: Tensor, p: Tensor, a: float) -> Tensor:
    return ((q**a * p ** (1 - a)).sum(-1) - 1) / (a * (a - 1))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkl": lambda q, p: _kl(q, p),
    "fkl": lambda q, p: _kl(p, q),
    "jsd(0.3)": lambda q, p: _jsd(q, p, 0.3),
    "skew_fkl(0.1)": lambda q, p: _kl(p, 0.1 * p + 0.9 * q),
    "skew_rkl(0.1)": lambda q, p: _kl(q, 0.9 * p + 0.1 * q),
    "alpha(0.7)": lambda q, p: _alpha(q, p, 0.7),
    "alpha(2)": lambda q, p: _alpha(q, p, 2.0),
    "alpha(-1)": lambda q, p: _alpha(q, p, -1.0),
    "tv": lambda q, p: 0.5 * (q - p).abs().sum(-1),
    "chi2": lambda q, p: ((q - p) ** 2 / p).sum(-1),
    "neyman_chi2": lambda q, p: ((q - p) ** 2 / q).sum(-1),
    "hellinger": lambda q, p: 0.5 * ((q.sqrt() - p.sqrt()) ** 2).sum(-1),
    "renyi(0.5)": lambda q, p: (q**0.5 * p**0.5).sum(-1).log() / -0.5,
    "renyi(2)": lambda q, p: (q**2 / p).sum(-1).log(),
}
"""Divergences by label: value of each row of q against p."""


def per_state(name: str, states: Tensor | None = None, teacher: Tensor = TEACHER) -> Callable[[Tensor], Tensor]:
    """The divergence summed over visited states whose law is held fixed; by default the student's own."""
    weights = visits(THETA) if states is None else states
    return lambda theta: (weights * DIVERGENCES[name](theta.softmax(-1), teacher.softmax(-1))).sum()


def sequence_rkl(theta: Tensor) -> Tensor:
    """KL of the law over whole sequences to the teacher's."""
    return _kl(law(theta), law(TEACHER))


def expected_reward(theta: Tensor) -> Tensor:
    """J = E_pi[reward]."""
    return (law(theta) * REWARD).sum()
