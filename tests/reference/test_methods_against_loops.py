"""Every registered method equals its own loop, in value and gradient, on ragged off-policy batches with holes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import loops
import pytest
import torch

import limbeck as lb
from limbeck import Method, methods

B, T, V = 7, 5, 6
GROUPS = [4, 0, 4, 0, 9, 2, 4]  # in no order; 9 and 2 have one member
PAIRS = [1, 5, 0, 5, 1, 0]
LABELS = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
SOURCES = ["roll", "lm", "roll", "lm", "lm", "roll", "roll"]
NOBODY = [False] * B


def batch(seed: int, group: list[int], source: list[str] | None = None) -> dict[str, Any]:
    """Random tensors: one full row, one empty row, holes, old and behavior log-probs beside the student's."""
    make = torch.Generator().manual_seed(seed)
    B = len(group)
    logits, teacher, ref = (2 * torch.randn(B, T, V, generator=make, dtype=torch.float64) for _ in range(3))
    tokens = torch.randint(V, (B, T), generator=make)
    mask = torch.rand(B, T, generator=make) < 0.7
    mask[0], mask[3] = True, False
    mask[1:3, 0] = True
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    near = (logp + s * torch.randn(B, T, generator=make, dtype=torch.float64) for s in (0.3, 0.3))
    old, behavior = near
    if source:  # data have no behavior
        behavior[[i for i, s in enumerate(source) if s == "lm"]] = torch.nan
    return {
        "logits": logits.requires_grad_(),
        "tokens": tokens,
        "mask": mask,
        "teacher": teacher,
        "ref": ref,
        "old": old,
        "behavior": behavior,
        "reward": torch.randn(B, generator=make, dtype=torch.float64).round(decimals=1),
        "correct": torch.tensor([g == 4 and i > 0 for i, g in enumerate(group)]),  # no one right in the other groups
        "group": torch.tensor(group),
    }


def as_lists(b: dict[str, Any], **more: Any) -> loops.Data:
    plain = {k: v if k == "logits" else v.tolist() for k, v in b.items()}
    return loops.Data(**plain, **more)


def check(method: Method, expected: loops.Number, b: dict[str, Any], **given: Any) -> None:
    for role in ("teacher", "ref"):
        if method.reads(role):
            given[f"{role}_logits"] = b[role]
    outcome = lb.objective(method)(b["logits"], b["tokens"], b["mask"], old_logp=b["old"], group=b["group"], **given)
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(x, b["logits"])[0] for x in (outcome.loss, expected))
    assert theirs.abs().max() > 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


