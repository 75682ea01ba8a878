"""Published coincidences of privileged text with rewards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from case_helpers import (
    agreeing,
    case,
    changed,
    differ,
    equal,
    identical,
    judged,
    kl,
    laws,
    one_turn,
    prepared,
    spoken,
    term,
)
from torch import Tensor

import limbeck as lb
from laws.cases import Case
from limbeck.axes import (
    clip,
    cohort,
    divergence_loss,
    group_advantage,
    logp,
    on,
    plain,
    reinforce,
    reward,
    sample,
    sampled,
    solution,
    student,
    to_go,
    token_mean,
)
from limbeck.math.divergence import rkl
from limbeck.space.method import Method
from limbeck.space.term import Term

m = lb.methods
A = group_advantage()
GRPO = Term(A, clip(0.2))


def sources(c: Case, method: Method, *names: str) -> dict[str, Any]:
    """Everything from one source, or alternating between some."""
    return {"source": [names[b // 2 % len(names)] for b in range(8)]}


# ---------------------------------------------------------------- π-Distill


def test_pi_distills_alpha_mixes_its_two_objectives() -> None:
    """alpha = 1 is J_T, alpha = 0 is J_S; alpha mixes them."""
    whole, tea, stu = (m.pi_distill(alpha=a) for a in (0.3, 1, 0))
    assert [t for _, t in whole.parts] == [t for _, t in tea.parts] + [t for _, t in stu.parts]
    assert [c.at(0) for c, _ in whole.parts] == pytest.approx(
        [0.3 * c.at(0) for c, _ in tea.parts] + [0.7 * c.at(0) for c, _ in stu.parts]
    )
    assert all("hinted" in str(t.where) for _, t in tea.parts)
    assert all("plain" in str(t.where) for _, t in stu.parts)


def test_pi_distill_with_alpha_one_and_no_kl_is_rl_of_the_hinted_policy() -> None:
    """It is GRPO on the record whose prompt holds I; the plain view is not read."""
    method = m.pi_distill(alpha=1, beta=0)
    assert [t for _, t in method.parts] == [Term(A, clip(0.2), on("hinted"))]
    assert method.sources["plain"].reader == student.given(solution)
    assert method.sources["hinted"].given == (solution,)
    assert not any(plain in r.context for r in method.views)


def test_pi_distill_without_privileged_text_is_grpo() -> None:
    """I = nothing makes the ratio 1 and the KL 0, in value and gradient."""
    for alpha in (0.0, 0.5, 1.0):
        method = m.pi_distill(alpha=alpha, beta=0.5)
        c = agreeing(case(), "student_given")
        got = c.value_and_grad(method, **sources(c, method, "hinted", "plain"))[1]
        seen = torch.tensor([b // 2 % 2 == 0 for b in range(8)])
        for half, share in ((seen, alpha), (~seen, 1 - alpha)):
            part = changed(c, mask=c.mask & half[:, None])
            want = share * part.value_and_grad(Method(sample(student, 8), GRPO, token_mean))[1]
            equal(got[half], want[half])
        differ(
            case().value_and_grad(m.pi_distill(beta=0.5, alpha=1.0), **sources(c, method, "hinted", "plain"))[1], got
        )


def test_pi_distills_ratio_is_of_the_whole_sequence() -> None:
    """pi^S(o|s) / sg pi^T(o|s, I), of trajectories as in the formula; the text was sampled with I in view."""
    c = case(True)
    method = m.pi_distill(alpha=0, beta=0)
    gap = (c.given["old_logp"] - c.given["rollout_logp"]) * c.mask
    ratio = gap.sum(-1).exp()
    adv = prepared(c, Method(sample(student, 8), GRPO), A)
    got = c.loss(method, **sources(c, method, "plain")).detach()
    rows = torch.arange(8)[:, None].expand_as(c.mask)[c.mask]
    equal(got, -((ratio * adv)[rows] * c.rows(spoken(c, "student"))).mean())


def test_pi_distills_kl_is_u_minus_log_u_minus_one() -> None:
    """KL(sg T || S) on text sampled from T: half the loss form of chi-square."""
    c = judged(case(True))
    method = m.pi_distill(alpha=0, beta=0.5)
    log_u = c.rows(spoken(c, "student") - c.given["rollout_logp"])
    got = c.loss(method, **sources(c, method, "plain")).detach()
    equal(got, 0.5 * (log_u.exp() - log_u - 1).mean())


# ---------------------------------------------------------------- OPSD-RL


def test_opsd_rl_without_beta_is_grpo() -> None:
    """With beta = 0 it is the same value."""
    assert m.opsd_rl(beta=0) == Method(sample(student, 8), GRPO, token_mean)
    assert m.opsd_rl(beta=0) == m.grpo(ref_coef=0, reduction="token_mean", group=8)


def test_opsd_rl_without_reward_is_reverse_kl_to_the_informed_student() -> None:
    """R = 0 leaves beta times rho k3; (expected gradient: tests/laws/test_enumeration_on_policy.py)."""
    c = judged(case(True))
    want = Method(sample(student), Term(logp(student.given(solution)), sampled("k3", ratio=True)), token_mean)
    value, grad = c.value_and_grad(want)
    equal(c.value_and_grad(m.opsd_rl(beta=0.5)), (0.5 * value, 0.5 * grad))
    assert m.opsd_rl().source.reader == student  # it samples from the student, pi-Distill from the hinted one


# ---------------------------------------------------------------- VPD


@pytest.mark.parametrize("step", range(11))
def test_vpd_trains_the_teacher_at_every_fth_step(step: int) -> None:
    """The E-step runs iff n mod F = 0, else the M-step."""
    expect = [c.at(step) for c, t in m.vpd().parts if "logistic" in str(t.surrogate)]
    pull = [c.at(step) for c, t in m.vpd().parts if "divergence_loss" in str(t.surrogate)]
    assert expect == [float(step % 5 == 0)] * 2
    assert pull == [float(step % 5 != 0)]


def test_vpd_without_e_steps_is_sdpo_with_reverse_kl() -> None:
    """It is the same value; there is no second record of the text."""
    never = m.vpd(e_every=None)
    assert set(never.sources) == {"roll"}
    (only,) = [t for _, t in never.parts]
    assert (only.signal, only.surrogate) == (student.given(lb.axes.feedback), divergence_loss(rkl))
    c = case()
    rows = c.given["has feedback"][:, None].expand_as(c.mask)[c.mask]
    q, p = laws(c, "student"), laws(c, "student_given")
    equal(c.loss(never, **sources(c, never, "roll")).detach(), kl(q, p)[rows].mean())


def on_read(c: Case, method: Method, step: int = 0) -> tuple[Tensor, Tensor]:
    """The E-step alone: everything was read with feedback in view."""
    return c.value_and_grad(method, **sources(c, method, "read"), step=step)


def test_vpds_teacher_reward_is_zero_without_feedback() -> None:
    """C = nothing and shared weights give r~ = 0: both losses are log 2, delta is 0."""
    c = agreeing(case(), "student_given_plain")
    value, _ = on_read(c, m.vpd())
    equal(value, torch.tensor(2 * math.log(2), dtype=torch.float64))
    zero = agreeing(case(), "student_given_feedback")
    value, grad = zero.value_and_grad(m.vpd(), **sources(zero, m.vpd(), "roll"), step=1)
    assert value.abs() < 1e-12
    assert grad.abs().max() < 1e-12


def test_vpds_e_step_raises_right_and_lowers_wrong_sequences() -> None:
    """Checked on the direction of the gradient, sequence by sequence."""
    c = case()
    _, grad = on_read(c, m.vpd(beta=0.5))
    z = c.logits.detach().clone().requires_grad_()
    logp = (z.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0] * c.mask).sum(-1)
    for b in range(8):
        direction = torch.autograd.grad(logp[b], z, retain_graph=True)[0]
        slope = float((direction * -grad).sum())
        assert (slope > 0) == bool(c.given["correct"][b])
        assert abs(slope) > 1e-4


def test_vpds_e_step_has_the_value_found_by_hand() -> None:
    """-E+ log s(r - d) - E- log s(-(r - d)), r = beta log q / sg pi of sequences, d = (E+ r + E- r) / 2."""
    c, beta = case(), 0.3
    gap = ((spoken(c, "student") - spoken(c, "student_given_plain")) * c.mask).sum(-1)
    r, right = beta * gap, c.given["correct"]
    delta = 0.5 * (r[right].mean() + r[~right].mean())
    s = torch.nn.functional.logsigmoid
    want = -s(r - delta)[right].mean() - s(-(r - delta))[~right].mean()
    equal(on_read(c, m.vpd(beta=beta))[0], want)


def test_vpds_delta_is_a_moving_average_over_batches() -> None:
    """It averages the middle of both means; rate 0 keeps nothing of earlier batches."""
    a, b = case(), changed(case(), student_given_plain_logits=case().given["ref_logits"])
    method = m.vpd(rate=0.9)
    objective = lb.objective(method)

    def call(c: Case) -> float:
        args = {**c.arguments(method), **sources(c, method, "read"), "step": 0}
        objective(c.logits, c.tokens, c.mask, **args)
        return sum(objective.memory.values()) / 2

    first, second = call(a), call(b)
    fresh = lb.objective(m.vpd(rate=0.0))
    args = {**b.arguments(method), **sources(b, method, "read"), "step": 0}
    fresh(b.logits, b.tokens, b.mask, **args)
    alone = sum(fresh.memory.values()) / 2
    assert second == pytest.approx(0.9 * first + 0.1 * alone)
    assert first != pytest.approx(alone)


def test_a_batch_of_only_right_or_wrong_moves_only_that_mean_of_vpds_delta() -> None:
    """A batch without samples of one kind leaves the mean of that kind as it was, or at 0 if there is none yet."""
    c, method = case(), m.vpd(rate=0.9)
    objective = lb.objective(method)

    def call(correct: bool | None, source: str = "read") -> dict[str, float]:
        args = {**c.arguments(method), **sources(c, method, source), "step": 0}
        if correct is not None:
            args["correct"] = torch.full((8,), correct)
        objective(c.logits, c.tokens, c.mask, **args)
        return dict(objective.memory)

    assert call(None, "roll") == {}
    right = call(True)
    assert len(right) == 1
    both = call(False)
    assert len(both) == 2
    assert both.items() > right.items()
    assert call(None, "roll") == both


# ---------------------------------------------------------------- RLTF


def returns(c: Case, gamma: float) -> list[list[float]]:
    """G_t = r_t + gamma r_{t+1} + ... of every turn of every sequence."""
    out = []
    for b in range(8):
        n = len(set(c.given["turn"][b][c.mask[b]].tolist()))
        r = (c.given["reward"][b] * c.given["share"][b])[:n].tolist()
        out.append([sum(gamma ** (s - t) * r[s] for s in range(t, n)) for t in range(n)])
    return out


@pytest.mark.parametrize("gamma", [0.1, 0.0, 1.0])
def test_rltf_centres_returns_among_trajectories_that_reached_the_turn(gamma: float) -> None:
    """A_t = G_t - mean over the group's trajectories that reached turn t; no division by the std."""
    c = case(True)
    G, group = returns(c, gamma), c.given["group"].tolist()
    want = []
    for b, own in enumerate(G):
        for t, g in enumerate(own):
            mates = [G[j][t] for j in range(8) if group[j] == group[b] and t < len(G[j])]
            want.append(g - sum(mates) / len(mates))
    signal = to_go(reward, gamma) - cohort(to_go(reward, gamma))
    method = m.rltf_sd(gamma=gamma)
    assert term(method).signal == signal
    equal(prepared(c, method, signal), torch.tensor(want, dtype=torch.float64))
    assert max(len(own) for own in G) == 3
    assert min(len(own) for own in G) == 1


