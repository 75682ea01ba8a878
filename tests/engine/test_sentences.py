"""Refusals name the right thing: switches are no numbers, nothing unread passes, long names are clipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Shelf

import limbeck as lb
from limbeck import LimbeckError
from limbeck.axes.signal import column
from limbeck.cli.settings import run_config
from limbeck.engine import configure, run_pipeline
from limbeck.engine.build import build_method, prepare_tasks
from limbeck.engine.checks import _reader_of
from limbeck.engine.config import RunConfig, load_toml
from limbeck.space.pipeline import get_pipeline
from limbeck.tasks import load_task

NUMBERS = [name for name, field in RunConfig.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [True, False])
def test_true_is_not_accepted_as_a_number(field: str, value: bool) -> None:
    with pytest.raises(LimbeckError, match=f"{field}={value}: a number is needed, not true or false"):
        configure("grpo", {field: value})


def test_true_is_not_accepted_as_a_number_by_a_task() -> None:
    with pytest.raises(LimbeckError, match="min_terms of task 'chain_sum' is True; give a number"):
        load_task("chain_sum", min_terms=True)


def test_a_data_set_that_no_method_reads_is_refused(shelf: Shelf) -> None:
    config = configure("grpo", shelf.settings("grpo", datasets={"x": "a.jsonl"}))
    with pytest.raises(LimbeckError, match=r"datasets.x is not a data set that grpo reads; it reads the task alone"):
        prepare_tasks(config, build_method(config))


def test_toml_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfmethod = 'grpo'\nlr = 0.5\n")
    assert load_toml(tmp_path / "run.toml") == {"method": "grpo", "lr": 0.5}
    assert run_config(None, {}, tmp_path / "run.toml", []).lr == 0.5


LONG = "k" * 100_000


@pytest.mark.parametrize(
    "give",
    [
        lambda: configure("grpo", {LONG: 1}),
        lambda: configure(LONG, {}),
        lambda: configure("grpo", {"arguments": {LONG: 1}}).recipe(**{LONG: 1}),
        lambda: configure("grpo", {"arguments": LONG}),
        lambda: configure("grpo", {"student": [LONG]}),
        lambda: load_task("chain_sum", **{LONG: 1}),
        lambda: load_task(LONG),
        lambda: load_task("retry", task="chain_sum", turns=LONG),
        lambda: get_pipeline(LONG),
        lambda: lb.methods.grpo(group=LONG),
    ],
)
def test_long_values_are_quoted_by_their_beginning(give: Any) -> None:
    with pytest.raises(LimbeckError) as told:
        give()
    assert len(str(told.value)) < 3000


def test_a_pipeline_names_its_stage(shelf: Shelf, tmp_path: Path) -> None:
    stages = lb.Pipeline((lb.stage("sft"), lb.stage("grpo", lr=-1.0)))
    common = {"student": str(shelf.student), "task": str(shelf.verified)}
    with pytest.raises(LimbeckError, match=r"stage 2 of 2 \(grpo\): lr=-1.0"):
        run_pipeline(stages, tmp_path / "p", quiet=True, **common)


def test_a_column_that_nothing_makes_is_refused_at_the_start(shelf: Shelf) -> None:
    value = build_method(configure("grpo", shelf.settings("grpo")))
    (_, term), *_ = value.parts
    method = lb.Method(value.source, lb.Term(column("difficulty"), term.surrogate), value.reduction)
    config = configure("grpo", shelf.settings("grpo"))
    with pytest.raises(LimbeckError, match="reads the column 'difficulty', which none of its sources makes"):
        prepare_tasks(config, method)


@pytest.mark.parametrize(("method", "who"), [("pi_distill", "student"), ("opsd", "teacher"), ("sdpo", "teacher")])
def test_a_missing_context_names_who_would_see_it(method: str, who: str) -> None:
    value = build_method(configure(method, {}))
    (context,) = [c for c in value.contexts if c.reads]
    assert _reader_of(context, value) == f"its {who}"
