"""MiniLLM term by term: the authors' release, and TRL's port where it departs from the paper."""

from __future__ import annotations

import pytest
import torch
from golden_files import Case, cases, hearing, labelled, live, told

import limbeck as lb
from limbeck.axes import behavior, column, everywhere, importance, log_ratio, standardise, student, teacher, to_go
from limbeck.axes.expression import Clip, Expr

MINILLM = lb.methods.minillm(lm_coef=0)
"""Its two terms on rollouts; the third is cross-entropy, pinned elsewhere."""

SOURCES = ["roll"] * 4


def reward_of(**arguments: float) -> Expr:
    """The per-token reward inside the registered method's own signal."""
    (_, term), *_ = lb.methods.minillm(lm_coef=0, **arguments).parts
    return next(v for v in term.signal.walk() if isinstance(v, Clip))


@cases("minillm_sampler_weight_reward")
def test_reward_and_weight_equal_the_sampler(case: Case) -> None:
    logp = case.student_logp
    everything = torch.ones_like(logp).bool()
    reward = reward_of(reward_scale=case.hyper["scaling"], reward_clip=case.hyper["clip"])
    case.close(told(reward, everything, old_logp=logp, teacher_logp=case.teacher_logp), case.outputs("rewards"))
    alpha = case.hyper["alpha"] or 0.0  # None is unmixed sampling, whose weight is 1
    mixture = ((1 - alpha) * case.rollout_logp.exp() + alpha * case.teacher_logp.exp()).log()
    w = told(everywhere, everything, importance(student, behavior), student_logp=logp, rollout_logp=mixture)
    if case.hyper["alpha"] is None:
        w = torch.ones_like(w)
    case.close(w, case.outputs("w"))


@cases("minillm_advantage")
def test_returns_equal_the_release_and_whitening_leaves_padding_out(case: Case) -> None:
    mask, gamma = case.mask.bool(), case.hyper["gamma"]
    raw_of = to_go(column("reward", "token"), gamma, mean=True)
    given = {"columns": {"reward": case.rewards}}
    raw = told(raw_of, mask, **given)
    theirs = case.outputs("advantages")
    if not case.hyper["whiten"]:
        case.close(raw, torch.where(mask, theirs, 0.0))
        return
    # The release takes mean and std over the padded matrix too; ours over the tokens that count. Both pinned.
    case.close((raw - raw.mean()) / (raw.var() + 1e-8).sqrt(), theirs)
    ours = told(standardise(raw_of, "batch"), mask, **given)[mask]
    case.close(ours, (raw[mask] - raw[mask].mean()) / (raw[mask].std() + 1e-8))
    assert (ours - theirs[mask]).abs().max() > 0.05


@cases("trl_minillm_advantage", guard=1e-7)
def test_returns_equal_the_paper_and_not_trls_port(case: Case) -> None:
    mask, gamma, normalised = case.mask.bool(), case.hyper["gamma"], case.hyper["length_norm"]
    given = {"old_logp": case.student_logp, "teacher_logp": case.teacher_logp}
    ours = told(to_go(log_ratio(teacher), gamma, mean=normalised), mask, **given)
    case.close(ours, torch.where(mask, case.outputs("advantages", "paper_outputs"), 0.0))
    gap = (ours - case.outputs("advantages"))[mask].abs().max()
    if 0 < gamma < 1:  # gamma^s instead of gamma^(s-t)
        assert gap > 0.04
    else:  # 1e-4 for each padded position in the divisor
        assert gap < (5e-4 if normalised else 1e-7)


@cases("minillm_pg")
def test_long_term_part_equals_the_release(case: Case) -> None:
    # The release clips ratio * w with w = pi_old / mixture: the ratio of the student to the mixture that wrote.
    method = hearing(lb.methods.minillm(lm_coef=0, clip_range=case.hyper["cliprange"]), 0, 1, at="token")
    logp = live(case.log_prob)
    mixture = case.old_log_prob - case.w.log()
    given = {"rollout_logp": mixture, "columns": {"advantage": case.advantages}, "source": SOURCES}
    case.agrees(lb.objective(method)(student_logp=logp, mask=case.mask, **given).loss, logp)


@cases("minillm_single_step")
@pytest.mark.parametrize("which", ["paper", "release"])
def test_single_step_part_is_weighed_as_in_the_paper_and_not_as_in_the_release(case: Case, which: str) -> None:
    tokens, mask = labelled(case.labels)
    logits = live(case.student_logits)
    given = {"teacher_logits": case.teacher_logits}
    if which == "release":  # it leaves the weight out, which makes it full-vocabulary OPD
        case.agrees(lb.objective(lb.methods.opd_full())(logits, tokens, mask, **given).loss, logits)
        return
    method = hearing(MINILLM)  # both terms; an advantage of 0 leaves the second
    logp = case.student_logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    given |= {"rollout_logp": logp - case.w.log(), "columns": {"advantage": torch.zeros(len(tokens)).double()}}
    case.agrees(lb.objective(method)(logits, tokens, mask, source=SOURCES, **given).loss, logits, "paper_")
