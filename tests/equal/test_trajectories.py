"""Published coincidences of methods that differ in who generates the text."""

from __future__ import annotations

import math

import pytest
import torch
from case_helpers import agreeing, case, changed, differ, equal, identical, kl, laws, prepared, spoken, term
from torch import Tensor

import limbeck as lb
from laws.cases import VOCABULARY, Case
from limbeck.axes import (
    clip,
    correct,
    divergence_loss,
    entropy_gate,
    in_top,
    init,
    log_ratio,
    once,
    other,
    sample,
    solution,
    student,
    teacher,
    token_mean,
    turn_mean,
)
from limbeck.axes.context import draft
from limbeck.axes.scalar import scalar
from limbeck.math.divergence import fkl, rkl
from limbeck.space.method import Method
from limbeck.space.term import Term

m = lb.methods


# ---------------------------------------------------------------- TCOD


@pytest.mark.parametrize(("step", "turns"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (38, 20)])
def test_tcods_number_of_turns_grows(step: int, turns: int) -> None:
    """k(n) = k_start + floor(n / eta); the code's window is 1 + floor(n / c)."""
    assert m.tcod().source.turns.at(step) == turns
    assert m.tcod(start=3, every=6).source.turns.at(step) == 3 + step // 6


@pytest.mark.parametrize("length", [1, 4, 9])
@pytest.mark.parametrize("step", [0, 4, 5, 9, 10, 45])
def test_tcods_replayed_turns_shrink(length: int, step: int) -> None:
    """max(0, (L - 1) - floor(n / c)) turns are replayed; at n = 0, c - 1, c and later."""
    source = m.tcod_back(every=5).source
    replayed = max(0, length - (1 + int(source.back.at(step))))
    assert replayed == max(0, (length - 1) - step // 5)
    assert source.start == once(sample(teacher, turns=30))


def test_tcod_late_in_its_curriculum_is_multi_turn_opd() -> None:
    """From k >= T_max, or an offset of at least L - 1. The loss never changes, only who samples which turns."""
    full = Method(sample(student, check=False, turns=20), Term(log_ratio(teacher), clip(0.2)), turn_mean)
    assert m.tcod().terms == m.tcod_back().terms == full.terms
    assert m.tcod().reduction == m.tcod_back().reduction == turn_mean
    for off_policy in (False, True):
        c = case(off_policy)
        identical(c.value_and_grad(m.tcod()), c.value_and_grad(full))


def test_tcod_is_the_mean_over_turns_of_token_means() -> None:
    """Not the mean over all tokens."""
    c = case(True)
    rho = (spoken(c, "student") - c.given["old_logp"]).exp()
    A = spoken(c, "teacher") - c.given["old_logp"]
    loss = -torch.minimum(rho * A, rho.clamp(0.8, 1.2) * A)
    means = [
        loss[b, c.mask[b] & (c.given["turn"][b] == k)].mean()
        for b in range(8)
        for k in sorted(set(c.given["turn"][b][c.mask[b]].tolist()))
    ]
    equal(c.loss(m.tcod()).detach(), torch.stack(means).mean())
    differ(torch.stack(means).mean(), loss[c.mask].mean())


# ---------------------------------------------------------------- TRD


def test_trd_scored_without_the_draft_is_opd_with_forward_kl() -> None:
    """With y_r = y_o it is forward KL on the student's prefixes."""
    c = case()
    seen = changed(c, teacher_given_logits=c.given["teacher_logits"])
    identical(seen.value_and_grad(m.trd()), c.value_and_grad(m.opd_full(divergence="fkl")))
    differ(c.loss(m.trd()), c.loss(m.opd_full(divergence="fkl")))


def test_trd_of_a_rewrite_from_the_prompt_alone_is_off_policy() -> None:
    """With y_r independent of y_o it is forward KL on the teacher's own samples."""
    off = m.decoupled_kl(lam=0, student_prefix=False)
    assert off.source.reader == teacher
    c = case()
    seen = changed(c, teacher_given_logits=c.given["teacher_logits"])
    identical(seen.value_and_grad(m.trd()), c.value_and_grad(off))


def test_trds_scorer_has_the_same_context_as_its_writer() -> None:
    """The self variant uses the frozen student, with or without the draft."""
    for method, view in (
        (m.trd(), teacher.given(draft)),
        (m.trd_self(), init.given(solution, draft)),
        (m.trd_self(show_draft=False), init.given(solution)),
    ):
        assert term(method).signal == view
        assert method.source.source.reader == view
        assert method.source.source.source == sample(student, check=False, tau=0.6)


# ---------------------------------------------------------------- BRTS


def test_brts_without_its_second_branch_is_top_k_opd() -> None:
    """With lambda = 0 the teacher samples nothing."""
    top = Term(teacher, divergence_loss(rkl, top_k=16, by="student", tail=False))
    bare = m.brts(lam=0)
    assert set(bare.sources) == {"own"}
    assert bare.roles == {"teacher": {"at"}}
    c = case()
    identical(c.value_and_grad(bare), c.value_and_grad(Method(sample(student, 2, check=False), top, token_mean)))


def test_brts_branches_have_their_own_text_and_denominator() -> None:
    """L = L_stu + lambda L_tea."""
    c, method = case(), m.brts(lam=3.0, top_k=VOCABULARY)
    own = torch.tensor([s == "own" for s in c.arguments(method)["source"]])
    q, p = laws(c, "student"), laws(c, "teacher")
    mine = own[:, None].expand_as(c.mask)[c.mask]
    equal(c.loss(method).detach(), kl(q, p)[mine].mean() + 3 * kl(p, q)[~mine].mean())
    only_own = Method(method.source, m.brts(lam=0, top_k=VOCABULARY).terms)
    equal(c.loss(only_own).detach(), kl(q, p)[mine].mean())


def test_brts_with_one_rollout_selects_nothing() -> None:
    """With N = 1 the group has one member."""
    best = m.brts(n=1).sources["teacher"]
    assert best.source.source.n == 1
    assert best.group == 1


def test_brts_prefers_a_correct_rollout_to_a_similar_one() -> None:
    """Correctness decides before similarity; similarity decides among equals; with k = V it is constant."""
    c, method = case(True), m.brts(top_k=2)
    right, similar = method.sources["teacher"].by
    q = laws(c, "student")
    rank = (q > q.gather(-1, c.tokens[c.mask][:, None])).sum(-1)
    rows = torch.arange(8)[:, None].expand_as(c.mask)[c.mask]
    share = torch.stack([(rank[rows == b] < 2).double().mean() for b in range(8)])
    equal(prepared(c, method, similar), share)
    assert torch.equal(prepared(c, method, right), c.given["correct"])
    keys = [(bool(a), float(b)) for a, b in zip(prepared(c, method, right), prepared(c, method, similar), strict=True)]
    assert (True, 0.0) > (False, 1.0)  # the order in which keys are compared
    best = max(range(8), key=lambda b: keys[b])
    assert c.given["correct"][best]
    assert share[best] < share.max()  # a wrong one is more similar
    equal(prepared(c, method, in_top(VOCABULARY, student).over("sequence", "mean")), torch.ones(8, dtype=torch.float64))
    assert (right, similar) == (correct, in_top(2, student).over("sequence", "mean"))


def test_brts_shows_the_solution_only_where_all_are_wrong() -> None:
    """The second tier asks again, with the reference solution in view."""
    patched = m.brts().sources["teacher"].source
    assert patched.new.reader == teacher.given(solution)
    assert str(patched.when).count("any_group") == 1


def test_brts_second_branch_depends_on_the_teacher() -> None:
    """In the released code it does not: the gradient of -sum_v sg(p_S(v)) log p_S(v) has no teacher.

    The paper's second branch, which this library has, does depend on it.
    """
    c = case()
    z = c.logits.detach().clone().requires_grad_()
    top = z.log_softmax(-1).topk(3, -1).values[c.mask]
    released = torch.autograd.grad(-(top.softmax(-1).detach() * top).sum(), z)[0]
    assert released.abs().max() > 0.1  # it moves the student, towards its own entries, whoever the teacher is
    branch = Method(sample(teacher), Term(teacher, divergence_loss(fkl, top_k=3)), token_mean)
    other_teacher = changed(c, teacher_logits=c.given["ref_logits"])
    differ(c.value_and_grad(branch)[1], other_teacher.value_and_grad(branch)[1])


@pytest.mark.parametrize("k", [2, VOCABULARY])
def test_ppo_on_top_k_candidates_differs_from_the_divergences_gradient_by_a_known_term(k: int) -> None:
    """A_{t,v} = sg(p(v)(log q - log p)(v)) over k candidates differs from the KL's gradient by a known term.

    With p normalised within k and q, p in the ratio as they are: KL_k times the mean of grad log p; 0 at k = V.
    """
    c = case()
    z = c.logits.detach().clone().requires_grad_()
    logq = z.log_softmax(-1)[c.mask]
    ids = logq.topk(k, -1).indices
    top, guide = logq.gather(-1, ids), c.given["teacher_logits"].log_softmax(-1)[c.mask].gather(-1, ids)
    inside = top.log_softmax(-1).detach()
    gap = inside - guide.log_softmax(-1)
    ppo = torch.autograd.grad((inside.exp() * gap * top).sum(-1).mean(), z, retain_graph=True)[0]
    row = (inside.exp() * gap).sum(-1)
    extra = torch.autograd.grad((row * (inside.exp() * top).sum(-1)).mean(), z)[0]
    ours = c.value_and_grad(m.brts(lam=0, top_k=k))[1]
    equal(ppo - extra, ours)
    if k == VOCABULARY:
        assert extra.abs().max() < 1e-12
    else:
        differ(extra, torch.zeros_like(extra))


# ---------------------------------------------------------------- MAD-OPD


def sure(c: Case, *percent: float) -> Case:
    """Stated confidences, the same for every sequence."""
    columns = ("first_2", "second_2")
    return changed(c, **{k: torch.full((8,), x, dtype=torch.float64) for k, x in zip(columns, percent, strict=True)})


def two(c: Case, weights: tuple[float, float], row: str = "jsd(0.5)") -> Tensor:
    """The weighed mean of both debaters' divergences."""
    losses = [
        changed(c, teacher_logits=c.given[f"{name}_given_logits"]).loss(m.opd_full(divergence=row)).detach()
        for name in ("first", "second")
    ]
    return weights[0] * losses[0] + weights[1] * losses[1]


@pytest.mark.parametrize("row", ["jsd(0.5)", "rkl"])
def test_mad_opd_with_equal_confidences_is_a_plain_mean(row: str) -> None:
    """Both debaters' divergences count by one half."""
    c = sure(case(), 40.0, 40.0)
    equal(c.loss(m.mad_opd(divergence=row)).detach(), two(c, (0.5, 0.5), row))


def test_mad_opd_weights_the_more_confident_teacher_more() -> None:
    """(100, 0) at tau = 1 is sigma(1): 0.731 and 0.269."""
    c = sure(case(), 100.0, 0.0)
    first = 1 / (1 + math.exp(-1))
    assert round(first, 3) == 0.731
    equal(c.loss(m.mad_opd()).detach(), two(c, (first, 1 - first)))
    cold = 1 / (1 + math.exp(-2))
    equal(c.loss(m.mad_opd(tau=0.5)).detach(), two(c, (cold, 1 - cold)))
    sharp = sure(case(), 100.0, 90.0)  # 100 / (100 tau) alone would leave exp's range
    equal(sharp.loss(m.mad_opd(tau=0.02)).detach(), two(c, (1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5)))))
    torch.testing.assert_close(c.loss(m.mad_opd(tau=1e9)).detach(), two(c, (0.5, 0.5)), rtol=1e-8, atol=0)


