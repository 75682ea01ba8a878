"""Curricula: what is asked. (Filters, levels and rewriting join with the methods that use them.)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curriculum:
    """Prompts in a shuffled order, every one once an epoch."""

    name: str = "prompts"

    def __str__(self) -> str:
        return self.name


prompts = Curriculum()
