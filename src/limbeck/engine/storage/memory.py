"""What a run remembers besides weights and optimiser: numbers, what was written once, skills, and following weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...axes.context import Bank
from ...axes.reader import Follow
from ..models.policy import Policy


@dataclass
class Skill:
    """A text with how often it was chosen and what came of it."""

    text: str
    chosen: int = 0
    total: float = 0.0


@dataclass
class Memory:
    """State in plain JSON.

    Attributes:
        numbers: moving averages and controllers, by name.
        written: groups of stored rows by source and prompt (see ``rows.to_json``).
        skills: by prompt.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    written: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    skills: dict[str, list[Skill]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        skills = {p: [[s.text, s.chosen, s.total] for s in found] for p, found in self.skills.items()}
        return {"numbers": self.numbers, "written": self.written, "skills": skills}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Memory:
        """The memory again."""
        skills = {p: [Skill(str(t), int(n), float(x)) for t, n, x in found] for p, found in stored["skills"].items()}
        numbers = {str(k): float(v) for k, v in stored["numbers"].items()}
        return Memory(numbers, dict(stored["written"]), skills)

    def choose(self, prompt: str, bank: Bank) -> Skill | None:
        """The skill with the largest upper confidence bound; one never tried comes first. None where there is none."""
        skills = self.skills.get(prompt, [])
        if not skills:
            return None
        tries = sum(s.chosen for s in skills)

        def bound(skill: Skill) -> float:
            if not skill.chosen:
                return math.inf
            return skill.total / skill.chosen + bank.explore * math.sqrt(math.log(tries) / skill.chosen)

        return max(skills, key=bound)

    def learn(self, prompt: str, bank: Bank, used: Skill | None, reward: float, text: str) -> None:
        """Credit the skill that was used, and add a new one; beyond the bank's size the worst gives way."""
        skills = self.skills.setdefault(prompt, [])
        if used is not None:
            used.chosen, used.total = used.chosen + 1, used.total + reward
        if text and text not in [s.text for s in skills]:
            skills.append(Skill(text))
        if len(skills) > bank.size:
            tried = [s for s in skills if s.chosen]
            skills.remove(min(tried, key=lambda s: s.total / s.chosen) if tried else skills[0])


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
