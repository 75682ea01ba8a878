"""Commands that only describe a method, and mistyped ones, import no PyTorch and answer in a fraction of a second."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import limbeck as lb
from limbeck.math.divergence import rkl

HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy", "matplotlib", "limbeck.engine.run")
"""What takes seconds to import. Pydantic is not among them: recent versions of Typer import it themselves."""

PROBE = f"""
import sys
from limbeck.cli import main
try:
    main()
finally:
    print("heavy:", *sorted({set(HEAVY)!r} & sys.modules.keys()), file=sys.stderr)
"""

DESCRIBING = {
    "": 0,
    "--help": 0,
    "--version": 0,
    "methods": 0,
    "methods --json": 0,
    "methods --long": 0,
    "methods --by access": 0,
    "explain kdrl": 0,
    "explain dpo --json": 0,
    "explain pi_distill": 0,
    "diff gkd kdrl": 0,
    "pipeline": 0,
    "train --help": 0,
    "eval --help": 0,
}
MISTYPED = {
    "trian": "trian",
    "methods --by acces": "access",
    "explain krdl": "kdrl",
    "diff gkd krdl": "kdrl",
    "train krdl": "kdrl",
    "train kdrl --stduent small": "--student",
    "demo --method krdl": "kdrl",
    "pipeline sd_zer": "sd_zero",
    "eval": "--student",
}
"""A mistyped command, and what its sentence has to name."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that keeps compiled modules, as for an installed package."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    dropped = ("PYTHONDONTWRITEBYTECODE", "LIMBECK_DEBUG", "RANK", "WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    package = str(Path(lb.__file__).parents[1])
    return {**kept, "PYTHONPATH": package, "PYTHONPYCACHEPREFIX": folder, "COLUMNS": "200"}


def call(words: str, environment: dict[str, str], folder: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """The finished process, and the CPU-seconds that it used."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words.split()], env=environment, cwd=folder, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("words", DESCRIBING)
def test_describing_imports_nothing_heavy(words: str, environment: dict[str, str], tmp_path: Path) -> None:
    done, _ = call(words, environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "heavy:"


@pytest.mark.parametrize("words", MISTYPED)
def test_a_mistyped_command_is_refused_before_anything_heavy(
    words: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done, _ = call(words, environment, tmp_path)
    assert done.returncode == 2
    assert MISTYPED[words] in done.stderr
    assert done.stderr.splitlines()[-1] == "heavy:"


def test_a_report_is_drawn_without_pytorch(environment: dict[str, str], tmp_path: Path) -> None:
    done, _ = call("report nothing", environment, tmp_path)
    assert done.returncode == 2
    assert "nothing" in done.stderr
    assert not {"torch", "transformers", "limbeck.engine"} & {*done.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize("words", ["--help", "methods", "explain kdrl", "diff gkd kdrl", "trian"])
def test_an_answer_takes_less_than_a_second_of_processor_time(
    words: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """A quarter of one where this was written; a slow machine may take four times that. The first call compiles."""
    assert min(call(words, environment, tmp_path)[1] for _ in range(4)) < 1.0


def loaded(code: str, environment: dict[str, str]) -> set[str]:
    """The modules of ``HEAVY`` that some Python code has imported."""
    code = f"import sys\nimport limbeck as lb\n{code}\nprint(*{set(HEAVY)!r} & sys.modules.keys())"
    return set(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split())


def test_python_describes_a_method_without_pytorch(environment: dict[str, str]) -> None:
    code = "m = lb.methods.kdrl(coef=0.1); lb.explain(m), lb.diff(m, 'gkd'), str(m.terms), dir(lb), hash(m.terms)"
    assert loaded(code, environment) == set()
    code = "assert len([x() for x in vars(lb.methods).values() if isinstance(x, type(lb.methods.kdrl))]) > 40"
    assert loaded(code, environment) == set()


def test_a_loss_brings_pytorch_and_not_the_engine() -> None:
    found = loaded("lb.objective('kdrl')", dict(os.environ))
    assert "torch" in found
    assert "limbeck.engine" not in found


@pytest.mark.parametrize("name", sorted({*lb.__all__} - {"methods", "pipelines"}))
def test_public_names_are_functions_and_classes_whatever_was_imported_before(name: str) -> None:
    """The engine, which is imported here, has imported modules that are called as some functions are."""
    assert "limbeck.engine" in sys.modules
    assert callable(getattr(lb, name))
    assert name in dir(lb)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'limbeck' has no attribute 'distil'"):
        lb.distil  # noqa: B018


def test_annotations_name_the_true_tensor() -> None:
    hints = typing.get_type_hints(rkl.cells)
    assert hints == {"logq": torch.Tensor, "logp": torch.Tensor, "return": torch.Tensor}
