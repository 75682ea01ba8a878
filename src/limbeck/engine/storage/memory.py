"""What a run remembers besides weights and optimiser: numbers, what was written once, and skills."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...axes.context import Bank


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
