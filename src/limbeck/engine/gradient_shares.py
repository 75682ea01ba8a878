"""Share of each term in the gradient: the norm of its own gradient, before the terms are added."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..loss.terms import Prepared, loss
from ..space.method import Method
from ..types import Dense, Hidden


def add_squared_gradients(method: Method, micro: Prepared, live: Dense | Hidden, squares: dict[str, float]) -> None:
    """Add each term's squared gradient on a micro-batch to ``squares``, by the term's name, its coefficient included.

    The gradient is taken with respect to the student's last hidden states (its logits, where it has no head of its
    own), one row a scored token. There it is exact, and it takes a pass through the head for each term and none
    through the model. Rows of different micro-batches and processes are different variables, so squares add up. The
    states are a detached copy, so the loss and the gradients of the parameters do not change.
    """
    leaf = live.detach().map(_as_leaf)
    state = leaf.values
    for part in micro.parts:
        if not part.kept_N.any():
            continue
        with torch.enable_grad():
            value = loss(method, replace(micro, parts=[part]), leaf).loss
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, state)
            squares[part.name] += float(gradient.double().square().sum())


def _as_leaf(x: Tensor) -> Tensor:
    """A copy that collects gradients, in float32 where the squares of half precision would underflow."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x.clone()
    return x.requires_grad_()
