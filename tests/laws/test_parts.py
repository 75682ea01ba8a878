"""Each part of a method has one name to write it with, and each default is stated once."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

import limbeck as lb
import limbeck.axes
from limbeck.axes import data, divergence_loss, everywhere, length, on, reinforce, teacher
from limbeck.errors import LimbeckError
from limbeck.space.method import Method
from limbeck.space.term import Sum, Term, nll

FILES = sorted(Path(limbeck.axes.__file__).parent.glob("*.py"))
MODULES = [importlib.import_module(f"limbeck.axes.{f.stem}") for f in FILES if f.stem != "__init__"]
CLASSES: dict[str, Any] = {
    name: thing
    for module in MODULES
    for name, thing in vars(module).items()
    if dataclasses.is_dataclass(thing) and isinstance(thing, type) and thing.__module__ == module.__name__
}
FUNCTIONS = [node for f in FILES for node in ast.walk(ast.parse(f.read_text())) if isinstance(node, ast.FunctionDef)]


def with_default(kind: Any) -> set[str]:
    """Fields of a class that need not be given."""
    missing = dataclasses.MISSING
    return {f.name for f in dataclasses.fields(kind) if f.default is not missing or f.default_factory is not missing}


def optional(function: ast.FunctionDef) -> set[str]:
    """Parameters of a function that need not be given."""
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    late = positional[len(positional) - len(a.defaults) :]
    return {p.arg for p in (*late, *(p for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True) if d is not None))}


def made_by(function: ast.FunctionDef) -> set[str]:
    """Classes of ``axes`` that a function makes instances of."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {f.id for f in calls if isinstance(f, ast.Name) and f.id in CLASSES}


def test_the_parts_are_found() -> None:
    """The tests below look at something."""
    made = {kind for f in FUNCTIONS for kind in made_by(f)}
    assert {"Sample", "PolicyLoss", "DivergenceLoss", "Over", "Follow", "Every"} <= made


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_no_class_repeats_a_default_of_the_function_that_makes_it(function: ast.FunctionDef) -> None:
    """Two places that state one default disagree some day."""
    twice = {kind: with_default(CLASSES[kind]) & optional(function) for kind in made_by(function)}
    assert {kind: names for kind, names in twice.items() if names} == {}


def test_a_class_that_is_called_like_a_function_has_no_defaults() -> None:
    """``sample`` states them, ``Sample`` takes what it is given."""
    names = {f.name.replace("_", "") for f in FUNCTIONS if not f.name.startswith("_")}
    twins = [name for name in CLASSES if name.lower() in names]
    assert len(twins) > 20
    assert {name: with_default(CLASSES[name]) for name in twins} == {name: set() for name in twins}


def test_a_method_has_no_axis_that_nothing_reads() -> None:
    """The fields of its value are read by the loss or the engine; the others are its name and paper."""
    value = [f.name for f in dataclasses.fields(Method) if f.compare]
    assert value == ["source", "terms", "reduction", "updates"]
    with pytest.raises(TypeError, match="curriculum"):
        Method(data(), Term(everywhere, reinforce), curriculum="prompts")  # type: ignore[call-arg]


def test_terms_are_summed_like_numbers() -> None:
    """``sum`` starts from 0, which is no term; any other number is refused."""
    a, b = nll(on("a")), Term(teacher, divergence_loss("fkl"), on("b"))
    assert sum([a, b]) == sum([a, b], Sum(())) == a + b
    assert sum([2.0 * a, b]) == 2.0 * a + b
    with pytest.raises(LimbeckError, match=r"1 \+ nll.*multiply"):
        1 + nll()  # type: ignore[operator]


def test_likelihood_is_called_by_its_name() -> None:
    """However it was written."""
    assert str(nll()) == str(Term(everywhere, reinforce)) == "nll"
    assert str(nll(on("lm"), length)) == "nll[where on[lm], weight length]"
    assert str(Term(length, reinforce)) == "reinforce[length]"
    assert "  L = nll\n" in lb.explain("sft")
