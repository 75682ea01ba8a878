"""On-policy and self-distillation against released code: SOD, G-OPD, vOPD, OPSD, SDPO, TIP's weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from golden_files import Case, cases, labelled, live, told
from torch import Tensor

import limbeck as lb
from limbeck.axes import (
    Expr,
    column,
    divergence,
    divergence_loss,
    ema,
    entropy,
    everywhere,
    group_advantage,
    importance,
    log_ratio,
    old,
    reinforce,
    sample,
    sibling_or_feedback,
    step_drift,
    student,
    teacher,
    token_mean,
    token_sum,
)
from limbeck.math.divergence import fkl, jsd, rkl
from limbeck.math.statistic import Support
from limbeck.space.method import Method
from limbeck.space.term import Term


def swap(x: Any, was: Expr, now: Expr) -> Any:
    """The same expression with one part in another's place."""
    if x == was:
        return now
    if isinstance(x, tuple):
        return tuple(swap(y, was, now) for y in x)
    return type(x)(**{k: swap(v, was, now) for k, v in vars(x).items()}) if isinstance(x, Expr) else x


def advantage(signal: Expr, logits: Tensor, tokens: Tensor, **given: Any) -> Tensor:
    """What multiplies grad log-prob of each token, ``[B, T]``, where the signal reads the student's whole row.

    -A (1 - q_y) is the gradient of -A log q_y with respect to the logit of y.
    """
    z = live(logits)
    loss = lb.objective(Method(sample(student), Term(signal, reinforce), token_sum))(z, tokens, **given).loss
    at = tokens[..., None]
    return (torch.autograd.grad(loss, z)[0].gather(-1, at) / (logits.softmax(-1).gather(-1, at) - 1))[..., 0]


# ---------------------------------------------------------------- SOD


def runs(mask: Tensor) -> Tensor:
    """The number of each contiguous run of kept tokens: SOD's steps are our turns."""
    starts = (mask == 1) & (torch.nn.functional.pad(mask, (1, 0))[:, :-1] == 0)
    return starts.cumsum(-1)


@cases("sod_stepwise_weights")
def test_step_weights_and_advantages_equal_sod(case: Case) -> None:
    h, mask = case.hyper, case.response_mask
    given = {"old_logp": case.old_log_probs, "teacher_logp": case.teacher_log_prob, "turn": runs(mask)}
    assert int(runs(mask).max()) > 2
    case.close(told(step_drift(teacher, h["delta"], h["epsilon"]), mask, **given), case.outputs("weights"))
    theirs = (case.outputs("advantages") - case.group_advantages) * mask
    if h["epsilon"] == 1e-6:  # the registered method; rewards agree, so GRPO's part, which the file gives, is 0
        signal = lb.methods.sod(coef=h["coef"], ceiling=h["delta"]).parts[0][1].signal
        case.close(told(signal, mask, reward=torch.zeros(len(mask)), **given), theirs)
    drift = step_drift(teacher, h["delta"], h["epsilon"]) * log_ratio(teacher)
    case.close(told(h["coef"] * drift, mask, **given), theirs)


@cases("sod_gated_advantage")
def test_one_weight_a_response_equals_sods_legacy_mode(case: Case) -> None:
    h = case.hyper
    method = lb.methods.sod_per_sample(beta_min=h["beta_min"], beta_max=h["beta_max"], gamma=h["gamma"])
    signal = swap(method.parts[0][1].signal, group_advantage(), column("task"))
    assert signal != method.parts[0][1].signal
    given = {"old_logp": torch.zeros_like(case.local), "teacher_logp": case.local}
    columns = {"task": case.task_advantage}
    case.close(told(signal, torch.ones_like(case.local), columns=columns, **given), case.outputs("advantages"))


# ---------------------------------------------------------------- G-OPD


