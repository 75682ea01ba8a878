"""Helpers for the tests of on-policy and self-distillation: a batch, its distributions, and comparisons of numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from laws.cases import Case, changed, make
from limbeck.axes import Expr
from limbeck.loss.batch import Batch
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import Dense

CLOSE = {"rtol": 1e-10, "atol": 1e-13}
BATCH = 8


def case(off_policy: bool = False, **given: Tensor) -> Case:
    """Eight sequences of one to three turns; on-policy unless asked."""
    return changed(make(seed=31, off_policy=off_policy), **given)


def one_turn(c: Case) -> Case:
    """The same text in one turn each."""
    return changed(c, turn=torch.zeros_like(c.given["turn"]))


def told_everything(c: Case, holds: bool = True) -> Case:
    """Every sequence has every context, or none has any."""
    return changed(c, **{k: torch.full_like(v, holds) for k, v in c.given.items() if k.startswith("has ")})


def agreeing(c: Case, *slots: str) -> Case:
    """The named views are the student itself."""
    return changed(c, **{f"{slot}_logits": c.logits.detach().clone() for slot in slots})


def judged(c: Case, *correct: int) -> Case:
    """Only these sequences are right; the reward is 1 or 0."""
    right = torch.zeros(BATCH, dtype=torch.bool)
    right[list(correct)] = True
    return changed(c, correct=right, reward=right.double())


def equal(a: object, b: object) -> None:
    """To rounding in float64."""
    torch.testing.assert_close(a, b, **CLOSE)


def identical(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    """Value and gradient, bit for bit."""
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def differ(a: Tensor, b: Tensor) -> None:
    """So that a test above cannot hold for an empty reason."""
    assert (a - b).abs().max() > 1e-5


def spoken(c: Case, slot: str) -> Tensor:
    """Log-probs of the sampled tokens under a view, ``[B, T]``; of the student for ``student``."""
    z = c.logits.detach() if slot == "student" else c.given[f"{slot}_logits"]
    return z.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]


def prepared(c: Case, m: Method, of: Expr) -> Tensor:
    """An expression on the batch of a case, per unit of its level; the live student is read as it is."""
    _, told, live = c.prepared(m)
    batch = Batch(told.record, {**told.scores, "student": Dense(live.logits_NV.detach())}, step=3)
    return of.evaluate(batch)


def laws(c: Case, slot: str) -> Tensor:
    """Probabilities of a view at the kept tokens, ``[N, V]``."""
    z = c.logits.detach() if slot == "student" else c.given[f"{slot}_logits"]
    return c.rows(z.softmax(-1))


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) of each row."""
    return (a * (a / b).log()).sum(-1)


def term(m: Method, i: int = 0) -> Term:
    """One term of a method."""
    return m.parts[i][1]