@pytest.mark.parametrize("missing", [(math.nan, 90.0), (90.0, math.nan), (math.nan, math.nan)])
def test_mad_opd_with_a_missing_confidence_is_a_plain_mean(missing: tuple[float, float]) -> None:
    """If any confidence is not a number, all teachers count equally."""
    c = sure(case(), *missing)
    equal(c.loss(m.mad_opd()).detach(), two(c, (0.5, 0.5)))


def test_mad_opd_of_one_teacher_without_a_debate_is_gkd() -> None:
    """K = 1, R = 0 is GKD with lambda = 1; two teachers with R = 0 are averaged."""
    c = case()
    same = changed(c, first_logits=c.given["teacher_logits"])
    single = m.mad_opd(("first",), rounds=0)
    equal(same.value_and_grad(single), c.value_and_grad(m.gkd(lam=1)))
    assert m.mad_opd(rounds=0).contexts == frozenset()
    pair = changed(c, first_logits=c.given["first_given_logits"], second_logits=c.given["second_given_logits"])
    equal(pair.loss(m.mad_opd(rounds=0)).detach(), two(c, (0.5, 0.5)))


def test_mad_opds_debaters_answer_in_every_round_and_state_confidence_last() -> None:
    """Two rounds: independent answers first, then revisions that show the other's answer."""
    (context,) = m.mad_opd().contexts
    assert [(a.name, a.by, a.number) for a in context.asks] == [
        ("first_1", "first", False),
        ("second_1", "second", False),
        ("first_2", "first", True),
        ("second_2", "second", True),
    ]
    assert "first_1" not in context.asks[1].question
    assert "second_1" in context.asks[2].question
    assert {r.role for r in m.mad_opd().views if r.context} == {other("first").role, other("second").role}


