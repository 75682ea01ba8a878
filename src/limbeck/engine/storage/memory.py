"""State of a run besides weights and optimiser: numbers, rollouts that are written once, and skills."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ...axes.context import Bank
from ...types import Rollout, concatenate


@dataclass
class Skill:
    """A text, how often it was chosen, and the sum of the rewards that followed."""

    text: str
    chosen: int = 0
    total: float = 0.0


@dataclass
class Memory:
    """State that methods keep between steps.

    Attributes:
        numbers: moving averages and values of controllers, by name.
        written: stored rollouts by source and prompt id, each the record of one group without its prompts.
        skills: by prompt id.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    written: dict[str, dict[str, Rollout]] = field(default_factory=dict)
    skills: dict[str, list[Skill]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Numbers and skills, for ``state.json`` of a checkpoint."""
        skills = {p: [[s.text, s.chosen, s.total] for s in found] for p, found in self.skills.items()}
        return {"numbers": self.numbers, "skills": skills}

    def to_tensors(self, rank: int = 0) -> dict[str, Tensor]:
        """The stored rollouts, for ``stored.safetensors`` of a checkpoint.

        Args:
            rank: number of the process whose memory this is.

        Returns:
            Tensors whose keys are JSON lists: the rank, the source, the field of ``Rollout``, and the name of a column.
            Texts are JSON in bytes; the texts ``prompts`` are the prompt ids of the groups.
        """
        tensors = {}
        for source, groups in self.written.items():
            if not groups:
                continue
            record = concatenate(list(groups.values()))
            tensors[_key(rank, source, "prompts")] = _as_bytes(list(groups))
            for f in fields(Rollout):
                value = getattr(record, f.name)
                if isinstance(value, Tensor):
                    tensors[_key(rank, source, f.name)] = value
                elif isinstance(value, Mapping):
                    tensors |= {_key(rank, source, f.name, name): column for name, column in value.items()}
                else:
                    tensors[_key(rank, source, f.name)] = _as_bytes(value)
        return tensors

    @staticmethod
    def restored(state: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int = 0) -> Memory:
        """The memory of a process from ``to_json`` and ``to_tensors``."""
        skills = {p: [Skill(str(t), int(n), float(x)) for t, n, x in found] for p, found in state["skills"].items()}
        numbers = {str(k): float(v) for k, v in state["numbers"].items()}
        values: dict[str, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            process, source, name, *column = json.loads(key)
            if process != rank:
                continue
            found = values.setdefault(source, {})
            if column:
                found.setdefault(name, {})[column[0]] = tensor
            else:
                found[name] = tuple(json.loads(tensor.numpy().tobytes())) if tensor.dtype == torch.uint8 else tensor
        written = {}
        for source, found in values.items():
            ids, record = found.pop("prompts"), Rollout(**found)
            written[source] = {p: record.groups(g, g + 1)[0] for g, p in enumerate(ids)}
        return Memory(numbers, written, skills)

    def choose(self, prompt: str, bank: Bank) -> Skill | None:
        """The skill with the largest upper confidence bound, an untried one first; None where there is no skill."""
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
        """Credit the skill that was used, and add a new one; beyond the bank's size the worst one is removed."""
        skills = self.skills.setdefault(prompt, [])
        if used is not None:
            used.chosen, used.total = used.chosen + 1, used.total + reward
        if text and text not in [s.text for s in skills]:
            skills.append(Skill(text))
        if len(skills) > bank.size:
            tried = [s for s in skills if s.chosen]
            skills.remove(min(tried, key=lambda s: s.total / s.chosen) if tried else skills[0])


def _key(*parts: int | str) -> str:
    return json.dumps(parts)


def _as_bytes(texts: Any) -> Tensor:
    """Texts as the bytes of JSON."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)
