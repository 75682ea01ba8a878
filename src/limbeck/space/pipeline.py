"""Pipelines: lists of stages, for what one method cannot say (distil, then reinforce).

A stage hands its student to the next. ``run`` is the stage there is; ``merge``, ``snapshot``, ``curate`` and ``write``
(SPACE 1.5) join with the methods that need them. Pipelines with names are in ``pipelines``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import LimbeckError, expect, nearest, whole
from .method import Method
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

    def value(self, settings: Mapping[str, Any] | None = None) -> Method:
        """Its method, with the arguments among the pipeline's settings and its own, which win."""
        recipe = get(self.method)
        return recipe(**{k: v for k, v in {**(settings or {}), **self.settings}.items() if k in recipe.arguments})

    def __str__(self) -> str:
        told = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.method}({told})"


@dataclass(frozen=True)
class Pipeline:
    """Stages, run in order.

    Attributes:
        stages: at least one.
        repeat: how often the whole list is run.
        name, title, paper: of a named pipeline; not part of the value.
    """

    stages: tuple[Stage, ...]
    repeat: int = 1
    name: str = field(default="", compare=False)
    title: str = field(default="", compare=False)
    paper: str = field(default="", compare=False)

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

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its stages, each once."""
        return tuple(dict.fromkeys(stage.method for stage in self.stages))

    def adjusted(self, **stages: Mapping[str, Any]) -> Pipeline:
        """The same pipeline with further settings for the stages of some methods: ``adjusted(grpo={"steps": 50})``.

        Raises:
            LimbeckError: for a method that none of its stages runs.
        """
        for method, settings in stages.items():
            if method not in self.methods:
                near = nearest(method, self.methods)
                raise LimbeckError(f"no stage runs {method!r}{near}; the stages run {', '.join(self.methods)}.")
            expect(f"the settings of {method}", settings, Mapping, "give them by name")
        own = (Stage(s.method, {**s.settings, **stages.get(s.method, {})}) for s in self.stages)
        return replace(self, stages=tuple(own))

    def __str__(self) -> str:
        listed = " → ".join(map(str, self.stages))
        return listed if self.repeat == 1 else f"({listed}) × {self.repeat}"


def run(method: str, **settings: Any) -> Stage:
    """The stage that trains by a method; ``settings`` are those of ``lb.distill``."""
    return Stage(method, settings)
