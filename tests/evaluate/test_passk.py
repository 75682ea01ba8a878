"""pass@k against the authors' values, against counting, and against its identities."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import LimbeckError
from limbeck.evaluate import pass_at_k

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "pass_at_k.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"seed{case['seed']}")
def test_equals_the_released_code(case: dict) -> None:
    n, c, k = np.array(case["inputs"]["rows"]).T
    np.testing.assert_allclose(pass_at_k(n, c, k), case["outputs"]["value"], rtol=0, atol=1e-14)


def test_equals_counting_all_draws() -> None:
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))
            hits = sum(any(i < c for i in draw) for draw in draws)
            assert pass_at_k(n, c, k) == pytest.approx(hits / len(draws), abs=1e-15)


def test_pass_at_k_satisfies_its_identities() -> None:
    n = 40
    c, k = np.arange(n + 1)[:, None], np.arange(1, n + 1)[None, :]
    table = pass_at_k(n, c, k)
    np.testing.assert_allclose(table[:, 0], np.arange(n + 1) / n, atol=1e-15)
    assert (table[0] == 0).all()
    assert (table[n] == 1).all()
    assert (table[1:, -1] == 1).all()
    assert (np.diff(table, axis=0) >= -1e-15).all()
    assert (np.diff(table, axis=1) >= -1e-15).all()
    assert table.dtype == np.float64


def test_large_counts_do_not_overflow() -> None:
    assert pass_at_k(100_000, 1, 1000) == pytest.approx(0.01)


def test_empty_is_empty() -> None:
    assert pass_at_k(4, np.zeros(0, dtype=int), 2).shape == (0,)


@pytest.mark.parametrize(
    ("n", "c", "k", "name"), [(4, 5, 1, "c must"), (4, -1, 1, "c must"), (4, 1, 0, "k must"), (4, 1, 5, "k must")]
)
def test_impossible_counts_are_refused(n: int, c: int, k: int, name: str) -> None:
    with pytest.raises(LimbeckError, match=name):
        pass_at_k(n, c, k)
