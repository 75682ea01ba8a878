"""Models whose weights follow the student's: a moving average, or a periodic copy."""

from __future__ import annotations

import copy
from typing import Any

import torch

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
        """Update the weights from the student's module, after step ``step`` (from 0)."""
        done, follow = step + 1, self.follow
        if follow.reset and done % follow.reset == 0:
            self._towards(student, 1.0)
        elif done % follow.every == 0:
            self._towards(student, follow.rate)

    def _towards(self, student: Any, rate: float) -> None:
        own = dict(self.policy.scorer.named_parameters())
        for name, now in student.named_parameters():
            own[name].lerp_(now.detach().to(own[name].dtype), rate) if rate < 1 else own[name].copy_(now)