@cases("gopd_advantage")
def test_extrapolated_advantages_equal_g_opd(case: Case) -> None:
    h, mask = case.hyper, torch.ones_like(case.old_log_prob)
    given = {"old_logp": case.old_log_prob, "ref_logp": case.reference_log_prob}
    if h["lambda"] == 1:  # then the reference is not read
        del given["ref_logp"]
    if not h["multi"]:
        signal = lb.methods.exopd(lam=h["lambda"]).parts[0][1].signal
        case.close(told(signal, mask, teacher_logp=case.teacher_log_prob, **given), case.outputs("advantages"))
        return
    method = lb.methods.exopd(lam=h["lambda"], domains={"maths": "first", "code": "second"})
    first = torch.arange(len(mask)) % 2 == 0
    columns = {"domain=maths": first, "domain=code": ~first}
    names = {"first_logp": case.teacher_log_prob, "second_logp": case.second_teacher_log_prob}
    parts = [replace(t, surrogate=reinforce, weight=everywhere, per="kept") for _, t in method.parts]
    z = live(torch.zeros_like(mask))
    whole = Method(method.source, parts[0] + parts[1], token_sum)
    loss = lb.objective(whole)(student_logp=z, columns=columns, **given, **names).loss
    case.close(-torch.autograd.grad(loss, z)[0], case.outputs("advantages"))


# ---------------------------------------------------------------- vOPD


def is_advantage(h: dict[str, Any]) -> bool:
    return "quantity" not in h


@cases("vopd_advantage", is_advantage)
def test_advantages_with_their_baseline_equal_vopd(case: Case) -> None:
    h = case.hyper
    z, zt = case.student_logits / h["kd_temperature"], case.teacher_logits / h["kd_temperature"]
    k = h["kl_top_k"] if h["kl_top_k"] > 0 else z.shape[-1]  # none or fewer is the whole vocabulary in the release
    method = lb.methods.vopd(top_k=k)
    signal = method.parts[0][1].signal if h["use_baseline"] else log_ratio(teacher, student)
    ours = advantage(signal, z, case.responses, teacher_logits=zt)
    ours = ours if h["use_baseline"] else ours * case.response_mask
    case.close(ours + case.group_advantages[:, None], case.outputs("advantages"))


@cases("vopd_advantage", lambda h: not is_advantage(h))
def test_the_normalised_single_step_loss_is_brts_own_branch(case: Case) -> None:
    # The release's other loss: reverse KL over the student's top k, normalised within. Biased; here it is BRTS's.
    logits = live(case.student_logits)
    objective = lb.objective(lb.methods.brts(lam=0, top_k=case.hyper["top_k"]))
    loss = objective(logits, case.responses, case.response_mask, teacher_logits=case.teacher_logits).loss
    case.agrees(loss, logits)


@cases("vopd_reward_floor")
def test_the_floor_is_the_log_odds_and_not_the_released_quotient(case: Case) -> None:
    lam, mask = case.hyper["reward_clip_lambda"], case.response_mask
    floored = lb.methods.vopd(floor=lam).parts[0][1].signal.args[0]  # without the baseline

    def ours(signal: Expr) -> Tensor:
        A = advantage(signal, case.student_logits, case.responses, teacher_logits=case.teacher_logits)
        return A * mask + case.group_advantages[:, None]

    case.close(ours(floored), case.outputs("advantages", "paper_outputs"))
    released = log_ratio(teacher, student).clip(lo=math.log(lam) / (1 - lam))  # precedence: (log lambda) / (1 - lambda)
    case.close(ours(released), case.outputs("advantages"))
    assert (ours(floored) - ours(released)).abs().max() > 0.1


# ---------------------------------------------------------------- OPSD


def row_of(beta: float) -> Any:
    """The release special-cases the end points, which ours names."""
    return {0.0: fkl, 1.0: rkl}.get(beta) or jsd(beta)