def test_rltf_without_kappa_is_multi_turn_reinforce() -> None:
    """kappa = 0 and lambda_f = 0 leave the same objective, bit for bit the same value."""
    bare = m.rltf_sd(coef=0)
    assert bare.terms == m.rltf_fm(coef=0).terms
    assert [t.surrogate.kind for _, t in bare.parts] == ["ratio"]
    c = case(True)
    got = c.value_and_grad(bare, **sources(c, bare, "talk"))
    fm = m.rltf_fm(coef=0)
    identical(got, c.value_and_grad(fm, **sources(c, fm, "talk")))
    flat = one_turn(c)
    mean = Method(sample(student), Term(group_advantage(scale=False), lb.axes.ratio), lb.axes.token_sum)
    given = {"turn_reward": c.given["reward"][:, None]}
    args = {k: v for k, v in flat.arguments(bare).items() if k != "turn_reward"}
    one = lb.objective(bare)(c.logits, c.tokens, c.mask, **{**args, **given, **sources(c, bare, "talk")}).loss
    equal(one, flat.loss(mean))  # one turn: REINFORCE centred in the group


def second(c: Case, method: Method) -> tuple[Tensor, Tensor]:
    """The self-distillation term alone: everything is a second answer under the first prompt."""
    return c.value_and_grad(method, **sources(c, method, "first"))


