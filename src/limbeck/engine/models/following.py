"""Models whose weights follow the student's: a moving average, or a copy taken now and then."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...axes.reader import Follow
from .policy import Policy


class FollowingModel:
    """A policy whose weights follow the student's by a rule."""

    def __init__(self, student: Policy, role: str, follow: Follow):
        self.follow = follow
        scorer = copy.deepcopy(student.scorer)
        self.policy = Policy(scorer, student.tokenizer, role, student.template, student.chat)

    @torch.no_grad()
    def after(self, step: int, student: Any) -> None:
        """Follow the student's module, ``step`` (from 0) being done."""
        done, follow = step + 1, self.follow
        if follow.reset and done % follow.reset == 0:
            self._towards(student, 1.0)
        elif done % follow.every == 0:
            self._towards(student, follow.rate)

    def _towards(self, student: Any, rate: float) -> None:
        own = dict(self.policy.scorer.named_parameters())
        for name, now in student.named_parameters():
            own[name].lerp_(now.detach().to(own[name].dtype), rate) if rate < 1 else own[name].copy_(now)

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, for a checkpoint."""
        return {n: p.detach().contiguous().cpu() for n, p in self.policy.scorer.named_parameters()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Its weights again."""
        for name, parameter in self.policy.scorer.named_parameters():
            parameter.copy_(tensors[name])
