"""Invalid methods are refused when they are built, with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import limbeck as lb
from laws.cases import make
from limbeck.axes import (
    all_right,
    all_wrong,
    anneal,
    behavior,
    blend,
    clip,
    contrast,
    correct,
    data,
    divergence_advantage,
    divergence_loss,
    either,
    entropy,
    everywhere,
    group_advantage,
    group_mean,
    importance,
    label,
    length,
    log_ratio,
    logp,
    old,
    on,
    pairs,
    policy,
    ref,
    reinforce,
    resample,
    reward,
    sample,
    sampled,
    sequence_mean,
    student,
    teacher,
    to_go,
    token_mean,
)
from limbeck.axes.reduction import as_reduction
from limbeck.axes.scalar import scalar
from limbeck.math.divergence import alpha, as_divergence, jsd, renyi, rkl, skew_fkl, skew_rkl
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import Rollout

S, m = sample(n=2), lb.methods
A = group_advantage()

BUILT: dict[str, tuple[Callable[[], Any], str]] = {
    # a surrogate told the wrong type or a finer level than it hears
    "policy told a reader": (lambda: Method(S, Term(teacher, clip(0.2))), "log_ratio.*divergence_loss"),
    "divergence_loss told a vector": (
        lambda: Method(S, Term(A, divergence_loss(rkl))),
        "whole distribution.*reader.*policy",
    ),
    "sampled told a signal": (
        lambda: Method(S, Term(log_ratio(teacher), sampled("k2"))),
        r"cannot take.*give it logp\(reader\)",
    ),
    "sampled told a reader": (lambda: Method(S, Term(teacher, sampled("k2"))), "takes a signal per token"),
    "contrast told tokens": (
        lambda: Method(pairs(), Term(logp(ref), contrast()), group_mean),
        r"takes one value per sequence.*per token.*\.over",
    ),
    "target is the student": (lambda: Method(S, Term(student, divergence_loss(rkl))), "gradient is zero.*teacher"),
    "target is the old student": (lambda: Method(S, Term(old, divergence_loss(rkl))), "gradient is zero.*ref or init"),
    "k1 as a loss": (lambda: sampled("k1"), "zero expected gradient.*'k2'.*reinforce"),
    "unknown estimator": (lambda: sampled("k4"), "unknown estimator.*'k2' or 'k3'"),
    "no loss form": (lambda: sampled(jsd(0.5)), r"no closed loss form.*divergence_advantage"),
    # records
    "reward of data": (lambda: Method(data(), Term(A, clip(0.2))), r"reads 'reward'.*nothing verifies.*check=True"),
    "reward unverified": (lambda: Method(sample(check=False), Term(reward.total, reinforce)), "nothing verifies"),
    "correct unverified": (
        lambda: Method(sample(check=False), Term(logp(teacher), sampled("k2"), where=~correct)),
        "reads 'correct'.*check=True",
    ),
    "resample until unverified": (
        lambda: Method(resample(sample(check=False), ~(all_wrong | all_right)), Term(everywhere, reinforce)),
        "'correct'.*check=True",
    ),
    "label without pairs": (
        lambda: Method(S, Term(label, contrast(base=ref)), group_mean),
        r"reads 'label'.*no preferences.*pairs\(\)",
    ),
    "ratio to nobody": (
        lambda: Method(data(), Term(log_ratio(teacher, behavior), reinforce)),
        "reads behavior, but its source.*no log-probs.*sample.*old",
    ),
    "weight by nobody": (
        lambda: Method(data(), Term(teacher, divergence_loss(rkl), weight=importance(student, behavior))),
        "reads behavior",
    ),
    "unknown source": (
        lambda: Method({"roll": S, "lm": data()}, Term(everywhere, reinforce, on("rol"))),
        r"on\('rol'\): no such source.*did you mean 'roll'",
    ),
    # the live student
    "live gate": (lambda: Method(S, Term(A, clip(0.2), entropy(student) > 1.0)), "must be known before that; use old"),
    "live batch weight": (
        lambda: Method(S, Term(teacher, divergence_loss(rkl), weight=entropy(student).over("batch", "mean"))),
        "whole batch of the student.*use old",
    ),
    "live to-go": (
        lambda: Method(S, Term(to_go(log_ratio(teacher, student), 1.0), reinforce)),
        "whole sequence of the student.*use old",
    ),
    "token weight of a pair": (
        lambda: Method(pairs(), Term(label, contrast(base=ref), weight=logp(ref)), group_mean),
        "one value per group or coarser",
    ),
    "live signal of a pair": (
        lambda: Method(pairs(), Term(logp(student).total, contrast(base=ref)), group_mean),
        "use old instead",
    ),
    # reductions
    "tokens of a pair": (
        lambda: Method(pairs(), Term(label, contrast(base=ref)), token_mean),
        "token_mean counts every token.*one loss per group.*group_mean",
    ),
    "unknown reduction": (lambda: m.grpo(reduction="token_men"), "did you mean 'token_mean'"),
    "unknown per": (lambda: Method(S, Term(A, clip(0.2), per="keep")), "did you mean 'kept'"),
    # parts
    "nothing left": (lambda: Method(S, 0 * Term(A, clip(0.2))), "no term left.*coefficient is 0"),
    "no update": (lambda: Method(S, Term(A, clip(0.2)), updates=0), "at least one optimiser step"),
    "jsd at 0": (lambda: jsd(0.0), "strictly between 0 and 1.*use fkl for 0 and rkl for 1"),
    "jsd at 1": (lambda: jsd(1.0), "use fkl for 0 and rkl for 1"),
    "skew fkl at 1": (lambda: skew_fkl(1.0), "strictly between"),
    "skew rkl at 0": (lambda: skew_rkl(0.0), "use rkl for 0"),
    "alpha at 1": (lambda: alpha(1.0), "use fkl for 0 and rkl for 1"),
    "renyi of order 1": (lambda: renyi(1.0), "use rkl for order 1"),
    "renyi of order 0": (lambda: renyi(0.0), "must be positive"),
    "unknown divergence": (lambda: as_divergence("rlk"), "did you mean 'rkl'"),
    "divergence without its number": (lambda: as_divergence("jsd"), r"takes one number.*'jsd\(0.5\)'"),
    "divergence with a number": (lambda: as_divergence("rkl(2)"), "takes no number"),
    "temperature": (lambda: teacher.at(0.0), "temperature of teacher is 0.0.*above 0"),
    "divergence_loss temperature": (lambda: divergence_loss(rkl, tau=-1.0), "tau of divergence_loss is -1.0.*above 0"),
    "top-k with a temperature": (lambda: m.kd(top_k=8), "tail has no temperature.*dense logits"),
    "top-0": (lambda: m.opd_full(top_k=0), "top_k of divergence_loss is 0.*at least 1"),
    "contrast temperature": (lambda: contrast(tau=0.0), "1 / beta"),
    "policy kind": (lambda: policy("clipp"), "did you mean 'clip'"),
    "policy pool": (lambda: policy("clip", pool="group"), "per token or sequence"),
    "negative clip": (lambda: clip(-0.2), "lo of clip.*is -0.2.*at least 0"),
    "discount": (lambda: m.opd(gamma=1.5), "between 0 and 1; 0 ignores the future"),
    "over downwards": (lambda: length.over("token", "mean"), "coarser levels are broadcast"),
    "over how": (lambda: length.over("group", "median"), "use one of sum, mean"),
    "blend": (lambda: blend((student, 0.5), (teacher, 0.2)), "sum to 1"),
    "coin": (lambda: either(1.5, S, data()), "between 0 and 1"),
    "sample": (lambda: sample(n=0), "at least 1"),
    "rising anneal": (lambda: anneal(1e-3, 5e-3, 5e-5), "falls from start to floor"),
    "coefficient": (lambda: scalar("annael(1,0,1)"), "give a number, 'anneal"),
    "dpo beta": (lambda: m.dpo(beta=0), "must be positive"),
    "gate": (lambda: m.kdrl(gate="respnse"), "did you mean 'response'"),
    "shaping gate": (lambda: m.kdrl_shaping(gate="x"), "use one of none, response, group"),
    "gkd beta 0": (lambda: m.gkd(beta=0), "use fkl for 0"),
    "gkd beta 1": (lambda: m.gkd(beta=1), "rkl for 1"),
    "overlong buffer": (lambda: m.dapo(max_length=10, buffer=20), "from 1 to max_length"),
    "unknown argument": (lambda: m.kdrl(beta=1), "unknown argument 'beta'.*it takes coef"),
    "nearest argument": (lambda: m.kdrl(coeff=1), "did you mean 'coef'"),
    "unknown method": (lambda: lb.get("kdlr"), "unknown method 'kdlr'.*did you mean 'kdrl'"),
}


@pytest.mark.parametrize("name", BUILT)
def test_invalid_methods_are_refused_when_built(name: str) -> None:
    """Built alone."""
    build, says = BUILT[name]
    with pytest.raises(lb.LimbeckError, match=f"(?s){says}"):
        build()


def test_named_reductions_are_known() -> None:
    """The same names as the objects."""
    assert as_reduction("sequence_mean") == sequence_mean == as_reduction(sequence_mean)


# ---------------------------------------------------------------- meeting the models


MEETS: dict[str, tuple[Callable[[], Any], str]] = {
    "gkd and sampled": (
        lambda: m.gkd().validate(teacher="sampled"),
        r"gkd needs the full .*\(dense\) of teacher, which serves only 'sampled'.*opd instead of gkd.*host",
    ),
    "top-k and sampled": (
        lambda: m.opd_full(top_k=8).validate(teacher="sampled"),
        r"opd_full needs the top-k log-probs \(topk\) of teacher.*ask the server for its top log-probs",
    ),
    "sampled and top-k": (
        lambda: m.opd().validate(teacher="topk"),
        r"opd needs the log-prob of each sampled token \(sampled\) of teacher, which serves only 'topk'.*let the",
    ),
    "no teacher": (lambda: m.kdrl().validate(), "kdrl reads teacher.*no teacher was given.*teacher="),
    "no reference": (lambda: m.dpo().validate(teacher="dense"), "dpo reads ref"),
    "no text": (lambda: m.minillm().validate(teacher="dense"), r"needs responses \(text\) of teacher.*can generate"),
    "renyi and sampled": (
        lambda: Method(S, Term(divergence_advantage(renyi(2.0), teacher), reinforce)).validate(teacher="sampled"),
        r"needs the full .* \(dense\) of teacher",
    ),
}


@pytest.mark.parametrize("name", MEETS)
def test_methods_are_refused_if_their_models_lack_something(name: str) -> None:
    """Built against models."""
    build, says = MEETS[name]
    with pytest.raises(lb.LimbeckError, match=f"(?s){says}"):
        build()


def test_methods_are_accepted_if_their_models_serve() -> None:
    """``dense`` serves all that can be read; abilities are sets, not a chain."""
    for method in (m.gkd(), m.opd(), m.opd_full(top_k=8), m.kdrl()):
        assert method.validate(teacher="dense") is method
    m.minillm().validate(teacher="model")
    m.opd().validate(teacher="sampled", ref="sampled")
    m.opd_full(top_k=8).validate(teacher="topk")
    m.sft().validate()


# ---------------------------------------------------------------- lb.objective

C = make()
TEACHER, OLD, R = C.given["teacher_logits"], C.given["old_logp"], C.given["reward"]
B, T, V = C.logits.shape
NAMES = ["roll", "lm"] * 4


def call(method: Method, **given: Any) -> Callable[[], Any]:
    """A call of ``lb.objective`` with the student's logits and whatever else."""
    return lambda: lb.objective(method)(**{"student_logits": C.logits, "tokens": C.tokens, **given})


