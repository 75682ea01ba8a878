"""Gradients of half-precision students: a loss scaler reaches them before they are rounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import limbeck as lb
from limbeck.axes import budget, group_advantage, logp, policy, sample, teacher
from limbeck.math.divergence import rkl
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import Head

SCALE = 2.0**16
"""What ``torch.amp.GradScaler`` starts from."""
TOKENS, WIDTH, VOCABULARY = 6, 8, 16
DIVIDED = budget(10**7)
"""So many tokens a batch that a token's gradient lies below float16's smallest number, 6e-8."""

METHODS = {
    "separable": Method(sample(check=False), Term(teacher, lb.axes.divergence_loss(rkl)), DIVIDED),
    "general": Method(sample(n=2), Term(logp(teacher) * group_advantage(), policy("ratio", pool="sequence")), DIVIDED),
}


def leaves(dtype: torch.dtype) -> list[Tensor]:
    """Hidden states, weight and bias of a student, the same numbers in every dtype."""
    gen = torch.Generator().manual_seed(0)
    shapes = (2, TOKENS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)
    return [torch.randn(s, generator=gen).to(torch.bfloat16).to(dtype).requires_grad_() for s in shapes]


def gradients(m: Method, form: str, dtypes: tuple[torch.dtype, torch.dtype], scale: float) -> list[Tensor]:
    """d loss / d (hidden, weight, bias) or d loss / d logits, of a loss that was scaled, unscaled again."""
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (2, TOKENS), generator=gen)
    teacher_logits = torch.randn(2, TOKENS, VOCABULARY, generator=gen)
    given = {"teacher_logits": teacher_logits, "reward": torch.tensor([1.0, 0.0])}
    hidden = leaves(dtypes[0])[0]
    weight, bias = leaves(dtypes[1])[1:]
    if form == "dense":
        logits = (leaves(torch.float64)[0] @ leaves(torch.float64)[1].T).detach().to(torch.bfloat16).to(dtypes[0])
        inputs = [logits.requires_grad_()]
        out = lb.objective(m)(logits, tokens, **given)
    else:
        inputs = [hidden, weight, bias]
        head = Head(weight, bias)
        out = lb.objective(m)(student_hidden=hidden, student_head=head, tokens=tokens, **given)
    return [g.double() / scale for g in torch.autograd.grad(out.loss * scale, inputs)]


HALF, FLOAT = torch.float16, torch.float32


@pytest.mark.parametrize("way", METHODS)
@pytest.mark.parametrize(
    ("form", "dtypes"),
    [("dense", (HALF, HALF)), ("hidden", (HALF, HALF)), ("hidden", (HALF, FLOAT)), ("hidden", (FLOAT, HALF))],
    ids=["dense", "all half", "half states", "half head"],
)
def test_a_loss_scaler_saves_half_precision_gradients(
    way: str, form: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Scaled, the gradients of a float16 student are those of a double up to its rounding; none underflows."""
    exact = gradients(METHODS[way], form, (torch.float64, torch.float64), 1.0)
    found = gradients(METHODS[way], form, dtypes, SCALE)
    for got, want in zip(found, exact, strict=True):
        assert want.abs().max() < 1e-6
        assert (got - want).abs().max() < 2e-3 * want.abs().max()


def test_an_upstream_gradient_scales_the_result_once() -> None:
    """The loss's own gradient is that of a product rule, whatever the dtype."""
    m = replace(METHODS["separable"], reduction=lb.axes.token_mean)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, HALF):
        once, thrice = (gradients(m, "hidden", (dtype, dtype), s) for s in (1.0, 3.0))
        for a, b in zip(once, thrice, strict=True):
            assert (a - b).abs().max() <= 1e-2 * a.abs().max()
