"""Published coincidences of preference losses: DPO and SimPO by hand, lists, ADPO."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import limbeck as lb
from laws.cases import Case, changed, make
from limbeck.axes import contrast, group_mean, label, pairs, ref
from limbeck.math.divergence import alpha, fkl
from limbeck.space.method import Method
from limbeck.space.term import Term

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def case(**given: Tensor) -> Case:
    return changed(make(seed=41), **given)


def scores(c: Case, length: bool = False, base: bool = True) -> tuple[Tensor, Tensor]:
    """Log-ratios (or log-probs) of the chosen and the rejected, ``[4]`` each, with gradient."""
    gap = c.logits.log_softmax(-1)
    gap = gap - c.given["ref_logits"].log_softmax(-1) if base else gap
    token = gap.gather(-1, c.tokens[..., None])[..., 0] * c.mask
    s = token.sum(-1) / (c.mask.sum(-1) if length else 1)
    return s[0::2], s[1::2]


def by_hand(c: Case, loss: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, c.logits)[0]


def leaf(c: Case) -> Case:
    return changed(c, logits=c.logits.detach().requires_grad_())


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo_is_logsigmoid_of_the_margin(beta: float) -> None:
    """-log sigma(beta [(log pi - log ref)(y_w) - (...)(y_l)]), mean over pairs; value and gradient."""
    c = leaf(case())
    w, l = scores(c)
    want = by_hand(c, -logsigmoid(beta * (w - l)).mean())
    torch.testing.assert_close(case().value_and_grad(lb.methods.dpo(beta=beta)), want, **CLOSE)


def test_dpo_from_sampled_log_probs_alone() -> None:
    """Sums of log-probs are all it reads."""
    c = case()

    def pick(z: Tensor) -> Tensor:
        return z.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]

    got = lb.objective(lb.methods.dpo())(
        student_logp=pick(c.logits), ref_logp=pick(c.given["ref_logits"]), mask=c.mask, label=c.given["label"]
    ).loss
    torch.testing.assert_close(got, c.loss(lb.methods.dpo()), **CLOSE)


def test_dpo_at_the_reference_is_log_two() -> None:
    """No margin yet."""
    c = case()
    value = changed(c, ref_logits=c.logits.clone()).loss(lb.methods.dpo())
    assert float(value) == pytest.approx(math.log(2), abs=1e-12)


def test_dpo_swaps_with_its_labels() -> None:
    """Relabelling a pair is reordering it."""
    c = case()
    order = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    given = {k: c.given[k][order] for k in ("ref_logits", "old_logp", "rollout_logp")}
    swapped = changed(c, logits=c.logits[order], tokens=c.tokens[order], mask=c.mask[order], **given)
    swapped = changed(swapped, label=1 - c.given["label"])
    torch.testing.assert_close(swapped.loss(lb.methods.dpo()), c.loss(lb.methods.dpo()), **CLOSE)


def test_simpo_by_hand() -> None:
    """-log sigma(beta (mean log pi(y_w) - mean log pi(y_l)) - gamma)."""
    beta, gamma = 2.0, 0.5
    c = leaf(case())
    w, l = scores(c, length=True, base=False)
    want = by_hand(c, -logsigmoid(beta * (w - l) - gamma).mean())
    m = Method(pairs(), Term(label, contrast(1 / beta, margin=gamma, length=True)), group_mean)
    torch.testing.assert_close(case().value_and_grad(m), want, **CLOSE)


@pytest.mark.parametrize("row", [fkl, alpha(0.5)], ids=["fkl", "alpha"])
def test_f_dpo_scores_by_the_slope_of_its_divergence(row: object) -> None:
    """-log sigma(beta [f'(u_w) - f'(u_l)]) with f' of the chosen divergence."""
    slope = {"fkl": lambda s: -(-s).exp(), "alpha(0.5)": lambda s: ((-0.5 * s).exp() - 1) / -0.5}[row.label]
    c = leaf(case())
    w, l = scores(c)
    want = by_hand(c, -logsigmoid(0.1 * (slope(w) - slope(l))).mean())
    m = Method(pairs(), Term(label, contrast(10.0, ref, score=row)), group_mean)
    torch.testing.assert_close(case().value_and_grad(m), want, **CLOSE)


def test_adpo_of_one_hot_pairs_is_dpo() -> None:
    """A one-hot target over two members, anchored at the reference, is DPO with beta = 1 / tau."""
    anchored = Method(pairs(), Term(label, contrast(tau=10.0, base=ref)), group_mean)
    assert anchored == lb.methods.dpo(beta=0.1)


def test_lists_are_cross_entropies_of_softmaxes() -> None:
    """-sum q_i log softmax_i((s_i - s_ref,i) / tau), for lists of four with soft targets."""
    q = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    c = leaf(case(label=q, group=torch.arange(8) // 4))
    gap = (c.logits.log_softmax(-1) - c.given["ref_logits"].log_softmax(-1)).gather(-1, c.tokens[..., None])[..., 0]
    s = (gap * c.mask).sum(-1).view(2, 4) / 3.0
    want = by_hand(c, -(q.view(2, 4) * s.log_softmax(-1)).sum(-1).mean())
    m = Method(pairs(), Term(label, contrast(tau=3.0, base=ref)), group_mean)
    torch.testing.assert_close(c.value_and_grad(m), want, **CLOSE)


def test_a_constant_added_to_all_log_ratios_changes_nothing() -> None:
    """A constant added to every score of a group (here: the reference's) leaves the loss."""
    c = case(mask=torch.ones_like(case().mask))
    old = c.given["ref_logits"].log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    objective = lb.objective(lb.methods.dpo())
    a = objective(c.logits, c.tokens, c.mask, ref_logp=old, label=c.given["label"]).loss
    b = objective(c.logits, c.tokens, c.mask, ref_logp=old + 0.7, label=c.given["label"]).loss
    torch.testing.assert_close(a, b, **CLOSE)