def grpo(**given: Any) -> Callable[[], Any]:
    return call(m.grpo(ref_coef=0), **{"reward": R, **given})


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "no student": (lambda: lb.objective(m.sft())(tokens=C.tokens), "0 of student_logits.*exactly one"),
    "two students": (call(m.sft(), student_logp=OLD), "2 of student_logits.*exactly one"),
    "flat logits": (call(m.sft(), student_logits=C.logits[0]), r"student_logits \[B, T, V\].*expected"),
    "no head": (
        lambda: lb.objective(m.sft())(student_hidden=C.logits, tokens=C.tokens),
        r"needs student_head.*\[V, H\]",
    ),
    "head of another width": (
        lambda: lb.objective(m.sft())(student_hidden=C.logits, student_head=torch.zeros(9, V + 1), tokens=C.tokens),
        "student_head",
    ),
    "no tokens": (lambda: lb.objective(m.sft())(C.logits), "tokens is missing"),
    "unshifted tokens": (call(m.sft(), tokens=C.tokens[:, 1:]), "tokens has shape.*shift before you call"),
    "deep tokens": (call(m.sft(), tokens=C.tokens[..., None]), "tokens has shape"),
    "tokens out of the vocabulary": (call(m.sft(), tokens=C.tokens + V), "tokens"),
    "unshifted mask": (call(m.sft(), mask=torch.ones(B, T + 1)), "mask has shape.*shift before you call"),
    "deep mask": (call(m.sft(), mask=torch.ones(B, T, 1)), "mask has shape"),
    "no reward": (call(m.grpo(ref_coef=0)), "grpo reads rewards.*give reward="),
    "reward of others": (grpo(reward=R[1:]), r"reward has shape \(7,\).*8 sequences"),
    "reward in a column": (grpo(reward=R[:, None]), "reward has shape"),
    "reward by token": (grpo(reward=OLD), "reward has shape"),
    "one reward": (grpo(reward=R[0]), "reward has shape"),
    "reward NaN": (grpo(reward=R.clone().fill_(torch.nan)), "reward is nan at sequence 0.*finite"),
    "old logits for old_logp": (grpo(old_logp=C.logits), "old_logp has shape"),
    "old_logp of others": (grpo(old_logp=OLD[:, 1:]), "old_logp has shape"),
    "rollout_logp of others": (call(m.opd(), teacher_logits=TEACHER, rollout_logp=OLD[1:]), "rollout_logp has shape"),
    "group of others": (grpo(group=torch.zeros(3)), "group has shape.*8 sequences"),
    "no correctness": (
        call(Method(S, Term(logp(teacher), sampled("k2"), where=~correct)), teacher_logits=TEACHER),
        "reads correctness.*give correct=",
    ),
    "no label": (call(m.dpo(), ref_logits=TEACHER), "dpo reads preference labels.*give label="),
    "label NaN": (call(m.dpo(), ref_logits=TEACHER, label=R * torch.nan), "label is nan"),
    "no source": (call(m.minillm(), teacher_logits=TEACHER), "several sources.*give source="),
    "too few sources": (call(m.minillm(), teacher_logits=TEACHER, source=NAMES[1:]), "source"),
    "too many sources": (call(m.minillm(), teacher_logits=TEACHER, source=[*NAMES, "lm"]), "source"),
    "unknown source": (call(m.minillm(), teacher_logits=TEACHER, source=["rol", *NAMES[1:]]), "did you mean 'roll'"),
    "no teacher": (call(m.opd()), "opd reads sampled from teacher; give teacher_logp"),
    "no teacher rows": (call(m.gkd()), r"gkd reads dense from teacher; give teacher_logits"),
    "teacher serves too little": (
        call(m.gkd(), teacher_logp=OLD),
        r"needs the full .* \(dense\) of teacher, which serves only",
    ),
    "misspelt": (call(m.opd(), teacher_logit=TEACHER), "unknown argument 'teacher_logit'.*'teacher_logits'"),
    "misspelt role": (call(m.opd(), techer_logits=TEACHER), "teacher"),
    "teacher unshifted": (call(m.gkd(), teacher_logits=TEACHER[:, 1:]), "teacher_logits has shape"),
    "teacher without a head": (call(m.gkd(), teacher_hidden=TEACHER), "teacher_hidden needs teacher_head"),
    "teacher of another vocabulary": (
        call(m.opd_full(), teacher_logits=torch.cat([TEACHER, TEACHER], -1)),
        "vocabular",
    ),
    "teacher of a vocabulary of one": (call(m.opd_full(), teacher_logits=TEACHER[..., :1]), "vocabular"),
    "teacher logits for teacher_logp": (call(m.opd(), teacher_logp=TEACHER), "teacher_logp has shape"),
    "teacher log-probs for logits": (call(m.opd(), teacher_logits=OLD), "teacher_logits has shape"),
    "top k of too few": (
        call(m.opd_full(top_k=3), teacher_topk=TEACHER.log_softmax(-1).topk(2)[::-1]),
        "top_k=3, but teacher gives only 2 entries; give 3",
    ),
    "student_logp is not enough": (
        lambda: lb.objective(m.opd_full())(student_logp=OLD, tokens=C.tokens, teacher_logits=TEACHER),
        "student_logp holds only the log-probs of the sampled tokens.*give student_logits",
    ),
    "no column": (
        call(Method(data(), Term(lb.axes.column("told"), reinforce)), columns={"tolt": R}),
        r"column\('told'\).*only \['tolt'\]",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_objective_refuses_what_it_cannot_compute(name: str) -> None:
    """``lb.objective`` names what is missing or misshapen, and the remedy."""
    attempt, says = CALLS[name]
    with pytest.raises(lb.LimbeckError, match=f"(?s){says}"):
        attempt()


def test_a_method_with_one_source_needs_no_source_argument() -> None:
    """A method with one named source needs no ``source=``: MiniLLM without its language-modelling term."""
    method = m.minillm(lm_coef=0)
    named = lb.objective(method)(C.logits, C.tokens, teacher_logits=TEACHER, source=["roll"] * B).loss
    assert named != 0
    torch.testing.assert_close(lb.objective(method)(C.logits, C.tokens, teacher_logits=TEACHER).loss, named)


# ---------------------------------------------------------------- records


def test_a_broken_record_is_refused_with_the_invariant_it_breaks() -> None:
    """The invariants of a Rollout."""
    record: Rollout = C.prepared(m.grpo(ref_coef=0))[1].record
    for field, value, says in (
        ("start_B1", record.start_B1 + 1, "start_B1 must rise"),
        ("pos_N", record.pos_N.flip(0), "strictly increasing"),
        ("pos_N", record.pos_N - 1, "first token"),
        ("turn_N", record.turn_N.roll(1), "its own sequence"),
        ("group_B", record.group_B + 1, "groups from 0"),
    ):
        broken = type(record)(**{**vars(record), field: value})
        with pytest.raises(ValueError, match=says):
            broken.check()
