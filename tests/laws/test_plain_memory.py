"""What an objective keeps between calls: passed in, saved, restored, and moved once by the micro-batches of a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import make
from limbeck.axes import (
    budget,
    divergence_loss,
    entropy_gate,
    group_advantage,
    reinforce,
    reward,
    running,
    sample,
    score,
    teacher,
    token_mean,
)
from limbeck.axes.scalar import Controller
from limbeck.space.method import Method
from limbeck.space.term import Term

C = make()
GIVEN = {"reward": C.given["reward"], "group": C.given["group"], "correct": C.given["correct"]}
GIVEN |= {"truncated": torch.arange(8) % 3 == 0}


@dataclass(frozen=True)
class Counting(Controller):
    """The number of moves; keeps what it was told."""

    def at(self, step: int) -> float:
        return 1.0

    def update(self, state: float | None, step: int, metrics: Mapping[str, float]) -> float:
        SEEN.append((step, dict(metrics)))
        return (1.0 if state is None else state) + 1.0


SEEN: list[tuple[int, dict[str, float]]] = []
COUNT = Counting()
COUNTED = Method(sample(n=2), COUNT * Term(group_advantage(), reinforce), budget(20))
AVERAGE = running(score.over("batch", "mean"), 0.75)
AVERAGED = Method(sample(n=2), Term(reward - AVERAGE, reinforce), budget(20))


def call(objective: lb.Objective, rows: slice = slice(None), **given: Any) -> Tensor:
    some = {k: v[rows] for k, v in GIVEN.items()}
    return objective(C.logits[rows], C.tokens[rows], C.mask[rows], **some, **given).loss


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


MICRO = [slice(0, 2), slice(2, 6), slice(6, 8)]


def test_micro_batches_are_one_step_of_a_controller() -> None:
    """It moves once, and reads what the whole batch would have told it."""
    whole, cut = lb.objective(COUNTED), lb.objective(COUNTED)
    call(whole, step=4)
    losses = [call(cut, rows, step=4, accumulate=rows is not MICRO[-1]) for rows in MICRO]
    assert whole.memory == cut.memory == {COUNT.name: 2.0}
    (step, want), (again, got) = SEEN
    assert step == again == 4
    assert set(got) == set(want) >= {"loss", "entropy", "length", "truncated", "reward", "accuracy", "coef/1"}
    assert got == pytest.approx(want)
    assert got["length"] == pytest.approx(float(C.mask.sum()) / 8)
    assert float(sum(losses)) == pytest.approx(want["loss"])
    call(cut, step=5)
    assert cut.memory == {COUNT.name: 3.0}


def test_a_step_is_not_seen_before_it_is_finished() -> None:
    objective = lb.objective(COUNTED)
    first = call(objective, step=0, accumulate=True)
    assert objective.memory == {}
    assert torch.equal(call(objective, step=0, accumulate=True), first)
    with pytest.raises(lb.LimbeckError, match="step is 1, but the micro-batches of step 0 are not finished"):
        call(objective, step=1)
    call(objective, step=1, update=False)
    call(objective, step=0)
    assert objective.memory == {COUNT.name: 2.0}
    assert len(SEEN) == 1


def test_an_evaluation_moves_nothing() -> None:
    objective = lb.objective(COUNTED)
    call(objective)
    before = dict(objective.memory)
    call(objective, update=False)
    assert objective.memory == before
    assert len(SEEN) == 1


def test_a_moving_average_moves_once_by_its_micro_batches() -> None:
    """Each starts from the average before the step; what they give is weighted by tokens."""
    objective = lb.objective(AVERAGED)
    call(objective, step=0)
    name = repr(AVERAGE)
    (start,) = objective.memory.values()
    for rows in MICRO:
        call(objective, rows, step=1, accumulate=rows is not MICRO[-1])
    counts = [float(C.mask[rows].sum()) for rows in MICRO]
    means = [float(GIVEN["reward"][rows].mean()) for rows in MICRO]
    new = sum(n * (0.75 * start + 0.25 * x) for n, x in zip(counts, means, strict=True)) / sum(counts)
    assert objective.memory[name] == pytest.approx(new)


def test_an_average_that_a_batch_leaves_alone_is_not_diluted() -> None:
    """A micro-batch without a unit of it does not count."""
    among = reward > 0.5
    average = running(reward.over("batch", "mean", among), 0.5, among)
    objective = lb.objective(Method(sample(n=2), Term(reward - average, reinforce), budget(20)))
    x = torch.tensor([1.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    objective.memory[repr(average)] = 4.0
    for rows in MICRO:
        objective(C.logits[rows], C.tokens[rows], C.mask[rows], reward=x[rows], accumulate=rows is not MICRO[-1])
    assert objective.memory == {repr(average): 3.0}
    objective.memory[repr(average)] = 2.0  # a mean that leaves the number what it was counts all the same
    x[2], x[4] = 6.0, 6.0
    for rows in MICRO[:2]:
        objective(C.logits[rows], C.tokens[rows], C.mask[rows], reward=x[rows], accumulate=rows is not MICRO[1])
    n, k = (float(C.mask[rows].sum()) for rows in MICRO[:2])
    assert objective.memory[repr(average)] == pytest.approx((n * 2.0 + k * 4.0) / (n + k))


def test_the_memory_can_be_passed_in_and_is_moved_in_place() -> None:
    memory = {COUNT.name: 5.0}
    objective = lb.objective(COUNTED, memory=memory)
    assert float(call(objective)) == pytest.approx(5 * float(call(lb.objective(COUNTED))))
    assert objective.memory is memory
    assert memory == {COUNT.name: 6.0}


def test_a_state_is_saved_and_restored() -> None:
    """Through JSON, as checkpoints hold it; a step begun before it was loaded is forgotten."""
    objective = lb.objective(AVERAGED)
    call(objective, MICRO[0])
    call(objective, MICRO[1])
    state = json.loads(json.dumps(objective.state_dict()))
    copied = objective.state_dict()
    want = call(objective, MICRO[2])
    assert copied == state != objective.state_dict()
    again = lb.objective(AVERAGED)
    call(again, step=7, accumulate=True)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert torch.equal(call(again, MICRO[2], step=0), want)
    again.memory.clear()
    assert state["memory"]


REFUSED = {
    "a list": ([1.0], "the state of an objective is .*give what its state_dict"),
    "an optimiser's": (
        {"state": {}, "param_groups": []},
        "the state of an objective holds 'state', 'param_groups'",
    ),
    "nothing": ({}, "the state of an objective holds no name"),
    "no numbers": ({"memory": {"a": "b"}}, r"memory\['a'\] is 'b'; give a finite number"),
    "NaN": ({"memory": {"a": float("nan")}}, r"memory\['a'\] is nan; give a finite number"),
    "no names": ({"memory": {1: 2.0}}, "a name in memory is 1; names are texts"),
    "no dictionary": ({"memory": [2.0]}, r"memory is \[2.0\]; give a dictionary of numbers by name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_of_something_else_is_refused(name: str) -> None:
    """And leaves the memory as it was."""
    state, says = REFUSED[name]
    objective = lb.objective(COUNTED, memory={"kept": 1.0})
    with pytest.raises(lb.LimbeckError, match=says) as refusal:
        objective.load_state_dict(state)
    assert "\n" not in str(refusal.value)
    assert objective.memory == {"kept": 1.0}


def test_a_memory_of_something_else_is_refused() -> None:
    with pytest.raises(lb.LimbeckError, match="memory is 3; give a dictionary"):
        lb.objective("sft", memory=3)  # type: ignore[arg-type]


GATE = entropy_gate((1, 2), 0.5, 4)
GATED = Method(sample(), GATE * Term(teacher, divergence_loss("rkl")), token_mean)


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({GATE.name: 1e9}, "is no place in its 2 limits"),
        ({GATE.name: -7.0}, "is no place in its 2 limits"),
        ({GATE.name: 0.5}, "is no place in its 2 limits"),
        ({"nosuch": 1.0}, r"memory holds 'nosuch', which this method does not keep \(it keeps .*EntropyGate"),
    ],
)
def test_a_state_that_the_method_cannot_have_is_refused(memory: dict[str, float], says: str) -> None:
    objective = lb.objective(GATED)
    with pytest.raises(lb.LimbeckError, match=says):
        objective.load_state_dict({"memory": memory})
    objective.load_state_dict({"memory": {GATE.name: 1.0}})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"accumulate": "yes"}, "accumulate is 'yes'"),
        ({"update": None}, "update is None"),
        ({"accumulate": True, "update": False}, "accumulate=True with update=False does nothing"),
    ],
)
def test_flags_of_a_step_are_checked(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(lb.LimbeckError, match=says):
        lb.objective("sft")(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), **flags)
