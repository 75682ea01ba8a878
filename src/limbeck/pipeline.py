"""Pipelines: lists of stages, for what one method cannot say (distil, then reinforce).

A stage hands its student to the next. ``run`` is the stage there is; ``merge``, ``snapshot``, ``curate`` and ``write``
(SPACE 1.5) join with the methods that need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import LimbeckError, expect, whole
from .registry import get


@dataclass(frozen=True)
class Stage:
    """Run a method on the student that the stage before left.

    Attributes:
        method: a registered name.
        settings: fields of the run and arguments of the method that differ from the pipeline's own.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect("the method of a stage", self.method, str, "give a registered name such as 'kdrl'")
        expect("the settings of a stage", self.settings, Mapping, "give them by name")

    def __str__(self) -> str:
        told = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.method}({told})"


@dataclass(frozen=True)
class Pipeline:
    """Stages, run in order.

    Attributes:
        stages: at least one.
        repeat: how often the whole list is run.
    """

    stages: tuple[Stage, ...]
    repeat: int = 1

    def __post_init__(self) -> None:
        expect("the stages of a pipeline", self.stages, (tuple, list), "give a list such as [run('sft'), run('opd')]")
        object.__setattr__(self, "stages", tuple(self.stages))
        whole("repeat of a pipeline", self.repeat, 1)
        if not self.stages:
            raise LimbeckError("this pipeline is empty; give at least one stage, such as run('sft').")
        for stage in self.stages:
            expect("a stage of a pipeline", stage, Stage, "give run('sft')")
            get(stage.method)  # an unknown name is refused here, not after the stages before it have run

    @property
    def unrolled(self) -> tuple[Stage, ...]:
        """Every stage in the order it is run."""
        return self.stages * self.repeat

    def __str__(self) -> str:
        listed = " → ".join(map(str, self.stages))
        return listed if self.repeat == 1 else f"({listed}) × {self.repeat}"


def run(method: str, **settings: Any) -> Stage:
    """The stage that trains by a method; ``settings`` are those of ``lb.distill``."""
    return Stage(method, settings)
