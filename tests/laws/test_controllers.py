"""Wherever a scalar may stand, a controller moves it: in a run and in ``lb.objective``."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import limbeck as lb
import limbeck.axes.source
import limbeck.space.method
from limbeck.axes import (
    Context,
    clip,
    either,
    entropy,
    entropy_gate,
    expr,
    group_advantage,
    log_ratio,
    logistic,
    logp,
    old,
    once,
    patch,
    position,
    reinforce,
    resample,
    reward,
    sample,
    sequence_mean,
    teacher,
    token_mean,
    token_sum,
    where,
)
from limbeck.axes.derived_source import recast, select
from limbeck.axes.expression import Expr, Scheduled, op
from limbeck.axes.reader import Reader
from limbeck.axes.reduction import Reduction
from limbeck.axes.scalar import Controller, Scalar, Times, product, scalar
from limbeck.axes.signal import all_wrong, score
from limbeck.axes.surrogate import Surrogate
from limbeck.engine.rollout import sources as engine_write
from limbeck.errors import LimbeckError
from limbeck.space.method import Method
from limbeck.space.term import Sum, Term


@dataclass(frozen=True)
class Doubling(Controller):
    """Says ``at`` and ``update`` only: 0.25, then twice as much after each step."""

    label: str = "c"

    def at(self, step: int) -> float:
        return 0.25

    def update(self, state: float | None, step: int, metrics: Mapping[str, float]) -> float:
        return 2 * (0.25 if state is None else state)

    def __str__(self) -> str:
        return f"doubling {self.label}"


C = Doubling()
A = group_advantage()
PLAIN = Term(A, reinforce)


def of(terms: Any = PLAIN, source: Any = None) -> Method:
    return Method(source or sample(n=2), terms, sequence_mean)


POSITIONS: dict[str, Method] = {
    "Sum.parts": of(C * PLAIN),
    "Times.a": of(Sum(((Times(C, scalar(2.0)), PLAIN),))),
    "Times.b": of(Sum(((Times(scalar(2.0), C), PLAIN),))),
    "Scheduled.scalar": of(Term(A + C * log_ratio(teacher), reinforce)),
    "Sample.max_tokens": of(source=sample(n=2, max_tokens=Times(scalar(8.0), C))),
    "Sample.turns": of(source=sample(n=2, turns=Times(scalar(8.0), C))),
    "Sample.back": of(source=sample(n=2, start=sample(), back=C)),
    "Either.chance": of(source=either(C, sample(n=2), sample(teacher, n=2))),
}
"""Every field of every axis that holds a scalar, by class and field."""

VECS: dict[str, Method] = {
    "where": of(Term(A, reinforce, where=entropy(teacher) > C)),
    "weight": of(Term(A, reinforce, weight=1.0 + C * entropy(teacher))),
    "base": of(Term(A, clip(0.2, base=logp(old) * C))),
    "shift": of(Term(A.over("sequence", "mean"), logistic(1.0, logp(old), C * score))),
    "where()": of(Term(where(reward > 0.0, C * A, A), reinforce)),
    "until": of(source=resample(sample(n=2), ~all_wrong & (score.mean > C))),
    "when": of(source=patch(sample(n=2), sample(teacher), all_wrong & (score.mean < C))),
    "by": of(source=select(sample(n=2), C * score)),
    "inside once": of(source=once(either(C, sample(n=2), sample(teacher, n=2)))),
    "keep and carry": of(
        source={"a": sample(n=2), "b": recast("a", keep=score > C, carry={"x": Doubling("d") * score})}
    ),
    "kdrl_shaping": lb.methods.kdrl_shaping(coef=C),
}
"""Where an expression with a scalar in it may stand."""


ARGUMENTS: dict[str, Method] = {
    "expr.x": of(Term(expr(C), reinforce)),
    "op.args": of(Term(op("·", A, C), reinforce)),
    "Expr.__add__.x": of(Term(A + C, reinforce)),
    "Expr.__radd__.x": of(Term(C + A, reinforce)),
    "Expr.__sub__.x": of(Term(A - C, reinforce)),
    "Expr.__rsub__.x": of(Term(C - A, reinforce)),
    "Expr.__mul__.x": of(Term(A * C, reinforce)),
    "Expr.__rmul__.x": of(Term(C * A, reinforce)),
    "Expr.__truediv__.x": of(Term(A / C, reinforce)),
    "Expr.__rtruediv__.x": of(Term(C / (A + 9.0), reinforce)),
    "Expr.__gt__.x": of(Term(A, reinforce, logp(old) + 4.0 > C)),
    "Expr.__ge__.x": of(Term(A, reinforce, logp(old) + 4.0 >= C)),
    "Expr.__lt__.x": of(Term(A, reinforce, logp(old) + 4.0 < C)),
    "Expr.__le__.x": of(Term(A, reinforce, logp(old) + 4.0 <= C)),
    "Expr.eq.x": of(Term(A, reinforce, ~position.eq(Times(scalar(4.0), C)))),
    "where.a": of(Term(where(reward > 0.0, C, A), reinforce)),
    "where.b": of(Term(where(reward > 0.0, A, C), reinforce)),
    "logistic.shift": of(Term(A.over("sequence", "mean"), logistic(1.0, logp(old), C))),
    "scalar.x": of(scalar(C) * PLAIN),
    "product.a": of(product(C, 2.0) * PLAIN),
    "product.b": of(product(2.0, C) * PLAIN),
    "Term.__mul__.c": of(PLAIN * C),
    "Sum.__mul__.c": of((PLAIN + PLAIN) * C),
    "sample.max_tokens": of(source=sample(n=2, max_tokens=Times(scalar(8.0), C))),
    "sample.turns": of(source=sample(n=2, turns=Times(scalar(8.0), C))),
    "sample.back": of(source=sample(n=2, start=sample(), back=C)),
    "either.chance": of(source=either(C, sample(n=2), sample(teacher, n=2))),
    "gkd.lam": lb.methods.gkd(lam=C),
    "kdrl.coef": lb.methods.kdrl(coef=C),
    "kdrl_shaping.coef": lb.methods.kdrl_shaping(coef=C),
    "kdrl_reward.coef": lb.methods.kdrl_reward(coef=C),
    "rltf_sd.coef": lb.methods.rltf_sd(coef=C),
    "rltf_fm.coef": lb.methods.rltf_fm(coef=C),
    "grpo.ref_coef": lb.methods.grpo(ref_coef=C),
}
"""Every argument of every function that takes a scalar, by function and argument."""


ALL = {**POSITIONS, **VECS, **ARGUMENTS}


def _holders(root: type) -> list[type]:
    return [root, *(k for sub in root.__subclasses__() for k in _holders(sub))]


def test_every_scalar_field_of_every_axis_is_among_the_positions() -> None:
    """Walks the dataclasses, so that a new field that holds a scalar must be added above."""
    roots = (limbeck.axes.source.Source, Expr, Scalar, Surrogate, Reduction, Reader, Context, Sum, Term, Method)
    found = set()
    for kind in dict.fromkeys(k for root in roots for k in _holders(root)):
        if not kind.__module__.startswith("limbeck."):
            continue
        found |= {f"{kind.__name__}.{f.name}" for f in fields(kind) if "Scalar" in str(f.type)}
    assert found == set(POSITIONS)


def _arguments() -> set[str]:
    """Public functions and operators that methods are written with, and their arguments that take a scalar."""
    found = set()
    for folder in ("axes", "methods", "space"):
        for path in (Path(lb.__file__).parent / folder).glob("*.py"):
            for top in ast.parse(path.read_text()).body:
                inner = top.body if isinstance(top, ast.ClassDef) else [top]
                prefix = f"{top.name}." if isinstance(top, ast.ClassDef) else ""
                for node in inner:
                    if isinstance(node, ast.FunctionDef) and not re.match(r"_[^_]", node.name):
                        a = node.args
                        given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *([a.vararg] if a.vararg else [])]
                        kinds = {p.arg: ast.unparse(p.annotation) for p in given if p.annotation}
                        found |= {
                            f"{prefix}{node.name}.{arg}"
                            for arg, kind in kinds.items()
                            if re.search(r"\bScalar\b|\bExprLike\b", kind)
                        }
    return found


def test_every_argument_that_takes_a_scalar_is_among_the_arguments() -> None:
    """Reads the annotations, so that a new argument must be added above."""
    assert _arguments() == set(ARGUMENTS)


@pytest.mark.parametrize("place", ALL)
def test_a_controller_is_found_and_named_wherever_it_stands(place: str) -> None:
    method = ALL[place]
    assert C in method.controllers
    assert "a controller: doubling c" in lb.explain(method)
    if place == "keep and carry":
        assert Doubling("d") in method.controllers


MASKS = {"where", "Expr.__gt__.x", "Expr.__ge__.x", "Expr.__lt__.x", "Expr.__le__.x", "Expr.eq.x"}
"""Places where the value only decides what is kept, so the loss may stay as it is."""

IN_A_LOSS = ["Sum.parts", "Times.a", "Times.b", "Scheduled.scalar", "where", "weight", "base"]
IN_A_LOSS += [place for place, method in ARGUMENTS.items() if method.sources == {"main": sample(n=2)}]


@pytest.mark.parametrize("place", IN_A_LOSS)
def test_the_present_value_is_asked_for_in_a_loss(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = ALL[place]
    call = lb.objective(method)
    given = batch()
    asked: list[int] = []

    def now(self: Doubling, step: int, memory: Mapping[str, float]) -> float:
        asked.append(step)
        return Controller.now(self, step, memory)

    monkeypatch.setattr(Doubling, "now", now)
    first = float(call(**given).loss)
    assert asked
    assert call.memory[C.name] == 0.5
    again = lb.objective(method)
    assert float(again(**given).loss) == first
    assert float(again(**given).loss) != first or place in MASKS


def batch() -> dict[str, Any]:
    g = torch.Generator().manual_seed(2)
    z, p = (torch.randn(4, 3, 6, dtype=torch.float64, generator=g) for _ in range(2))
    tokens = torch.randint(0, 6, (4, 3), generator=g)
    return {
        "student_logits": z,
        "tokens": tokens,
        "teacher_logits": p,
        "reward": torch.tensor([1.0, 0, 0, 1]),
        "group": torch.tensor([0, 0, 1, 1]),
        "old_logp": p.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1) * 0.9,
    }


def test_objective_moves_a_controller_between_calls_and_expressions_see_it() -> None:
    method = Method(sample(n=2), Term(C * (reward * 0.0 + 1.0), reinforce), token_sum)
    call, given = lb.objective(method), batch()
    losses = [float(call(**given).loss) for _ in range(3)]
    assert losses[1] == pytest.approx(2 * losses[0])
    assert losses[2] == pytest.approx(4 * losses[0])
    assert call.memory == {C.name: 2.0}


def test_the_entropy_gate_climbs_in_objective_by_the_entropy_of_the_students_law() -> None:
    def gate(floor: float) -> Method:
        return Method(sample(n=2), entropy_gate((1, 3), floor, 1) * Term(reward * 0.0 + 1.0, reinforce), token_sum)

    given = batch()
    law = given["student_logits"].softmax(-1)
    mean = float(-(law * law.log()).sum(-1).mean())
    for floor, factor in ((mean - 1e-6, 3.0), (mean + 1e-6, 1.0)):
        call = lb.objective(gate(floor))
        first, second = (float(call(**given).loss) for _ in range(2))
        assert second == pytest.approx(factor * first)
    logq = law.log().gather(-1, given["tokens"][..., None]).squeeze(-1)
    with pytest.raises(LimbeckError, match=r"give lb\.objective student_logits"):
        lb.objective(gate(0.5))(student_logp=logq, tokens=given["tokens"], reward=given["reward"])


def test_controllers_in_objective_read_what_a_run_would_tell_them() -> None:
    @dataclass(frozen=True)
    class Note(Doubling):
        def update(self, state: float | None, step: int, metrics: Mapping[str, float]) -> float:
            seen.update(metrics)
            return 1.0

    seen: dict[str, float] = {}
    method = Method(sample(n=2), Note() * Term(A, reinforce), token_mean)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    out = lb.objective(method)(**batch(), mask=mask, truncated=torch.tensor([1, 0, 1, 0]))
    assert seen["loss"] == pytest.approx(float(out.loss))
    assert seen["coef/1"] == 0.25
    assert seen["length"] == 2.0
    assert seen["truncated"] == pytest.approx(1 / 3)
    assert seen["reward"] == pytest.approx(2 / 3)
    assert seen["accuracy"] == pytest.approx(2 / 3)


def test_a_run_asks_a_coin_a_limit_and_a_start_for_their_present_values() -> None:
    pen = SimpleNamespace(step=0, numbers={C.name: 1.0})
    coin = POSITIONS["Either.chance"].source
    assert engine_write._chance(coin, pen) == 1.0
    assert engine_write.limit_of(POSITIONS["Sample.max_tokens"].source, pen) == 8
    pen.numbers = {C.name: 2.0}
    with pytest.raises(LimbeckError, match=r"chance of either \(doubling c\) at step 0 is 2.0"):
        engine_write._chance(coin, pen)


def test_the_largest_value_of_a_product_is_known_before_the_run() -> None:
    assert Times(scalar(2.0), entropy_gate((1, 3), 0.5, 1)).most(10) == 6.0


def test_a_scheduled_value_is_the_present_one() -> None:
    prepared = SimpleNamespace(step=3, memory={C.name: 7.0})
    assert Scheduled(C).scalar.now(prepared.step, prepared.memory) == 7.0
    assert replace(C, label="other").now(3, prepared.memory) == 0.25