def test_rltfs_first_turn_baseline_keeps_a_signal_if_all_second_answers_are_right() -> None:
    """The second turn's own mean gives 0, the first turn's gives 1 - mean r0 > 0."""
    c = one_turn(changed(judged(case(), *range(8)), **{"first reward": torch.full((8,), 0.25, dtype=torch.float64)}))
    share = torch.zeros(8, 3, dtype=torch.float64)
    share[:, 0] = 1  # the recast second answer is one turn, with its own reward
    c = changed(c, share=share)
    ablation = m.rltf_sd(first_turn_baseline=False)
    assert second(c, ablation)[1].abs().max() < 1e-15
    taught = term(m.rltf_sd(), 1)
    equal(prepared(c, m.rltf_sd(), taught.signal), torch.full((8,), 0.75, dtype=torch.float64))
    assert second(c, m.rltf_sd())[1].abs().max() > 1e-3


@pytest.mark.parametrize("threshold", [-5.0, -2.0, -1e9])
def test_rltf_leaves_unlikely_tokens_out(threshold: float) -> None:
    """1[log pi_old(y1 | x0) >= -5]; the gradient is kappa sum A mask grad log pi(y1 | x0)."""
    c = case(True)
    c = changed(c, old_logp=torch.where(torch.arange(4) == 1, -6.0, c.given["old_logp"]))
    method = m.rltf_sd(coef=0.3, threshold=threshold)
    keep = c.mask & (c.given["old_logp"] >= threshold)
    assert keep.sum() < c.mask.sum() or threshold == -1e9
    turns = [len(set(c.given["turn"][b][c.mask[b]].tolist())) for b in range(8)]
    score = torch.stack([(c.given["reward"][b] * c.given["share"][b])[:n].sum() for b, n in enumerate(turns)])
    advantage = score - c.given["first reward"]
    z = c.logits.detach().clone().requires_grad_()
    logp_ = z.log_softmax(-1).gather(-1, c.tokens[..., None])[..., 0]
    loss = -0.3 * (advantage[:, None] * logp_)[keep].sum()
    equal(second(c, method), (loss.detach(), torch.autograd.grad(loss, z)[0]))


