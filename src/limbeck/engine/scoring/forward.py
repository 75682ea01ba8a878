"""The forward pass of models: from ragged records to padded rectangles and back.

No other module pads or shifts by one.

Row n of the scores comes from the model's state at ``pos_N[n] - 1``, the state that *predicts* scored token n.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...kernels.tiles import StatisticRequest, statistics, top_k_rows
from ...math.statistic import LogProb
from ...types import Dense, Hidden, Rollout, Sampled, Scores, TopK
from ..models.policy import Policy


def rectangle(record: Rollout, pad: int, device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """``ids_BT``, ``mask_BT`` and (row, column) of the state that predicts each scored token; padded on the right."""
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
    """``consume`` of the model's scores on one micro-batch, inside the module's forward."""
    ids_BT, mask_BT, rows = rectangle(record, policy.pad, policy.device)
    return policy.scorer(ids_BT, mask_BT, rows, consume)


@torch.no_grad()
def score_record(
    policy: Policy, record: Rollout, abilities: frozenset[str], micro_tokens: int, k: int | None, rounds: int = 0
) -> Scores:
    """The scores of a model on a record, without gradient, in the smallest form that has the abilities.

    Args:
        policy: the model.
        record: as the model reads it.
        abilities: ``sampled``, ``topk``, ``at`` or ``dense``, as ``space.abilities`` defines them.
        micro_tokens: tokens a forward pass.
        k: entries of a top-k.
        rounds: least number of forward passes, for a module whose processes must all do the same number.
    """
    parts: list[Scores] = []
    for first, last in record.cuts(micro_tokens):
        part = record.groups(first, last)[0]
        token_N = part.token_N.to(policy.device)
        parts.append(run_model(policy, part, partial(_smallest, token_N=token_N, abilities=abilities, k=k)))
    for _ in range(rounds - len(parts)):
        run_model(policy, record.groups(0, 1)[0], _ignore)
    joined = Scores.cat(parts)
    return joined.snapshot() if any(p.requires_grad for p in policy.scorer.parameters()) else joined


def _ignore(scores: Dense | Hidden) -> None:
    del scores


def _smallest(scores: Dense | Hidden, token_N: Tensor, abilities: frozenset[str], k: int | None) -> Scores:
    """The full scores, their top-k, or the log-probs of the sampled tokens."""
    if abilities & {"dense", "at"} or len(abilities) > 1:
        return scores.detach()
    if "topk" in abilities and k is not None:
        return TopK(*top_k_rows(scores, k))
    return Sampled(statistics(scores, token_N, [StatisticRequest(LogProb())])[0])
