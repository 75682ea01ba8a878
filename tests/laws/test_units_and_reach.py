"""A unit without a kept token is no part of a reduction, and what looks at a whole batch is never cut in silence."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import limbeck as lb
import limbeck.functional.objective
from limbeck.axes import (
    behavior,
    column,
    correct,
    divergence_advantage,
    expr,
    importance,
    logp,
    minmax,
    old,
    reinforce,
    reward,
    running,
    sample,
    score,
    sequence_sum,
    standardise,
    teacher,
    token_mean,
    token_sum,
)
from limbeck.axes.choice import Cohort
from limbeck.axes.expression import Expr
from limbeck.axes.levels import HOWS, Level, segment
from limbeck.axes.signal import ratio_of
from limbeck.axes.surrogate import Rows, Surrogate
from limbeck.errors import LimbeckError
from limbeck.loss.terms import Batch, Prepared, loss, prepare, refuse_shared
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import Sampled

# ---------------------------------------------------------------- units without a token

REWARD = torch.tensor([1.0, 5.0, 0.0, 0.0, 2.0, 9.0], dtype=torch.float64)
GROUP = torch.tensor([0, 0, 0, 1, 1, 2])
MASK = torch.tensor([[1, 1], [0, 0], [1, 0], [1, 1], [1, 1], [0, 0]])
KEPT = MASK.any(1)
LOGP = torch.linspace(-2, -0.5, 12, dtype=torch.float64).reshape(6, 2)

UNITS: dict[str, Expr] = {
    **{f"{how} over {level}": score.over(level, how) for how in HOWS for level in ("group", "batch")},
    **{f"{how} of turns over {level}": reward.over(level, how) for how in HOWS for level in ("group", "batch")},
    **{f"{how} of groups": score.mean.over("batch", how) for how in HOWS},
    "correct": correct.over("batch", "mean") + correct.over("group", "all") + correct.over("group", "any"),
    "column": column("x").over("group", "mean"),
    "where": score.over("batch", "mean", score < 100.0),
    "standardise": standardise(score, "batch"),
    "standardise in the group": standardise(score, "group"),
    "minmax": minmax(score),
    "cohort": Cohort(reward),
    "running": running(score.over("batch", "mean"), 0.5),
}


@pytest.mark.parametrize("name", UNITS)
def test_a_sequence_without_a_kept_token_is_as_if_it_were_not_there(name: str) -> None:
    method = Method(sample(n=3), Term(UNITS[name] * 1.0, reinforce), sequence_sum)
    given = {"student_logp": LOGP, "reward": REWARD, "group": GROUP, "mask": MASK, "columns": {"x": REWARD * 2}}
    there = {k: v[KEPT] for k, v in given.items() if k != "columns"} | {"columns": {"x": REWARD[KEPT] * 2}}
    assert float(lb.objective(method)(**given).loss) == pytest.approx(float(lb.objective(method)(**there).loss))


def batch_of(monkeypatch: pytest.MonkeyPatch, method: Method, **given: Tensor) -> Batch:
    """The batch that ``lb.objective`` makes of plain tensors."""
    seen: list[Batch] = []

    def prepared(method: Method, batch: Batch) -> Prepared:
        seen.append(batch)
        return prepare(method, batch)

    monkeypatch.setattr(limbeck.functional.objective, "prepare", prepared)
    lb.objective(method)(**given)
    return seen[0]


def test_the_score_of_a_sequence_without_a_token_is_still_its_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method(sample(n=3), Term(score, reinforce), token_sum)
    levels = batch_of(monkeypatch, method, student_logp=LOGP[:3], reward=REWARD[:3], mask=MASK[:3]).levels
    score_B = levels.up(REWARD[:3], Level.TURN, Level.SEQUENCE, "sum")
    assert score_B.tolist() == [1.0, 5.0, 0.0]
    assert levels.up(score_B, Level.SEQUENCE, Level.BATCH, "mean").tolist() == [0.5]


# ---------------------------------------------------------------- the whole batch


@dataclass(frozen=True)
class Spread(Surrogate):
    """Squared distance of each token's log-prob to the mean of the batch."""

    @property
    def scope(self) -> Level:
        return Level.BATCH

    def loss(self, live: Sequence[Tensor], told: Tensor | None, base: Tensor | None, rows: Rows) -> Tensor:
        del told, base, rows
        return (live[0] - live[0].mean()).square()

    def __str__(self) -> str:
        return "spread"


WIDE = Method(sample(n=3), Term(expr(1.0), Spread()), token_mean)
GIVEN = {"student_logp": LOGP, "reward": REWARD, "group": GROUP}