# ---------------------------------------------------------------- decoupled KL


def test_decoupled_kl_has_four_known_corners() -> None:
    """lambda 1 and 0 are reverse and forward KL, on either prefix."""
    assert m.decoupled_kl(lam=1) == m.opd_full()
    assert m.decoupled_kl(lam=0) == m.opd_full(divergence="fkl")
    assert m.decoupled_kl(lam=1, student_prefix=False).source == sample(teacher, check=False)
    assert m.decoupled_kl(lam=0, student_prefix=False).terms == m.opd_full(divergence="fkl").terms


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_decoupled_kl_is_linear_in_lambda(lam: float) -> None:
    """lambda RKL + (1 - lambda) FKL, value and gradient; lambda on the reverse."""
    c = case()
    (a, da), (b, db) = (c.value_and_grad(m.decoupled_kl(lam=x)) for x in (1, 0))
    equal(c.value_and_grad(m.decoupled_kl(lam=lam)), (lam * a + (1 - lam) * b, lam * da + (1 - lam) * db))
    differ(a, b)


def test_decoupled_kls_entropy_gate_climbs_only_above_its_floor() -> None:
    """It never advances where H < H_min, and climbs every step of the levels where H_min is minus infinity."""

    def climb(gate: lb.axes.Scalar, entropies: list[float]) -> list[float]:
        memory: dict[str, float] = {}
        values = []
        for step, h in enumerate(entropies):
            values.append(gate.now(step, memory))
            for controller in gate.controllers:
                memory[controller.name] = controller.update(memory.get(controller.name), step, {"entropy": h})
        return values

    levels = (128, 512, 4096)
    assert climb(entropy_gate(levels, 1.0, 2), [0.5] * 6) == [128] * 6
    assert climb(entropy_gate(levels, -math.inf, 2), [0.0] * 6) == [128, 128, 512, 512, 4096, 4096]
    assert climb(entropy_gate(levels, 1.0, 2), [0.0, 1.0, 2.0, 0.9, 2.0, 2.0, 2.0]) == [
        128,
        128,
        512,
        512,
        512,
        512,
        4096,
    ]
    assert entropy_gate((256,), 1.0, 2) == scalar(256)
    held_out = entropy_gate(levels, 1.0, 1).controllers[0]
    assert held_out.update(0, 0, {"entropy": 0.0, "heldout_entropy": 2.0}) == 1
    assert m.decoupled_kl(levels=levels, floor=1.0).source.max_tokens == entropy_gate(levels, 1.0, 100)


def test_decoupled_kl_with_one_rung_has_a_fixed_length() -> None:
    """Then there is no controller."""
    assert m.decoupled_kl(levels=(256,)).source.max_tokens == scalar(256)
    assert m.decoupled_kl(levels=(256,)).controllers == ()
    assert m.decoupled_kl().source.max_tokens is None


def test_trajectory_methods_have_no_gradient_where_the_teacher_is_the_student() -> None:
    """Every divergence is 0 there, with zero gradient."""
    c = agreeing(case(), "teacher", "teacher_given", "init_given", "first_given", "second_given")
    for method in (m.trd(), m.trd_self(), m.brts(), m.mad_opd(), m.decoupled_kl(), m.tcod()):
        value, grad = c.value_and_grad(method)
        assert value.abs() < 1e-12
        assert grad.abs().max() < 1e-12
