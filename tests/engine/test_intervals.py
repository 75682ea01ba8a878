"""Every number of an evaluation that is a mean over problems carries its interval."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_runs import Shelf, go, lines

from limbeck.engine.evaluation import clustered_interval
from limbeck.evaluate import mean_interval

NUMBERS = ("reward", "length", "entropy", "kl_reverse", "kl_forward", "perplexity")


def test_evaluations_carry_the_intervals_of_their_numbers(shelf: Shelf, out: Path) -> None:
    result = go(shelf, "kdrl", out, eval_size=6, steps=1)
    rows = lines(out / "evaluations.jsonl")
    assert len(rows) == 2
    for row in rows:
        for name in NUMBERS:
            low, high = row[f"{name}_interval"]
            assert low <= row[name] <= high, name
        assert row["kl_reverse_interval"][0] >= 0
    assert result.after["entropy_interval"] == rows[-1]["entropy_interval"]


def test_one_problem_has_no_interval(shelf: Shelf, out: Path) -> None:
    go(shelf, "kdrl", out, eval_size=1, steps=1)
    row = lines(out / "evaluations.jsonl")[0]
    assert "entropy" in row
    assert not [key for key in row if key.endswith("_interval")]


def test_the_values_of_a_problem_count_as_one() -> None:
    owner, values = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([1.0, 2.0, 3.0, 5.0, 4.0, 6.0])
    (interval,) = clustered_interval("x", values, owner, 3).values()
    twice = clustered_interval("x", values.repeat(2), owner.repeat(2), 3)["x_interval"]
    assert interval == pytest.approx(twice)
    each = mean_interval([1.0, 2.0, 4.0])
    assert clustered_interval("x", torch.tensor([1.0, 2.0, 4.0]), torch.arange(3), 3)["x_interval"] == pytest.approx(
        [max(each.low, 0.0), each.high]
    )


def test_an_interval_stays_where_the_number_can_be() -> None:
    assert clustered_interval("kl", torch.tensor([0.0, 0.0, 9.0]), torch.arange(3), 3)["kl_interval"][0] == 0
    assert (
        clustered_interval("logp", torch.tensor([-1.0, -1.0, -9.0]), torch.arange(3), 3)["logp_interval"][0] < -9 + 1e-9
    )
    third = torch.full((9,), 1 / 3)
    low, high = clustered_interval("x", third, torch.arange(9), 9)["x_interval"]
    assert low <= float(third.double().mean()) <= high
    assert clustered_interval("x", torch.tensor([math.inf, 1.0]), torch.arange(2), 2) == {}
    assert clustered_interval("x", torch.tensor([]), torch.tensor([], dtype=torch.long), 2) == {}
