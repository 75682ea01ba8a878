"""The scripts are no package: load each from its file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """Import ``scripts/NAME.py``."""
    spec = importlib.util.spec_from_file_location(f"limbeck_scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def installer() -> ModuleType:
    """``scripts/install.py``."""
    return load("install")


@pytest.fixture(scope="session")
def cutter() -> ModuleType:
    """``scripts/cut_student.py``."""
    return load("cut_student")


@pytest.fixture(scope="session")
def fetcher() -> ModuleType:
    """``scripts/fetch_smollm2.py``."""
    return load("fetch_smollm2")


@pytest.fixture(scope="session")
def mutate() -> ModuleType:
    """``scripts/mutate.py``."""
    return load("mutate")
