"""Published recipes of more than one stage, by name: ``lb.pipelines.sd_zero(iterations=2)``, ``limbeck pipeline``.

What one method can say is a method (VPD's two steps alternate within one run). A pipeline hands a student on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import LimbeckError, expect, nearest, shown, whole
from ..space.pipeline import Pipeline, run
from ..space.registry import arguments_of, call, check_factory, claim


@dataclass(frozen=True)
class Plan:
    """A registered pipeline: a factory with its paper."""

    name: str
    factory: Callable[..., Pipeline]
    title: str
    paper: str

    @property
    def doc(self) -> str:
        """The docstring: what the stages are, and the source of each default."""
        return inspect.getdoc(self.factory) or ""

    @property
    def arguments(self) -> dict[str, object]:
        """Arguments and their defaults."""
        return arguments_of(self.factory)

    def __call__(self, **arguments: object) -> Pipeline:
        value = call(self.name, self._checked, arguments)
        return replace(value, name=self.name, title=self.title, paper=self.paper)

    @property
    def _checked(self) -> Callable[..., Pipeline]:
        """The factory, whose stages' methods are built at once, so that a wrong argument is told as this pipeline's."""

        @functools.wraps(self.factory)
        def checked(**arguments: object) -> Pipeline:
            value = self.factory(**arguments)
            expect(f"what {self.name} returns", value, Pipeline, "return an lb.Pipeline")
            for stage in value.stages:
                stage.value()
            return value

        return checked


PIPELINES: dict[str, Plan] = {}
"""Every named pipeline."""


def pipeline(paper: str, title: str = "") -> Callable[[Callable[..., Pipeline]], Plan]:
    """Register a factory of pipelines under its own name, which nobody else may have (see ``limbeck.space.method``).

    Args:
        paper: where it is published, for instance ``arXiv:2604.12002``.
        title: what the field calls it; default: its name.

    Raises:
        LimbeckError: for a name that is taken, or a function that cannot be registered.
    """
    if callable(paper):
        raise LimbeckError("@pipeline was written without its arguments; write @pipeline(paper='', title='...').")

    def register(factory: Callable[..., Pipeline]) -> Plan:
        check_factory("pipeline", factory, paper, title)
        plan = Plan(factory.__name__, factory, title or factory.__name__, paper)
        taken = PIPELINES.get(plan.name)
        claim("pipeline", plan.name, factory, taken and taken.factory)
        PIPELINES[plan.name] = plan
        return plan

    return register


def get_pipeline(name: str) -> Plan:
    """The pipeline of that name.

    Raises:
        LimbeckError: with the nearest name.
    """
    if not isinstance(name, str) or name not in PIPELINES:
        near = nearest(name, PIPELINES)
        raise LimbeckError(f"unknown pipeline {shown(name)}{near}; there are {', '.join(PIPELINES)}.")
    return PIPELINES[name]


# ---------------------------------------------------------------- the pipelines


@pipeline(paper="arXiv:2604.12002", title="SD-Zero")
def sd_zero(iterations: int = 1) -> Pipeline:
    """Learn to revise, then let the reviser teach: SD-Zero's two phases, once or several times.

    Phase 1 (``sd_zero_srt``) trains the student on its own correct revisions. In phase 2 (``sd_zero``) the teacher is
    what phase 1 left, frozen. With more iterations both are repeated on the student so far; the paper's further
    iterations set the teacher to the student after each epoch.

    Args:
        iterations: how often both phases are run; 1 (paper; it reports a further gain from another).
    """
    whole("iterations of sd_zero", iterations, 1)
    return Pipeline((run("sd_zero_srt"), run("sd_zero")), repeat=iterations)


@pipeline(paper="arXiv:2604.13010", title="Lightning OPD")
def lightning(tau: float | None = None) -> Pipeline:
    """Train on the teacher's own text, then distil offline from log-probs that the same teacher stored.

    The first stage is ``gkd`` with a forward KL on text that the teacher writes: the expected gradient of supervised
    fine-tuning on it, with less variance. Then ``lightning_opd``, whose rollouts and teacher's log-probs are made once.
    The same teacher in both is what the paper calls teacher consistency, and the point of having them in one pipeline.

    Args:
        tau: clip of the second stage's advantage; None (code; the paper's value is not published).
    """
    return Pipeline((run("gkd", lam=0.0, divergence="fkl", seq_kd=True), run("lightning_opd", tau=tau)))


@pipeline(paper="arXiv:2605.16826", title="Distillation, then GRPO")
def opd_then_rl(divergence: str = "rkl", reference: float = 0.0) -> Pipeline:
    """On-policy distillation over the full vocabulary, then GRPO from its student.

    The paper reports that GRPO falls from a reverse-KL start and rises from a forward-KL one (read off figures by a
    note-taker); compare ``divergence="fkl"`` with the default.

    Args:
        divergence: of the first stage; ``rkl``.
        reference: GRPO's coefficient of the KL to the distilled student; 0 (ours), so that none is kept in memory.
    """
    return Pipeline((run("opd_full", divergence=divergence), run("grpo", ref_coef=reference)))


__all__ = ["PIPELINES", "Plan", "get_pipeline", "lightning", "opd_then_rl", "pipeline", "sd_zero"]
