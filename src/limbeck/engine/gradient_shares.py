"""Share of each term in the gradient: the norm of its own gradient, before the terms are added."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..loss.terms import Prepared, loss
from ..space.method import Method
from ..types import Dense, Hidden
from .scoring.forward import detached


def add_squared_gradients(method: Method, micro: Prepared, live: Dense | Hidden, squares: dict[str, float]) -> None:
    """Add each term's squared gradient on a micro-batch to ``squares``, by the term's name, its coefficient included.

    The gradient is taken with respect to the student's last hidden states (its logits, where it has no head of its
    own), one row a scored token. There it is exact, and it takes a pass through the head for each term and none
    through the model. Rows of different micro-batches and processes are different variables, so squares add up. The
    states are a detached copy, so the loss and the gradients of the parameters do not change.
    """
    still = detached(live)
    state = still.logits_NV if isinstance(still, Dense) else still.hidden_NH
    state = state.float() if state.dtype in (torch.bfloat16, torch.float16) else state.clone()  # no square underflows
    state.requires_grad_()
    leaf = Dense(state) if isinstance(still, Dense) else Hidden(state, still.head)
    for part in micro.parts:
        if not part.kept_N.any():
            continue
        with torch.enable_grad():
            value = loss(method, replace(micro, parts=[part]), leaf).loss
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, state)
            squares[part.name] += float(gradient.double().square().sum())
