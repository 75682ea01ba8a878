"""What stands in for a closed form that was not written."""

from __future__ import annotations

from collections.abc import Callable

from ..lazy_torch import Tensor, torch


def flow_by_autograd(value: Callable[[Tensor], Tensor], logq: Tensor) -> Tensor:
    """The derivative of each row's value by its log-probs, taken as free numbers: what a closed form gives.

    An entry that q excludes receives nothing, because no logit of finite size moves it.
    """
    with torch.enable_grad():
        leaf = logq.detach().requires_grad_()
        values = value(leaf)
        found = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    flow = torch.zeros_like(logq) if found is None else found
    return torch.where(torch.isneginf(logq), torch.zeros_like(flow), flow)
