"""A mask or a whole number in arithmetic is a number: nothing is a logical sum, and nothing overflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

import limbeck as lb
from limbeck.axes import (
    column,
    correct,
    group_advantage,
    minmax,
    reinforce,
    running,
    sample,
    score,
    soft_or,
    to_go,
    token_sum,
)
from limbeck.axes.expression import Expr
from limbeck.axes.scalar import Controller
from limbeck.errors import LimbeckError
from limbeck.space.method import Method
from limbeck.space.term import Term

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(4, 5, 7, dtype=torch.float64, generator=G)
TOKENS = torch.randint(7, (4, 5), generator=G)
REWARD = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
ONE = 1.0 * correct


def loss(v: Expr, **given: object) -> float:
    objective = lb.objective(Method(sample(n=4), Term(v, reinforce), token_sum))
    return float(objective(LOGITS, TOKENS, **{"reward": REWARD, **given}).loss)


SAME: dict[str, tuple[Expr, Expr]] = {
    "a sum": (2.0 * (correct + correct), 2.0 * (ONE + ONE)),
    "a difference": (correct - correct.over("group", "mean"), ONE - ONE.over("group", "mean")),
    "a sign": (-correct, -1.0 * ONE),
    "a mask alone": (correct, ONE),
    "an absolute value": (abs(correct), ONE),
    "rewards to go": (to_go(correct, 0.5), to_go(ONE, 0.5)),
    "the greatest": (correct.over("group", "max"), ONE.over("group", "max")),
    "a span": (minmax(correct), minmax(ONE)),
    "an advantage": (group_advantage(of=correct), group_advantage(of=ONE)),
    "a soft or": (soft_or(correct, score > 0.5), soft_or(ONE, 1.0 * (score > 0.5))),
    "a clip": (correct.clip(0.25, 0.5), ONE.clip(0.25, 0.5)),
}


@pytest.mark.parametrize("name", SAME)
def test_a_mask_is_one_or_zero_in_arithmetic(name: str) -> None:
    mask, number = SAME[name]
    assert loss(mask) == pytest.approx(loss(number), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_columns_of_whole_numbers_do_not_overflow(dtype: torch.dtype) -> None:
    v = to_go(column("a") * column("a") - 3.0 * column("b"), 0.5)
    a, b = torch.tensor([100, 2, 3, 4]), torch.tensor([1, 5, 0, 7])
    whole = loss(v, columns={"a": a.to(dtype), "b": b.to(dtype)})
    assert whole == pytest.approx(loss(v, columns={"a": a.double(), "b": b.double()}), rel=1e-6)


def test_moving_averages_that_differ_anywhere_keep_their_own_state() -> None:
    def mean(of: Expr, among: Expr) -> Expr:
        return running(of.over("batch", "max"), 0.5, among)

    one, other = mean(score, score > 5.0), mean(1.00000001 * score, score > 2.0)
    both = lb.objective(Method(sample(n=4), Term(one - other, reinforce), token_sum))
    apart = [lb.objective(Method(sample(n=4), Term(v, reinforce), token_sum)) for v in (one, other)]
    for greatest in (4.0, 8.0, 1.0):
        reward = torch.tensor([greatest, 0.0, 0.0, 0.0], dtype=torch.float64)
        a, b = (float(o(LOGITS, TOKENS, reward=reward).loss) for o in apart)
        assert float(both(LOGITS, TOKENS, reward=reward).loss) == pytest.approx(a - b)
    assert len(both.memory) == 2


@pytest.mark.parametrize("odd", [0.5, -1.0, 2.0])
def test_correctness_is_true_or_false(odd: float) -> None:
    with pytest.raises(LimbeckError, match=r"correct holds .*; give 1 \(true\) or 0 \(false\)"):
        loss(ONE, correct=torch.tensor([1.0, 0.0, odd, 1.0]))


@dataclass(frozen=True)
class Odd(Controller):
    """A controller whose update is a user's mistake."""

    answer: object = None

    def at(self, step: int) -> float:
        return 1.0

    def update(self, state: float | None, step: int, metrics: Mapping[str, float]) -> float:
        return metrics["absent"] if self.answer == "absent" else self.answer  # type: ignore[return-value]


@pytest.mark.parametrize("answer", [None, "x", float("nan"), float("inf"), "absent"])
def test_what_a_controller_returns_is_a_finite_number(answer: object) -> None:
    with pytest.raises(LimbeckError, match=r"finite number|which is not measured here"):
        lb.objective(Method(sample(n=4), Odd(answer) * Term(score, reinforce)))(LOGITS, TOKENS, reward=REWARD)
