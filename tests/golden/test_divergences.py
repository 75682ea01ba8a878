"""Full-vocabulary losses: GKD, KD, full-vocabulary OPD and the divergence table against released code."""

from __future__ import annotations

import pytest
import torch
from golden_files import Case, cases, labelled, live

import limbeck as lb
from limbeck.axes import (
    divergence_loss,
    everywhere,
    importance,
    log_ratio,
    old,
    reinforce,
    sample,
    student,
    teacher,
    token_mean,
)
from limbeck.errors import LimbeckError
from limbeck.math.divergence import alpha, fkl, jsd, rkl, soft_ce
from limbeck.space.method import Method
from limbeck.space.term import Term


def run(method: Method, case: Case, student_logits: torch.Tensor) -> torch.Tensor:
    tokens, mask = labelled(case.labels)
    return lb.objective(method)(student_logits, tokens, mask, teacher_logits=case.teacher_logits).loss


@cases("trl_gkd_generalized_jsd")
def test_gkd_equals_trl(case: Case) -> None:
    # TRL's end points 0 and 1 of beta are forward and reverse KL by special case; here they are asked for by name.
    beta = case.hyper["beta"]
    named = {0.0: {"divergence": "fkl"}, 1.0: {"divergence": "rkl"}}.get(beta, {"beta": beta})
    logits = live(case.student_logits)
    case.agrees(run(lb.methods.gkd(tau=case.hyper["temperature"], **named), case, logits), logits)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_gkd_refuses_trls_special_end_points(beta: float) -> None:
    with pytest.raises(LimbeckError, match="fkl for 0 and rkl for 1"):
        lb.methods.gkd(beta=beta)


@cases("kd_hinton")
def test_kd_without_its_hard_label_equals_mdistiller(case: Case) -> None:
    logits = live(case.student_logits)  # one row a sample: [B, C] is [B, 1, C] here
    method = lb.methods.kd(weight=1.0, tau=case.hyper["T"])
    given = {"teacher_logits": case.teacher_logits[:, None]}
    case.agrees(lb.objective(method)(logits[:, None], case.labels[:, None], **given).loss, logits)


@cases("hjsang_chunked_divergences")
def test_opd_full_equals_the_chunked_release(case: Case) -> None:
    # The release takes the teacher first, flat rows and no mask; its beta is on the teacher, as ours.
    kind, beta = case.hyper["kind"], case.hyper["beta"]
    row = {"reverse_kl": "rkl", "forward_kl": "fkl", "jsd": f"jsd({beta})"}[kind]
    logits = live(case.student_logits)
    method = lb.methods.opd_full(divergence=row)
    tokens = torch.zeros(1, len(logits), dtype=torch.int64)
    case.agrees(lb.objective(method)(logits[None], tokens, teacher_logits=case.teacher_logits[None]).loss, logits)


def distillm(kind: str, lam: float | None) -> tuple[Method, Method]:
    """The released form and the true divergence; they differ in forms that leave the teacher's entropy out."""

    def of(*parts: tuple[float, object]) -> Method:
        terms = [c * Term(teacher, divergence_loss(row)) for c, row in parts]
        return Method(sample(student, check=False), sum(terms[1:], start=terms[0]), token_mean)

    if kind == "forward_kl":
        return of((1, soft_ce)), of((1, fkl))
    if kind == "symmetric_kl":
        return of((1 - lam, soft_ce), (lam, rkl)), of((1 - lam, fkl), (lam, rkl))
    name = {
        "reverse_kl": "rkl",
        "js_distance": f"jsd({1 - (lam or 0)})",  # their lam is on the student, our beta on the teacher
        "tv_distance": "tv",
        "skewed_forward_kl": f"skew_fkl({lam})",
        "skewed_reverse_kl": f"skew_rkl({lam})",
    }[kind]
    return lb.methods.opd_full(divergence=name), lb.methods.opd_full(divergence=name)


@cases("distillm_divergences")
def test_rows_of_the_table_equal_distillm(case: Case) -> None:
    released, true = distillm(case.hyper["kind"], case.hyper["lam"])
    logits = live(case.student_logits)
    loss = run(released, case, logits)
    if case.hyper["kind"] == "skewed_forward_kl":  # the cross-entropy form: + H(teacher), a constant
        entropy = run(lb.methods.opd_full(divergence="soft_ce"), case, case.teacher_logits)
        loss = loss + entropy
    case.agrees(loss, logits)
    if "paper_loss" in case.body:
        case.agrees(run(true, case, logits), logits, "paper_")


@cases("abkd_alpha_beta", lambda h: h["alpha"] + h["beta"] == 1 and h["beta"] >= 0)
def test_alpha_divergence_equals_ab_divergence_where_the_exponents_sum_to_one(case: Case) -> None:
    b = case.hyper["beta"]  # the student's exponent
    logits = live(case.student_logits)
    row = {0.0: fkl, 1.0: rkl}.get(b) or alpha(b)
    case.agrees(run(lb.methods.opd_full(divergence=row), case, logits), logits)


# The release adds 1e-8 to the token count. Its mode "js" is k3 of the reference against the mixture: not in the table.
@cases("dph_rl_pef", lambda h: h["mode"] != "js", guard=1e-8)
def test_generators_equal_dph_rl_on_samples_of_the_reference(case: Case) -> None:
    # Samples come from the reference, so the loss is f(u) - f'(1)(u - 1), which is u times our estimate for y ~ q.
    mode, a, eta = case.hyper["mode"], case.hyper["alpha"], case.hyper["eta"]
    row, factor = {"forward": (fkl, 1), "js_low_var": (jsd(0.5), 2), "alpha": (alpha(1 - (a or 0.5)), 1)}[mode]
    logp, mask = live(case.log_prob), case.response_mask
    log_u = logp - case.ref_log_prob
    loss = eta * factor * (log_u.exp() * row.estimate(log_u) * mask).sum() / mask.sum()
    case.agrees(loss, logp)


@cases("sdpo_self_distillation", lambda h: h["mode"] != "topk_renorm")  # a renormalised head has no tail bucket
def test_top_k_with_tail_and_capped_importance_weights_equal_sdpo(case: Case) -> None:
    h = case.hyper
    row = {0.0: fkl, 1.0: rkl}.get(h["alpha"]) or jsd(h["alpha"])  # alpha is on the teacher
    weight = importance(student, old, cap=h["is_clip"]) if h["is_clip"] else everywhere
    term, given = Term(teacher, divergence_loss(row), weight=weight), {"teacher_logits": case.teacher_logits}
    if h["mode"] == "topk_tail":  # the release reads the student's own top k; a carrier may hold any ids
        ids = case.student_logits.topk(h["k"], dim=-1).indices
        given = {"teacher_topk": (ids, case.teacher_logits.log_softmax(-1).gather(-1, ids))}
        term = Term(teacher, divergence_loss(row, top_k=h["k"]), weight=weight)
    if h["mode"] == "sampled":
        term = Term(log_ratio(teacher, student), reinforce, weight=weight)
    keep = case.response_mask * (case.self_distillation_mask[:, None] if h["use_sd_mask"] else 1)
    logits = live(case.student_logits)
    objective = lb.objective(Method(sample(student, check=False), term, token_mean))
    case.agrees(objective(logits, case.responses, keep, old_logp=case.old_log_probs, **given).loss, logits)
