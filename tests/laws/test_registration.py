"""A name cannot be registered twice, and what cannot be registered gives one sentence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import limbeck as lb
from limbeck.axes import reinforce, sample, score
from limbeck.errors import LimbeckError
from limbeck.space.pipeline import PIPELINES, pipeline
from limbeck.space.registry import REGISTRY, get, method


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    before, plans = dict(REGISTRY), dict(PIPELINES)
    yield
    for held, was in ((REGISTRY, before), (PIPELINES, plans)):
        held.clear()
        held.update(was)


def _value() -> lb.Method:
    return lb.Method(sample(), lb.Term(score, reinforce))


def test_a_method_of_limbeck_is_not_replaced() -> None:
    ours = get("kdrl")
    with pytest.raises(LimbeckError, match=r"kdrl: a method of that name is registered already, by .*joint"):

        @method(paper="", title="Mine")
        def kdrl() -> lb.Method:
            return _value()

    assert get("kdrl") is ours


def test_a_pipeline_of_limbeck_is_not_replaced() -> None:
    with pytest.raises(LimbeckError, match="a pipeline of that name is registered already"):

        @pipeline(paper="", title="Mine")
        def sd_zero() -> lb.Pipeline:
            return lb.Pipeline([lb.pipeline.run("sft")])


def test_the_same_definition_may_run_again() -> None:
    """A cell of a notebook, a reloaded module."""
    for title in ("First", "Second"):

        @method(paper="", title=title)
        def mine_again() -> lb.Method:
            return _value()

    assert get("mine_again").title == "Second"


def test_an_argument_without_annotation_or_default_is_no_traceback() -> None:
    @method(paper="", title="Mine")
    def mine_bare(coef, n: int = 2):  # type: ignore[no-untyped-def]
        return coef * lb.Term(score, reinforce) and lb.Method(sample(n=n), coef * lb.Term(score, reinforce))

    assert isinstance(get("mine_bare")(coef=2.0), lb.Method)
    with pytest.raises(LimbeckError, match="coef"):
        get("mine_bare")()
    with pytest.raises(LimbeckError, match="n='x' is not a whole number"):
        get("mine_bare")(coef=1.0, n="x")


def test_a_decorator_without_its_arguments_is_refused() -> None:
    with pytest.raises(LimbeckError, match="without its arguments"):
        method(_value)  # type: ignore[arg-type]


def test_a_recipe_that_builds_no_method_is_refused() -> None:
    @method(paper="", title="Mine")
    def mine_nothing() -> lb.Method:
        return None  # type: ignore[return-value]

    with pytest.raises(LimbeckError, match="what mine_nothing returns"):
        get("mine_nothing")()