def test_rltf_trains_the_second_answer_under_the_first_prompt() -> None:
    """The datum is (x0 -> y1), log-probs recomputed under x0; the baseline is the group's first reward."""
    method = m.rltf_sd()
    first = method.sources["first"]
    assert (first.response, first.given, first.question) == ("turn 1", (), "")
    assert dict(first.carry) == {"first reward": reward.over("sequence", "first").mean}
    assert term(method, 1).surrogate == reinforce  # no importance weight from x1 to x0
    assert dict(m.rltf_sd(first_turn_baseline=False).sources["first"].carry) == {}
    assert m.rltf_sd(coef="linear(0, 0.1, 10)").parts[1][0].at(5) == pytest.approx(0.05)


def test_rltf_sd_of_answers_to_the_first_prompt_is_reinforce_with_a_baseline() -> None:
    """With y1 ~ pi(. | x0) the term is REINFORCE with r1 - b0 (threshold off)."""
    c = one_turn(case())
    share = torch.zeros(8, 3, dtype=torch.float64)
    share[:, 0] = 1
    c = changed(c, share=share)
    method = m.rltf_sd(coef=1.0, threshold=-1e9)
    signal = lb.axes.score - lb.axes.column("first reward")
    plain_ = Method(sample(student), Term(signal, reinforce), lb.axes.token_sum)
    equal(second(c, method), c.value_and_grad(plain_))


def test_rltf_fm_adds_the_likelihood_of_the_critique() -> None:
    """lambda_f NLL(critique | question and attempt), a token sum of its own record."""
    c, method = case(), m.rltf_fm(coef=0.2)
    got = c.loss(method, **sources(c, method, "critic")).detach()
    equal(got, -0.2 * c.rows(spoken(c, "student")).sum())
    critic = method.sources["critic"]
    assert critic.response == "{{ feedback }}"
    assert "turn_0" in critic.question
    assert not critic.sampled
