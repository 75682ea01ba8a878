"""Preferences and sequence-level divergences: DPO, SimPO, f-DPO, f-DPG."""

from __future__ import annotations

import torch
from golden_files import Case, cases, labelled, live, tensor, told
from torch import Tensor

import limbeck as lb
from limbeck.axes import (
    behavior,
    column,
    contrast,
    divergence_advantage,
    group_mean,
    importance,
    label,
    pairs,
    ref,
    reinforce,
    sample,
    student,
    teacher,
    token_mean,
)
from limbeck.axes.surrogate import Surrogate
from limbeck.math.divergence import Divergence, alpha, chi2, fkl, jsd, neyman_chi2, rkl, tv
from limbeck.space.method import Method
from limbeck.space.term import Term


def preferring(surrogate: Surrogate) -> Method:
    return Method(pairs(), Term(label, surrogate), group_mean)


def two(n: int, chosen: float = 1.0) -> dict[str, Tensor]:
    """Released batches hold n chosen rows and then their n rejected ones."""
    row = torch.full((n,), chosen, dtype=torch.float64)
    return {"label": torch.cat([row, 1 - row]), "group": torch.arange(n).repeat(2)}


def score(kind: str, index: float | None = None) -> tuple[Divergence, float]:
    """A row whose slope is their f', and what multiplies it: theirs for JS is log(2u / (1 + u)), ours half of it."""
    if kind in ("alpha", "alpha_divergence") and index == 1:
        return rkl, 1.0
    rows = {"reverse_kl": (rkl, 1.0), "forward_kl": (fkl, 1.0), "js": (jsd(0.5), 2.0), "js_divergence": (jsd(0.5), 2.0)}
    return rows[kind] if kind in rows else (alpha(index), 1.0)


EXPRESSIBLE = ("sigmoid", "robust", "sigmoid_norm")  # hinge, ipo, exo_pair, nca_pair, apo_* are other surrogates


@cases("trl_dpo", lambda h: h["loss_type"] in EXPRESSIBLE)
def test_dpo_equals_trl(case: Case) -> None:
    h, n = case.hyper, len(case.token_logps) // 2
    row, factor = score(h["f_divergence"], h["alpha"])
    method = preferring(contrast(1 / (h["beta"] * factor), ref, score=row, length=h["loss_type"] == "sigmoid_norm"))
    if row == rkl and h["loss_type"] != "sigmoid_norm":
        method = lb.methods.dpo(beta=h["beta"])
    # Robust DPO is DPO told labels outside [0, 1]: (1 - e) / (1 - 2e) and -e / (1 - 2e).
    chosen = (1 - h["label_smoothing"]) / (1 - 2 * h["label_smoothing"])
    logps = live(case.token_logps)
    given = {"ref_logp": case.ref_token_logps, **two(n, chosen)}
    case.agrees(lb.objective(method)(student_logp=logps, mask=case.completion_mask, **given).loss, logps)


@cases("f_dpo")
def test_f_dpo_equals_the_release(case: Case) -> None:
    # Sequence log-probs go in as sequences of one token. The release's alpha is one minus ours.
    h = case.hyper
    row, factor = score(h["divergence"], None if h["alpha"] is None else 1 - h["alpha"])
    method = preferring(contrast(1 / (h["beta"] * factor), ref, score=row))
    chosen, rejected = live(case.policy_chosen), live(case.policy_rejected)
    reference = torch.cat([case.ref_chosen, case.ref_rejected])[:, None]
    logps = torch.cat([chosen, rejected])[:, None]
    loss = lb.objective(method)(student_logp=logps, ref_logp=reference, **two(len(chosen))).loss
    case.close(loss, tensor(case.body["loss"]))
    for name, grad in zip(case.body["grad_wrt"], torch.autograd.grad(loss, [chosen, rejected]), strict=True):
        case.close(grad, tensor(case.body["grad"][name]), "grad")


@cases("simpo", lambda h: h["loss_type"] == "sigmoid")
def test_simpo_equals_the_release(case: Case) -> None:
    # Labels are unshifted in the release. A margin multiplies the label, so smoothing e shrinks it by 1 - 2e.
    h, e = case.hyper, case.hyper["label_smoothing"]
    method = preferring(contrast(1 / h["beta"], margin=h["gamma"] / (1 - 2 * e), length=True))
    tokens, mask = labelled(case.labels[:, 1:])
    logits = live(case.logits)
    case.agrees(lb.objective(method)(logits[:, :-1], tokens, mask, **two(len(tokens) // 2, 1 - e)).loss, logits)


# Their chi_square is chi2(p || q), Neyman's; their reverse one Pearson's.
DISCO = {
    "kl": (fkl, 1.0),
    "reverse_kl": (rkl, 1.0),
    "js": (jsd(0.5), 2.0),
    "tv": (tv, 1.0),
    "chi_square": (neyman_chi2, 1.0),
    "reverse_chi_square": (chi2, 1.0),
}


@cases("disco_f_dpg")
def test_divergence_advantages_equal_f_dpg(case: Case) -> None:
    # Sequences of one token. Theirs is -f'(u) minus a running mean of the batches before; ours f'(1) - f'(u).
    row, factor = DISCO[case.hyper["divergence"]]
    told_of = factor * divergence_advantage(row, teacher, student) + column("constant")
    at_one = factor * row.slope_at_one
    target, baseline = case.target_log_scores - case.z.log(), 0.0
    if case.hyper["use_baseline"]:
        before = (case.target_prev - case.z.log())[:, None]
        prev = case.policy_prev[:, None]
        signal = divergence_advantage(row, teacher)
        ours = told(signal, torch.ones_like(prev), student_logp=prev, old_logp=prev, teacher_logp=before)
        baseline = float((factor * ours - at_one).mean())
    logps = live(case.policy_log_probs)
    method = Method(sample(student), Term(told_of, reinforce, weight=importance(student, behavior)), token_mean)
    loss = lb.objective(method)(
        student_logp=logps[:, None],
        rollout_logp=case.proposal_log_probs[:, None],
        teacher_logp=target[:, None],
        columns={"constant": torch.full_like(logps, -at_one - baseline).detach()},
    ).loss
    case.agrees(loss, logps)
