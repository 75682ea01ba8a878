"""Pipelines: lists of stages, for recipes that take more than one method (distil, then reinforce).

Each stage trains the student from the previous stage. Published pipelines are in ``methods/pipelines``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import LimbeckError, expect, nearest, shown, whole
from .method import Method
from .registry import Registered, call, check_factory, claim, get


@dataclass(frozen=True)
class Stage:
    """One method, run on the student from the previous stage.

    Attributes:
        method: a registered name.
        settings: settings of the run and arguments of the method that differ from those of the pipeline.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect("the method of a stage", self.method, str, "give a registered name such as 'kdrl'")
        expect("the settings of a stage", self.settings, Mapping, "give them by name")

    def value(self, settings: Mapping[str, Any] | None = None) -> Method:
        """Its method, with arguments from the settings of the pipeline and its own; its own take precedence."""
        recipe = get(self.method)
        return recipe(**{k: v for k, v in {**(settings or {}), **self.settings}.items() if k in recipe.arguments})

    def __str__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.method}({settings})"


@dataclass(frozen=True)
class Pipeline:
    """Stages, run in order.

    Attributes:
        stages: at least one.
        repeat: the number of times that the whole list is run; 1 (ours).
        name, title, paper: those of a named pipeline; they are not compared.
    """

    stages: tuple[Stage, ...]
    repeat: int = 1
    name: str = field(default="", compare=False)
    title: str = field(default="", compare=False)
    paper: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        expect(
            "the stages of a pipeline", self.stages, (tuple, list), "give a list such as [stage('sft'), stage('opd')]"
        )
        object.__setattr__(self, "stages", tuple(self.stages))
        whole("repeat of a pipeline", self.repeat, 1)
        if not self.stages:
            raise LimbeckError("this pipeline is empty; give at least one stage, such as stage('sft').")
        for part in self.stages:
            expect("a stage of a pipeline", part, Stage, "give stage('sft')")
            get(part.method)  # an unknown name is an error now, and not after the earlier stages have run

    @property
    def unrolled(self) -> tuple[Stage, ...]:
        """Every stage in the order in which they run."""
        return self.stages * self.repeat

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its stages, without repetition."""
        return tuple(dict.fromkeys(part.method for part in self.stages))

    def adjusted(self, **stages: Mapping[str, Any]) -> Pipeline:
        """The same pipeline with further settings for the stages of some methods: ``adjusted(grpo={"steps": 50})``.

        Raises:
            LimbeckError: for a method that no stage runs.
        """
        for method, settings in stages.items():
            if method not in self.methods:
                near = nearest(method, self.methods)
                raise LimbeckError(f"no stage runs {method!r}{near}; use one of {', '.join(self.methods)}.")
            expect(f"the settings of {method}", settings, Mapping, "give them by name")
        own = (Stage(s.method, {**s.settings, **stages.get(s.method, {})}) for s in self.stages)
        return replace(self, stages=tuple(own))

    def __str__(self) -> str:
        listed = " → ".join(map(str, self.stages))
        return listed if self.repeat == 1 else f"({listed}) × {self.repeat}"


def stage(method: str, **settings: Any) -> Stage:
    """A stage that trains with a method; ``settings`` are those of ``lb.distill``."""
    return Stage(method, settings)


# ---------------------------------------------------------------- named pipelines


@dataclass(frozen=True)
class PipelineRecipe(Registered):
    """A registered pipeline."""

    def __call__(self, **arguments: object) -> Pipeline:
        value = call(self.name, self._checked, arguments)
        return replace(value, name=self.name, title=self.title, paper=self.paper)

    @property
    def _checked(self) -> Callable[..., Pipeline]:
        """The factory, which also builds every stage's method, so that an error names an argument of this pipeline."""

        @functools.wraps(self.factory)
        def checked(**arguments: object) -> Pipeline:
            value = self.factory(**arguments)
            expect(f"what {self.name} returns", value, Pipeline, "return an lb.Pipeline")
            for part in value.stages:
                part.value()
            return value

        return checked


PIPELINES: dict[str, PipelineRecipe] = {}
"""Every named pipeline."""


def pipeline(paper: str, title: str = "") -> Callable[[Callable[..., Pipeline]], PipelineRecipe]:
    """Register a factory of pipelines under its own name, which must not be taken (see ``limbeck.space.registry``).

    Args:
        paper: the publication, for instance ``arXiv:2604.12002``.
        title: the name that the paper gives it; by default the name of the function.

    Raises:
        LimbeckError: for a name that is taken, or a function that cannot be registered.
    """
    if callable(paper):
        raise LimbeckError("@pipeline was written without its arguments; write @pipeline(paper='', title='...').")

    def register(factory: Callable[..., Pipeline]) -> PipelineRecipe:
        check_factory("pipeline", factory, paper, title)
        recipe = PipelineRecipe(factory.__name__, factory, title or factory.__name__, paper)
        taken = PIPELINES.get(recipe.name)
        claim("pipeline", recipe.name, factory, taken and taken.factory)
        PIPELINES[recipe.name] = recipe
        return recipe

    return register


def get_pipeline(name: str) -> PipelineRecipe:
    """The registered pipeline of a name.

    Raises:
        LimbeckError: for an unknown name, with the nearest one.
    """
    if not isinstance(name, str) or name not in PIPELINES:
        near = nearest(name, PIPELINES)
        raise LimbeckError(f"unknown pipeline {shown(name)}{near}; use one of {', '.join(PIPELINES)}.")
    return PIPELINES[name]
