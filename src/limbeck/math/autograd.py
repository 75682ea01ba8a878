"""Gradients of row functions by autograd, for those without a closed form."""

from __future__ import annotations

from collections.abc import Callable

from ..lazy_torch import Tensor, torch


def flow_by_autograd(value: Callable[[Tensor], Tensor], logq: Tensor) -> Tensor:
    """The derivative of each row's value with respect to its log-probs, taken as independent numbers.

    This is what a closed form ``flow`` gives. An entry with probability 0 gets 0, because no finite change of its logit
    moves it.
    """
    with torch.enable_grad():
        leaf = logq.detach().requires_grad_()
        values = value(leaf)
        found = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    flow = torch.zeros_like(logq) if found is None else found
    return torch.where(torch.isneginf(logq), torch.zeros_like(flow), flow)
