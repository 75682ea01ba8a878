"""TRL's own losses, run on stand-in models, agree with ours; where TRL is another loss, the difference is asserted.

Differences: an empty row counts as a sequence in TRL's means; what a mask hides reaches TRL's loss (GRPO) or gradient
(GKD) if it is NaN; the end points of GKD's beta jump; DPO normalised by length is another method.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import limbeck as lb
from limbeck.axes import Expr, column, contrast, group_mean, label, pairs, ref, token_mean
from limbeck.math.divergence import alpha, fkl, jsd
from limbeck.space.method import Method
from limbeck.space.term import Sum, Term

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl", "1.16.0")

B, T, V = 6, 5, 9
PROMPT = torch.zeros(B, 1, dtype=torch.int64)


def numbers(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(empty: bool = False) -> Tensor:
    lengths = torch.tensor([5, 3, 1, 4, 0 if empty else 2, 5])
    return (torch.arange(T) < lengths[:, None]).long()


def same(ours: Tensor, theirs: Tensor, leaf: Tensor, factor: float = 1.0, rtol: float = 1e-12) -> None:
    """Value and gradient; ours times a factor that the test explains."""
    torch.testing.assert_close(factor * ours, theirs, rtol=rtol, atol=rtol)
    mine, other = (torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (factor * ours, theirs))
    torch.testing.assert_close(mine, other, rtol=10 * rtol, atol=rtol)
    assert other.abs().max() > 0


class Alone:
    """An accelerator of one process."""

    device = torch.device("cpu")
    num_processes = 1

    def gather(self, x: Tensor) -> Tensor:
        return x

    gather_for_metrics = gather

    def reduce(self, x: Tensor, reduction: str) -> Tensor:
        return x


def trainer(**settings: Any) -> SimpleNamespace:
    """What a loss method of TRL reads of its trainer, in evaluation mode (no division by accumulation steps)."""
    metrics = {"eval": defaultdict(list)}
    return SimpleNamespace(
        accelerator=Alone(), model=SimpleNamespace(training=False), aux_loss_enabled=False, _metrics=metrics, **settings
    )


# ---------------------------------------------------------------- GKD


def trl_gkd(student: Tensor, teacher: Tensor, mask: Tensor, beta: float, tau: float = 1.0) -> Tensor:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    labels = torch.where(mask.bool(), 1, -100)
    return GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=tau)


def our_gkd(student: Tensor, teacher: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
    objective = lb.objective(lb.methods.gkd(**arguments))
    return objective(student, torch.ones_like(mask), mask, teacher_logits=teacher).loss


@pytest.mark.parametrize("tau", [1.0, 0.9])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_gkd_equals_trls_trainer(beta: float, tau: float) -> None:
    student, teacher = numbers(0, B, T, V, scale=2).requires_grad_(), numbers(1, B, T, V, scale=2)
    named = {0.0: {"divergence": "fkl"}, 1.0: {"divergence": "rkl"}}.get(beta, {"beta": beta})
    mask = ragged(empty=True)
    same(our_gkd(student, teacher, mask, tau=tau, **named), trl_gkd(student, teacher, mask, beta, tau), student)


def test_trls_beta_jumps_at_its_end_points() -> None:
    student, teacher, mask = numbers(0, B, T, V), numbers(1, B, T, V), ragged()
    for beta, near, name in ((0.0, 1e-6, "fkl"), (1.0, 1 - 1e-6, "rkl")):
        assert trl_gkd(student, teacher, mask, near) < 1e-4 < 0.1 < trl_gkd(student, teacher, mask, beta)
        limit = our_gkd(student, teacher, mask, beta=near) / min(near, 1 - near)
        torch.testing.assert_close(limit, our_gkd(student, teacher, mask, divergence=name), rtol=1e-4, atol=0)


def test_what_a_mask_hides_reaches_trls_gkd_gradient_and_not_ours() -> None:
    mask = ragged()
    student, teacher = numbers(0, B, T, V), numbers(1, B, T, V)
    student[mask == 0] = torch.nan
    student.requires_grad_()
    hidden = [
        torch.autograd.grad(loss, student)[0][mask == 0]
        for loss in (our_gkd(student, teacher, mask), trl_gkd(student, teacher, mask, 0.5))
    ]
    assert (hidden[0] == 0).all()
    assert hidden[1].isnan().all()


# ---------------------------------------------------------------- GRPO and its family


def trl_grpo(logps: Tensor, mask: Tensor, loss_type: str, level: str = "token", **settings: Any) -> Tensor:
    from trl.trainer.grpo_trainer import GRPOTrainer

    clip = settings.pop("clip", (0.2, 0.2))
    stub = trainer(
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=settings.get("beta", 0.0),
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        max_completion_length=7,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.zeros_like(logps), None),
    )
    inputs = {
        "prompt_ids": PROMPT,
        "prompt_mask": PROMPT,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": ADVANTAGES,
        "old_per_token_logps": OLD,
        "ref_per_token_logps": REF,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(stub, None, inputs)


LOGPS = -numbers(2, B, T).abs()
OLD, REF = LOGPS + numbers(3, B, T, scale=0.3), LOGPS + numbers(4, B, T, scale=0.5)
ADVANTAGES = numbers(5, B)


def our_grpo(method: Method, logps: Tensor, mask: Tensor) -> Tensor:
    """A registered method with TRL's advantages in place of its own."""
    (c, term), *rest = method.parts
    advantage: Expr = column("advantage")
    method = replace(method, terms=Sum(((c, replace(term, signal=advantage)), *rest)))
    given = {"ref_logp": REF} if method.reads("ref") else {}
    columns = {"advantage": ADVANTAGES}
    return lb.objective(method)(student_logp=logps, mask=mask, old_logp=OLD, columns=columns, **given).loss


