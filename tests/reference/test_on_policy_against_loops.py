"""On-policy and self-distillation equal their own loops, in value and gradient, with turns, holes and missing views."""

from __future__ import annotations

from typing import Any

import on_policy_loops as loops
import pytest
import torch
from test_methods_against_loops import GROUPS, B, T, V, batch

import limbeck as lb
from limbeck import Method, methods

SEEDS = pytest.mark.parametrize("seed", range(3))


def talk(seed: int, source: list[str] | None = None) -> dict[str, Any]:
    """The batch of the other loops, with turns, rewards of turns, a view, and who has something to see."""
    make = torch.Generator().manual_seed(100 + seed)
    b = batch(seed, GROUPS)
    b["turn"] = (torch.rand(B, T, generator=make) < 0.4).cumsum(-1)
    paid = torch.randn(B, T + 1, generator=make, dtype=torch.float64).round(decimals=1)
    there = (b["mask"].bool()[..., None] & (b["turn"][..., None] == torch.arange(T + 1))).any(1)
    b["turn_reward"] = torch.where(there | ~there.any(1, keepdim=True), paid, 0.0)
    b["view"] = 2 * torch.randn(B, T, V, generator=make, dtype=torch.float64)
    b["has"] = torch.tensor([True, True, False, True, True, False, True])
    b["first"] = torch.rand(B, generator=make, dtype=torch.float64)
    return b | ({} if source is None else {"source": source})


def as_lists(b: dict[str, Any]) -> loops.Talk:
    plain = {k: v.tolist() if isinstance(v, torch.Tensor) and k != "logits" else v for k, v in b.items()}
    return loops.Talk(**plain)


def check(method: Method, expected: loops.Number, b: dict[str, Any], *names: str, **given: Any) -> None:
    """Hands over what the method reads; ``names`` are further fields of the batch that it is given."""
    for slot in method.slots:
        held = b[slot] if slot in ("teacher", "ref") else b["view"]
        if slot != "old":
            given[f"{slot}_logits"] = held
    given |= {name: b[name] for name in names}
    columns = {c.column: b["has"] for c in method.contexts} | {"first reward": b["first"]}
    outcome = lb.objective(method)(
        b["logits"], b["tokens"], b["mask"], group=b["group"], turn=b["turn"], columns=columns, **given
    )
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(x, b["logits"])[0] for x in (outcome.loss, expected))
    assert theirs.abs().max() > 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@SEEDS
@pytest.mark.parametrize(("coef", "delta"), [(1.0, 0.2), (0.3, 2.0)])
def test_sod_equals_its_loop(coef: float, delta: float, seed: int) -> None:
    b = talk(seed)
    expected = loops.sod(as_lists(b), coef, delta, 0.2, 0.28)
    check(methods.sod(coef=coef, ceiling=delta), expected, b, "reward", old_logp=b["old"])


@SEEDS
@pytest.mark.parametrize("rho", [0.5, 0.2])
def test_tip_equals_its_loop(rho: float, seed: int) -> None:
    b = talk(seed)
    check(methods.tip(rho=rho), loops.tip(as_lists(b), rho), b)


@SEEDS
@pytest.mark.parametrize(("lam", "cap"), [(1.25, 5.0), (2.0, 1.1)])
def test_exopd_equals_its_loop(lam: float, cap: float, seed: int) -> None:
    b = talk(seed)
    expected = loops.exopd(as_lists(b), lam, 0.2, 3.0, cap)
    check(methods.exopd(lam=lam, is_cap=cap), expected, b, old_logp=b["old"], rollout_logp=b["behavior"])


@SEEDS
@pytest.mark.parametrize("k", [2, V])
def test_vopd_equals_its_loop(k: int, seed: int) -> None:
    b = talk(seed)
    check(methods.vopd(top_k=k), loops.vopd(as_lists(b), k), b, old_logp=b["old"])


@SEEDS
@pytest.mark.parametrize(("k", "cap"), [(3, 2.0), (2, 1.05)])
def test_sdpo_equals_its_loop(k: int, cap: float, seed: int) -> None:
    b = talk(seed)
    given = {"old_logp": b["old"], "rollout_logp": b["behavior"]}
    check(methods.sdpo(top_k=k, is_cap=cap), loops.sdpo(as_lists(b), k, cap), b, "reward", "correct", **given)


@SEEDS
@pytest.mark.parametrize("beta", [1.0, 0.0])
def test_srpo_equals_its_loop(beta: float, seed: int) -> None:
    b = talk(seed)
    given = {"old_logp": b["old"], "rollout_logp": b["behavior"]}
    expected = loops.srpo(as_lists(b), beta, 3, 2.0)
    check(methods.srpo(beta=beta, top_k=3), expected, b, "reward", "correct", **given)


@SEEDS
@pytest.mark.parametrize("lam", [0.001, 0.7])
def test_skill_sd_equals_its_loop(lam: float, seed: int) -> None:
    b = talk(seed)
    check(methods.skill_sd(lam=lam), loops.skill_sd(as_lists(b), lam), b, "reward", old_logp=b["old"])


@SEEDS
def test_distil_equals_its_loop(seed: int) -> None:
    b = talk(seed)
    check(methods.distil(), loops.distil(as_lists(b)), b)


@SEEDS
@pytest.mark.parametrize("step", [0, 1, 5, 7])
def test_vpd_equals_its_loop(step: int, seed: int) -> None:
    b = talk(seed, ["roll", "read", "read", "roll", "read", "read", "roll"])
    b["correct"] = torch.tensor([True, True, False, False, True, False, True])
    expected = loops.vpd(as_lists(b), step, 5, 0.3)
    check(methods.vpd(beta=0.3), expected, b, "reward", "correct", "source", step=step)


@SEEDS
@pytest.mark.parametrize(("gamma", "threshold"), [(0.1, -5.0), (0.9, -2.0)])
def test_rltf_sd_equals_its_loop(gamma: float, threshold: float, seed: int) -> None:
    b = talk(seed, ["talk", "first", "talk", "first", "talk", "first", "talk"])
    expected = loops.rltf_sd(as_lists(b), 0.3, gamma, threshold)
    method = methods.rltf_sd(coef=0.3, gamma=gamma, threshold=threshold)
    check(method, expected, b, "turn_reward", "correct", "source", old_logp=b["old"])
