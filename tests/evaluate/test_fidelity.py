"""Fidelity against loops in plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.evaluate import agreement, entropy, kl_forward, kl_reverse, perplexity

INF = math.inf


def probabilities(row: list[float]) -> list[float]:
    """Softmax of one row, in plain floats."""
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def divergence(p: list[float], q: list[float]) -> float:
    """``KL(p || q)`` by its definition."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(7, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher


def test_divergences_and_entropy_equal_their_definitions(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    for i in range(len(student)):
        q, p = probabilities(student[i].tolist()), probabilities(teacher[i].tolist())
        assert kl_forward(student, teacher)[i].item() == pytest.approx(divergence(p, q), rel=1e-12)
        assert kl_reverse(student, teacher)[i].item() == pytest.approx(divergence(q, p), rel=1e-12)
        assert entropy(student)[i].item() == pytest.approx(-sum(x * math.log(x) for x in q), rel=1e-12)


def test_equal_models_do_not_diverge(pair: tuple[Tensor, Tensor]) -> None:
    student, _ = pair
    shifted = student.float() + 100  # a constant is no difference
    assert (kl_forward(student.float(), shifted) >= 0).all()
    torch.testing.assert_close(kl_reverse(student.float(), shifted), torch.zeros(7), atol=1e-5, rtol=0)
    assert agreement(student, student).all()


def test_half_precision_is_raised_first(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (x.bfloat16() for x in pair)
    assert kl_forward(student, teacher).dtype == torch.float32
    torch.testing.assert_close(kl_forward(student, teacher), kl_forward(student.float(), teacher.float()))
    assert entropy(pair[0]).dtype == torch.float64


def test_excluded_entries_give_zero_or_infinite_terms() -> None:
    both = torch.tensor([[0.0, 0.0, -INF]])
    student = torch.tensor([[0.0, -INF, -INF]])
    assert entropy(both).item() == pytest.approx(math.log(2))
    assert kl_forward(both, both).item() == 0
    assert kl_reverse(student, both).item() == pytest.approx(math.log(2))
    assert kl_forward(student, both).item() == INF


def test_agreement_breaks_ties_low() -> None:
    student = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    teacher = torch.tensor([[2.0, 1.0, 2.0], [0.0, 1.0, 0.0]])
    assert agreement(student, teacher).tolist() == [True, False]


def test_nan_is_not_hidden() -> None:
    broken = torch.tensor([[math.nan, 0.0]])
    assert kl_forward(broken, torch.zeros(1, 2)).isnan().all()
    assert entropy(broken).isnan().all()


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises(LimbeckError, match="one vocabulary"):
        kl_forward(torch.zeros(2, 3), torch.zeros(2, 4))


def test_perplexity_is_the_exponential_of_the_mean_nll() -> None:
    assert perplexity(torch.full((5,), math.log(7))) == pytest.approx(7)
    assert perplexity(torch.tensor([0.0, 2.0])) == pytest.approx(math.e)
    assert math.isnan(perplexity(torch.zeros(0)))
    assert perplexity(torch.tensor([1e6])) == INF


def test_no_rows_give_empty_results() -> None:
    none = torch.zeros(0, 4)
    assert kl_forward(none, none).shape == (0,)
    assert agreement(none, none).shape == (0,)