def test_a_surrogate_of_the_whole_batch_is_refused_where_it_would_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(WIDE, batch_of(monkeypatch, WIDE, **GIVEN))
    whole = loss(WIDE, prepared.micro(0, 3), Sampled(LOGP.flatten())).loss
    assert float(whole) == pytest.approx(float((LOGP - LOGP.mean()).square().mean()))
    with pytest.raises(LimbeckError, match=r"spread needs the whole batch at once.*18 tokens.*micro_tokens=18"):
        prepared.micro(0, 1)
    with pytest.raises(LimbeckError, match="raise micro_tokens to 18"):
        list(prepared.micros(6))
    assert len(list(prepared.micros(18))) == 1


def test_a_surrogate_of_the_whole_batch_is_refused_where_processes_share_it() -> None:
    with pytest.raises(LimbeckError, match="each of the 2 processes holds a part"):
        lb.objective(WIDE)(**GIVEN, all_sum=lambda x: 2 * x)
    assert lb.objective(WIDE)(**GIVEN, all_sum=lambda x: x).loss > 0
    with pytest.raises(LimbeckError, match="spread needs the whole batch at once"):
        refuse_shared(WIDE, 4)
    refuse_shared(Method(sample(n=3), Term(score, reinforce), token_mean), 4)


@pytest.mark.parametrize("how", ["min", "max"])
@pytest.mark.parametrize("other", [-7.5, 0.0, 1e-300, 123.25, None])
@pytest.mark.parametrize("own", [[-3.5, 2.0], [-1.0, -2.0], []])
def test_the_ends_of_a_batch_are_those_of_all_processes(how: str, other: float | None, own: list[float]) -> None:
    def all_sum(x: Tensor) -> Tensor:
        """Two processes, of which the other holds one number or none."""
        if not asked:
            asked.append("how many")
            return x + 1
        asked.append("bit")
        return x + int(theirs(len(asked) - 2, x))

    x = torch.tensor(own, dtype=torch.float64)
    both = [*own, *([] if other is None else [other])]
    asked: list[str] = []
    found = [0]

    def theirs(n: int, mine: Tensor) -> bool:
        tried = found[0] | 1 << (63 - n)
        key = -1 if other is None else order(other if how == "max" else -other)
        if key >= tried or int(mine):
            found[0] = tried
        return key >= tried

    got = segment(x, torch.zeros(len(own), dtype=torch.int64), 1, how, all_sum)
    expected = (min(both) if how == "min" else max(both)) if both else 0.0
    assert got.tolist() == [expected]


def order(x: float) -> int:
    """Doubles as whole numbers in the same order."""
    bits = int.from_bytes(struct.pack(">d", x), "big")
    return bits ^ ((1 << 64) - 1) if bits >> 63 else bits | 1 << 63


def test_the_first_of_a_batch_that_processes_share_is_refused() -> None:
    with pytest.raises(LimbeckError, match="is not defined for a batch that several processes share"):
        segment(torch.ones(2), torch.zeros(2, dtype=torch.int64), 1, "first", lambda x: 2 * x)


# ---------------------------------------------------------------- exp


def test_exp_and_log_undo_each_other_far_beyond_twenty() -> None:
    far = torch.tensor([100.0, -100.0, 21.0], dtype=torch.float64)
    method = Method(sample(n=3), Term(score.exp().log(), reinforce), token_sum)
    given = {"student_logp": LOGP[:3], "reward": far}
    assert float(lb.objective(method)(**given).loss) == pytest.approx(float(-(far[:, None] * LOGP[:3]).sum()))


def test_ratios_of_laws_keep_their_bound() -> None:
    for v in (importance(behavior, old), ratio_of(logp(behavior) - logp(old))):
        method = Method(sample(n=3), Term(v, reinforce), token_sum)
        out = lb.objective(method)(student_logp=LOGP, old_logp=LOGP - 50, rollout_logp=LOGP, reward=REWARD)
        assert float(out.loss) == pytest.approx(float(-(math.exp(20) * LOGP).sum()))


@pytest.mark.parametrize("a", [0.5, 2.0, 6.0])
def test_the_signal_of_a_renyi_divergence_is_right_where_the_ratio_is_huge(a: float) -> None:
    q = torch.tensor([[[0.0, -3.0, -30.0]]], dtype=torch.float64)
    p = torch.tensor([[[-60.0, 0.0, -1.0]]], dtype=torch.float64)
    method = Method(sample(), Term(divergence_advantage(f"renyi({a:g})", teacher) / logp(old), reinforce), token_sum)
    got = lb.objective(method)(q, torch.tensor([[0]]), teacher_logits=p, reward=torch.ones(1)).loss
    logq, logp_ = q.log_softmax(-1)[0, 0], p.log_softmax(-1)[0, 0]
    log_moment = (a * logq + (1 - a) * logp_).logsumexp(-1)
    expected = a / (a - 1) * ((a - 1) * (logq - logp_)[0] - log_moment).exp()
    assert float(got) == pytest.approx(float(expected), rel=1e-9)
