"""The benchmarks take too long to run here; the tests check that each of their runs would start."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.engine.build import build_method
from limbeck.engine.checks import check_models, check_served
from limbeck.engine.config import RunConfig, configure
from limbeck.space.method import Method
from limbeck.tasks import load_task

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class Begun(Exception):
    """Raised when a run has passed every check that is made before models are loaded."""


def begin(method: str | Method, *, out: Any, **settings: Any) -> None:
    """Run ``lb.distill`` until models are loaded."""
    del out
    settings = {k: v for k, v in settings.items() if k not in ("overwrite", "quiet")}
    named = isinstance(method, str)
    config = configure(method, settings) if named else RunConfig(**{"method": "custom", **settings})
    value = build_method(config) if named else method
    assert isinstance(value, Method)
    check_models(config, value, {}, later=("student",))
    check_served(config, value, {"task": load_task(config.task, seed=config.seed)})
    raise Begun


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("limbeck_benchmarks_family", BENCHMARKS / "family.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.lb, "distill", begin)
    monkeypatch.setattr(module.privileged_student, "make", lambda folder: None)
    return module


@pytest.mark.parametrize("experiment", ["tokens", "extra", "direction", "self", "gentle"])
def test_every_arm_of_the_family_begins(experiment: str, family: Any, tmp_path: Path) -> None:
    assert experiment in family.EXPERIMENTS
    for arm in family.EXPERIMENTS[experiment][1]:
        with pytest.raises(Begun):
            family.run(experiment, arm, 0, tmp_path)


def test_no_experiment_is_left_out(family: Any) -> None:
    assert set(family.EXPERIMENTS) == {"tokens", "extra", "direction", "self", "gentle"}