@cases("opsd_generalized_jsd")
def test_opsd_equals_the_scripts(case: Case) -> None:
    h, (tokens, mask) = case.hyper, labelled(case.labels)
    logits = live(case.student_logits)
    method = lb.methods.opsd(divergence=row_of(h["beta"]))
    if h["top_k"] is not None:  # both laws restricted to the teacher's k and normalised there
        term = method.parts[0][1]
        term = replace(term, surrogate=divergence_loss(row_of(h["beta"]), top_k=h["top_k"], tail=False))
        method = Method(method.source, term)
    method = replace(method, reduction=token_mean)  # the scripts' mean; the paper's is inside each response first
    z, zt = logits / h["temperature"], case.teacher_logits / h["temperature"]
    case.agrees(lb.objective(method)(z, tokens, mask, init_given_logits=zt).loss, logits)


@cases("opsd_pointwise_clip_fkl")
def test_the_entry_clip_is_the_papers_and_not_the_clip_per_token(case: Case) -> None:
    (tokens, mask), cap = labelled(case.labels), case.hyper["clip"]
    logits = live(case.student_logits)

    def loss(**clip: float) -> Tensor:
        method = replace(lb.methods.opsd(**clip), reduction=token_mean)
        return lb.objective(method)(logits, tokens, mask, init_given_logits=case.teacher_logits).loss

    case.agrees(loss(entry_clip=cap), logits)
    assert (loss(token_clip=cap) - loss(entry_clip=cap)).abs() > 1e-6  # TRD and several ports cut a token's sum


# ---------------------------------------------------------------- SDPO


@cases("sdpo_self_distillation", lambda h: h["mode"] in ("full", "topk_tail", "topk_renorm"))
def test_the_registered_term_equals_sdpo(case: Case) -> None:
    h = case.hyper
    method = lb.methods.sdpo(divergence=row_of(h["alpha"]), top_k=None if h["mode"] == "full" else h["k"])
    term = method.parts[0][1]
    if h["mode"] == "topk_renorm":
        term = replace(term, surrogate=divergence_loss(row_of(h["alpha"]), top_k=h["k"], by="student", tail=False))
    assert term.signal == ema(0.05).given(sibling_or_feedback)
    assert importance(student, old, 2.0) in set(term.weight.walk())
    logits = live(case.student_logits)
    # The file has one of SDPO's two weights, or none: the behaviour policy's is 1, on-policy where it is not clipped.
    given = {"old_logp": case.old_log_probs, "rollout_logp": case.old_log_probs} if h["is_clip"] else {}
    told_ = case.self_distillation_mask.bool() if h["use_sd_mask"] else torch.ones(len(logits), dtype=torch.bool)
    objective = lb.objective(replace(method, terms=replace(term)))
    loss = objective(
        logits,
        case.responses,
        case.response_mask,
        ema_given_logits=case.teacher_logits,
        columns={"has sibling_or_feedback": told_},
        **given,
    ).loss
    case.agrees(loss, logits)


# ---------------------------------------------------------------- TIP's sampling weights


@cases("hjsang_token_entropy_jsd_weights")
def test_entropy_and_disagreement_of_tokens_equal_the_release(case: Case) -> None:
    h, V = case.hyper, case.student_logits.shape[-1]
    given = {"teacher_logits": case.teacher_logits[None]}
    z, tokens = case.student_logits[None], torch.zeros(1, len(case.student_logits), dtype=torch.int64)
    H = advantage(entropy(old), z, tokens)[0]
    case.close(H / math.log(V) * h["jsd_scale"], case.outputs("norm_entropy"))
    support = Support(h["jsd_topk"], "target", tail=False) if h["jsd_topk"] else None
    d = advantage(divergence("jsd(0.5)", teacher, old, support), z, tokens, **given)[0]
    case.close(d / math.log(2) * h["jsd_scale"], case.outputs("norm_jsd"))
    drawn = lb.methods.tip_entropy().parts[0][1].where
    assert drawn.of == entropy(old)  # the draw is in proportion to the first of these; its scale cancels
