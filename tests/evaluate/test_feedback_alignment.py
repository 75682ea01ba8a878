"""The localisation metric of Feedback Alignment."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.evaluate import localisation, objection

PLAIN = torch.tensor([-1.0, -2.0, -0.5, -3.0])
SPAN = torch.tensor([False, True, True, False])


def test_it_is_the_share_of_the_negative_part() -> None:
    """a = (+1, -2, -1, -1): 3 of 4 nats of objection are inside; positive values do not count."""
    with_context = PLAIN + torch.tensor([1.0, -2.0, -1.0, -1.0])
    assert objection(with_context, PLAIN).tolist() == [0.0, 2.0, 1.0, 1.0]
    assert localisation(with_context, PLAIN, SPAN) == pytest.approx(0.75)
    assert localisation(with_context, PLAIN, ~SPAN) == pytest.approx(0.25)
    assert localisation(with_context, PLAIN, torch.zeros(4, dtype=torch.bool)) == 0.0
    assert localisation(with_context, PLAIN, torch.ones(4, dtype=torch.bool)) == 1.0


def test_aligned_feedback_scores_above_a_diffuse_context() -> None:
    """A context that objects equally everywhere scores the span's share of the tokens."""
    diffuse = localisation(PLAIN - 0.3, PLAIN, SPAN)
    aligned = localisation(PLAIN + torch.where(SPAN, -1.0, 0.2), PLAIN, SPAN)
    assert diffuse == pytest.approx(0.5)
    assert aligned == 1.0


def test_the_scale_of_the_objection_does_not_matter() -> None:
    a = torch.tensor([0.4, -0.7, -0.1, -2.0])
    assert localisation(PLAIN + 3 * a, PLAIN, SPAN) == pytest.approx(localisation(PLAIN + a, PLAIN, SPAN))


def test_nothing_is_objected_to() -> None:
    assert math.isnan(localisation(PLAIN + 1, PLAIN, SPAN))
    assert math.isnan(localisation(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool)))


def test_half_precision_is_added_up_in_float64() -> None:
    plain = torch.zeros(4096, dtype=torch.bfloat16)
    span = torch.arange(4096) < 1024
    assert localisation(plain - 0.5, plain, span) == 0.25


@pytest.mark.parametrize(
    ("with_context", "span", "sentence"),
    [
        (PLAIN[:3], SPAN, "give one of each for every sampled token"),
        (PLAIN, SPAN[:3], "give one entry for each token"),
        (torch.tensor([-1.0, -math.inf, 0.0, 0.0]), SPAN, "not finite"),
        (torch.tensor([-1.0, math.nan, 0.0, 0.0]), SPAN, "not finite"),
    ],
)
def test_log_probs_that_cannot_be_compared_are_refused(
    with_context: torch.Tensor, span: torch.Tensor, sentence: str
) -> None:
    with pytest.raises(LimbeckError, match=sentence):
        localisation(with_context, PLAIN, span)