Loop = Callable[[loops.Data], loops.Number]
DISTIL: dict[str, tuple[Method, Loop]] = {
    "sft": (methods.sft(), loops.sft),
    "kd": (methods.kd(weight=0.7, tau=3.0), lambda d: loops.kd(d, 0.7, 3.0)),
    "gkd beta 0.2": (methods.gkd(beta=0.2), lambda d: loops.gkd(d, 0.2)),
    "gkd tau 1.7": (methods.gkd(beta=0.8, tau=1.7), lambda d: loops.gkd(d, 0.8, 1.7)),
    "opd_full": (methods.opd_full(), loops.opd_full),
    "opd": (methods.opd(), lambda d: loops.opd(d, 1.0, 0.0)),
    "opd coef 0.3 gamma 0.9": (methods.opd(coef=0.3, gamma=0.9), lambda d: loops.opd(d, 0.3, 0.9)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DISTIL)
def test_distillation_methods_equal_their_loops(name: str, seed: int) -> None:
    method, loop = DISTIL[name]
    b = batch(seed, GROUPS)
    check(method, loop(as_lists(b)), b, rollout_logp=b["behavior"])


@pytest.mark.parametrize("row", loops.ROWS)
def test_every_row_of_the_divergence_table(row: str) -> None:
    b = batch(0, GROUPS)
    check(methods.opd_full(divergence=row), loops.opd_full(as_lists(b), row), b)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lm_coef", [1.0, 0.4])
def test_minillm_on_two_sources_equals_its_loop(lm_coef: float, seed: int) -> None:
    b = batch(seed, list(range(B)), SOURCES)
    method = methods.minillm(gamma=0.9, clip_range=0.1, reward_scale=0.3, reward_clip=4.0, lm_coef=lm_coef)
    expected = loops.minillm(as_lists(b, source=SOURCES), 0.9, 0.1, 0.3, 4.0, lm_coef)
    check(method, expected, b, rollout_logp=b["behavior"], source=SOURCES)


REWARD: dict[str, tuple[Method, Loop]] = {
    "grpo": (methods.grpo(), lambda d: loops.grpo(d, 0.2, 0.04)),
    "grpo without reference": (methods.grpo(clip_range=0.1, ref_coef=0), lambda d: loops.grpo(d, 0.1, 0)),
    "dr_grpo": (methods.dr_grpo(max_length=11), lambda d: loops.dr_grpo(d, 0.2, 11)),
    "dapo": (methods.dapo(), lambda d: loops.dapo(d, 0.2, 0.28, None, 0)),
    "dapo overlong": (methods.dapo(max_length=4, buffer=3), lambda d: loops.dapo(d, 0.2, 0.28, 4, 3)),
    "gspo": (methods.gspo(), lambda d: loops.gspo(d, 3e-4, 4e-4)),
    "gspo wide": (methods.gspo(clip_low=0.1, clip_high=0.2), lambda d: loops.gspo(d, 0.1, 0.2)),
    "kdrl_reward": (methods.kdrl_reward(coef=0.7), lambda d: loops.kdrl_reward(d, 0.7, 0.2)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", REWARD)
def test_reward_methods_equal_their_loops(name: str, seed: int) -> None:
    method, loop = REWARD[name]
    b = batch(seed, GROUPS)
    check(method, loop(as_lists(b)), b, reward=b["reward"], correct=b["correct"])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("denominator", ["kept", "all"])
@pytest.mark.parametrize("gate", ["none", "response", "group"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kdrl_equals_its_loop(estimator: str, gate: str, denominator: str, seed: int) -> None:
    b = batch(seed, GROUPS)
    method = methods.kdrl(coef=0.3, estimator=estimator, gate=gate, denominator=denominator)
    expected = loops.kdrl(as_lists(b), 0.3, estimator, gate, denominator, 0.2)
    check(method, expected, b, reward=b["reward"], correct=b["correct"])


@pytest.mark.parametrize("gate", ["none", "response", "group"])
def test_kdrl_with_all_correct_distils_only_without_a_gate(gate: str) -> None:
    b = batch(0, GROUPS) | {"correct": torch.ones(B).bool()}
    expected = loops.kdrl(as_lists(b), 0.3, "k2", gate, "kept", 0.2)
    check(methods.kdrl(coef=0.3, gate=gate), expected, b, reward=b["reward"], correct=b["correct"])


@pytest.mark.parametrize("gate", ["none", "response", "group"])
@pytest.mark.parametrize("seed", range(2))
def test_kdrl_shaping_equals_its_loop(gate: str, seed: int) -> None:
    b = batch(seed, GROUPS)
    expected = loops.kdrl_shaping(as_lists(b), 0.3, gate, 0.2)
    check(methods.kdrl_shaping(coef=0.3, gate=gate), expected, b, reward=b["reward"], correct=b["correct"])


@pytest.mark.parametrize(("step", "beta"), [(0, 5e-3), (40, 3e-3), (80, 1e-3), (280, 1e-3)])
def test_kdrl_anneals_as_in_the_paper(step: int, beta: float) -> None:
    b = batch(1, GROUPS)
    given = {"reward": b["reward"], "correct": b["correct"], "step": step}
    check(methods.kdrl(), loops.kdrl(as_lists(b), beta, "k2", "none", "kept", 0.2), b, **given)
    check(methods.kdrl_shaping(), loops.kdrl_shaping(as_lists(b), beta, "none", 0.2), b, **given)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_equals_its_loop(beta: float, seed: int) -> None:
    b = batch(seed, PAIRS)
    expected = loops.dpo(as_lists(b, label=LABELS), beta)
    check(methods.dpo(beta=beta), expected, b, label=torch.tensor(LABELS))


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo"])
def test_without_old_log_probs_the_batch_is_on_policy(name: str) -> None:
    method, loop = REWARD[name]
    b = batch(0, GROUPS)
    logp = b["logits"].log_softmax(-1).gather(-1, b["tokens"][..., None])[..., 0].detach()
    expected = loop(as_lists(b | {"old": logp}))
    check(method, expected, b | {"old": None}, reward=b["reward"], correct=b["correct"])