FAMILY = {
    "grpo": (lb.methods.grpo(ref_coef=0), {"loss_type": "grpo"}),
    "grpo with reference": (lb.methods.grpo(ref_coef=0.04), {"loss_type": "grpo", "beta": 0.04}),
    "bnpo": (lb.methods.grpo(ref_coef=0, reduction=token_mean), {"loss_type": "bnpo"}),
    "dr_grpo": (lb.methods.dr_grpo(max_length=7), {"loss_type": "dr_grpo"}),
    "dapo": (lb.methods.dapo(), {"loss_type": "dapo", "clip": (0.2, 0.28)}),
    "gspo": (lb.methods.gspo(), {"loss_type": "grpo", "level": "sequence", "clip": (3e-4, 4e-4)}),
    "gspo, wide": (
        lb.methods.gspo(clip_low=0.1, clip_high=0.1),
        {"loss_type": "grpo", "level": "sequence", "clip": (0.1, 0.1)},
    ),
}


@pytest.mark.parametrize("name", FAMILY)
def test_grpo_and_relatives_equal_trls_trainer(name: str) -> None:
    method, settings = FAMILY[name]
    logps, mask = LOGPS.clone().requires_grad_(), ragged()
    same(our_grpo(method, logps, mask), trl_grpo(logps, mask, **settings), logps)


@pytest.mark.parametrize("name", FAMILY)
def test_an_empty_row_counts_as_a_sequence_in_trl(name: str) -> None:
    method, settings = FAMILY[name]
    logps, mask = LOGPS.clone().requires_grad_(), ragged(empty=True)
    per_sequence = method.reduction != token_mean
    same(our_grpo(method, logps, mask), trl_grpo(logps, mask, **settings), logps, (B - 1) / B if per_sequence else 1)


@pytest.mark.parametrize("name", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo"])
def test_what_a_mask_hides_reaches_trls_grpo_loss_and_not_ours(name: str) -> None:
    method, settings = FAMILY[name]
    mask = ragged()
    broken = torch.where(mask == 0, torch.nan, LOGPS)
    torch.testing.assert_close(our_grpo(method, broken, mask), our_grpo(method, LOGPS, mask), rtol=0, atol=0)
    assert trl_grpo(broken, mask, **settings).isnan()


# ---------------------------------------------------------------- DPO


def trl_dpo(logps: Tensor, reference: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    from trl.trainer.dpo_trainer import DPOTrainer

    settings = {"loss_type": "sigmoid", "f_divergence_type": "reverse_kl", "alpha": 0.5} | settings
    stub = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=settings["f_divergence_type"],
        f_alpha_divergence_coef=settings["alpha"],
        loss_types=[settings["loss_type"]],
        loss_weights=[1.0],
        beta=settings["beta"],
        label_smoothing=0.0,
        use_weighting=False,
        _total_train_tokens=0,
    )
    nothing = torch.zeros_like(logps)
    outputs = SimpleNamespace(
        log_probs=logps * mask, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), loss=None
    )
    chosen, rejected = (reference * mask).sum(-1).chunk(2)
    inputs = {
        "input_ids": torch.zeros(B, T + 1, dtype=torch.int64),
        "attention_mask": torch.ones(B, T + 1),
        "completion_mask": torch.cat([PROMPT, mask], dim=1),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return DPOTrainer._compute_loss(stub, lambda **k: outputs, inputs, return_outputs=False)


def our_dpo(method: Method, logps: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    chosen = (torch.arange(B) < B // 2).to(logps.dtype)  # TRL's batch: chosen rows, then rejected ones
    group = torch.arange(B // 2).repeat(2)
    return lb.objective(method)(student_logp=logps, mask=mask, ref_logp=reference, label=chosen, group=group).loss


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_equals_trls_trainer(beta: float, empty: bool) -> None:
    logps, mask = LOGPS.clone().requires_grad_(), ragged(empty)  # a pair with an empty row counts in both
    same(our_dpo(lb.methods.dpo(beta=beta), logps, REF, mask), trl_dpo(logps, REF, mask, beta=beta), logps)


@pytest.mark.parametrize("name", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_f_dpo_equals_trls_trainer(name: str) -> None:
    # TRL's alpha divergence takes single precision at most; its JS score is twice the slope of ours.
    row, factor = {"forward_kl": (fkl, 1), "js_divergence": (jsd(0.5), 2), "alpha_divergence": (alpha(0.3), 1)}[name]
    method = Method(pairs(), Term(label, contrast(1 / (0.3 * factor), ref, score=row)), group_mean)
    logps, reference, mask = LOGPS.float().requires_grad_(), REF.float(), ragged()
    theirs = trl_dpo(logps, reference, mask, beta=0.3, f_divergence_type=name, alpha=0.3)
    same(our_dpo(method, logps, reference, mask), theirs, logps, rtol=1e-5)


def test_trls_ipo_and_sigmoid_norm_are_other_methods() -> None:
    mask = ragged()
    ours = our_dpo(lb.methods.dpo(beta=0.3), LOGPS, REF, mask)
    for loss_type in ("ipo", "sigmoid_norm"):
        assert (trl_dpo(LOGPS, REF, mask, beta=0.3, loss_type=loss_type) - ours).abs() > 0.01
    by_length = Method(pairs(), Term(label, contrast(1 / 0.3, ref, length=True)), group_mean)
    theirs = trl_dpo(LOGPS, REF, mask, beta=0.3, loss_type="sigmoid_norm")
    torch.testing.assert_close(our_dpo(by_length, LOGPS, REF, mask), theirs, rtol=1e-12, atol=0)
