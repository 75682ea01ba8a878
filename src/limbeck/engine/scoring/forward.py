"""Between ragged records and the rectangles that models want. The only place that pads, and that shifts by one.

Trajectory n of a carrier is the model's state at ``pos_N[n] - 1``: the state that *predicts* scored token n.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...kernels.tiles import StatisticRequest, statistics, top_k_rows
from ...math.statistic import LogProb
from ...types import Carrier, Dense, Head, Hidden, Rollout, Sampled, TopK, View
from ..models.policy import Policy


def rectangle(record: Rollout, pad: int, device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """``ids_BT``, ``mask_BT`` and the (row, column) of the state that predicts each scored token; padded right."""
    length_B = record.start_B1.diff()
    T = int(length_B.max()) if length_B.numel() else 1
    column = torch.arange(T).unsqueeze(0)
    mask_BT = column < length_B.cpu().unsqueeze(1)
    ids_BT = torch.full(mask_BT.shape, pad, dtype=torch.int64)
    ids_BT[mask_BT] = record.ids_L.cpu()
    seq_N = record.seq_N.cpu()
    shifted_N = record.pos_N.cpu() - record.start_B1.cpu()[seq_N] - 1
    return ids_BT.to(device), mask_BT.to(device, torch.int64), (seq_N.to(device), shifted_N.to(device))


def run_model(policy: Policy, record: Rollout, consume: Callable[[Dense | Hidden], Any]) -> Any:
    """``consume`` of the model's carrier on one micro-batch, inside the module's forward."""
    ids_BT, mask_BT, rows = rectangle(record, policy.pad, policy.device)
    return policy.scorer(ids_BT, mask_BT, rows, consume)


@torch.no_grad()
def read_view(
    policy: Policy, record: Rollout, abilities: frozenset[str], micro_tokens: int, k: int | None, rounds: int = 0
) -> View:
    """What a frozen reader says of a record: the smallest payload that serves the abilities.

    Args:
        policy, record: who reads what.
        abilities: what is asked of it.
        micro_tokens: tokens a forward pass.
        k: rows of a top-k payload.
        rounds: forward passes at the least, for a module whose processes must do as many as each other.
    """
    parts: list[Carrier] = []
    for first, last in record.cuts(micro_tokens):
        part = record.groups(first, last)[0]
        token_N = part.token_N.to(policy.device)
        parts.append(run_model(policy, part, partial(_payload, token_N=token_N, abilities=abilities, k=k)))
    for _ in range(rounds - len(parts)):
        run_model(policy, record.groups(0, 1)[0], _ignore)
    return View(_still(_join(parts)) if any(p.requires_grad for p in policy.scorer.parameters()) else _join(parts))


def _ignore(carrier: Dense | Hidden) -> None:
    del carrier


def _still(carrier: Carrier) -> Carrier:
    """With a head of its own: the student's moves in place under what was read of it."""
    if not isinstance(carrier, Hidden):
        return carrier
    head = carrier.head
    bias = None if head.bias_V is None else head.bias_V.clone()
    return Hidden(carrier.hidden_NH, Head(head.weight_VH.clone(), bias, head.scale, head.softcap))


def _payload(carrier: Dense | Hidden, token_N: Tensor, abilities: frozenset[str], k: int | None) -> Carrier:
    if abilities & {"dense", "at"} or len(abilities) > 1:
        return detached(carrier)
    if "topk" in abilities and k is not None:
        return TopK(*top_k_rows(carrier, k))
    return Sampled(statistics(carrier, token_N, [StatisticRequest(LogProb())])[0])


def detached(carrier: Dense | Hidden) -> Dense | Hidden:
    """The same rows without gradient."""
    if isinstance(carrier, Dense):
        return Dense(carrier.logits_NV.detach())
    head = carrier.head
    bias = None if head.bias_V is None else head.bias_V.detach()
    return Hidden(carrier.hidden_NH.detach(), Head(head.weight_VH.detach(), bias, head.scale, head.softcap))


def _join(parts: list[Carrier]) -> Carrier:
    first = parts[0]
    if isinstance(first, Sampled):
        return Sampled(torch.cat([p.logp_N for p in parts if isinstance(p, Sampled)]))
    if isinstance(first, TopK):
        tops = [p for p in parts if isinstance(p, TopK)]
        return TopK(torch.cat([p.ids_NK for p in tops]), torch.cat([p.logp_NK for p in tops]))
    if isinstance(first, Dense):
        return Dense(torch.cat([p.logits_NV for p in parts if isinstance(p, Dense)]))
    return Hidden(torch.cat([p.hidden_NH for p in parts if isinstance(p, Hidden)]), first.head)
