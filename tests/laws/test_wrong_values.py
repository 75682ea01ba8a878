"""What is no number, no name or no part of a method is refused where it is written, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import limbeck as lb
from limbeck.axes import (
    Expr,
    anneal,
    behavior,
    blend,
    budget,
    cispo,
    clip,
    column,
    contrast,
    correct,
    data,
    divergence,
    divergence_advantage,
    divergence_loss,
    either,
    ema,
    entropy,
    fixed,
    group_advantage,
    importance,
    label,
    linear,
    log_ratio,
    logp,
    old,
    once,
    other,
    patch,
    policy,
    ref,
    reinforce,
    resample,
    sample,
    sampled,
    score,
    select,
    standardise,
    student,
    synced,
    teacher,
    to_go,
    token_mean,
    where,
)
from limbeck.axes.reduction import as_reduction
from limbeck.axes.scalar import Constant, scalar
from limbeck.math.divergence import alpha, as_divergence, jsd, renyi, rkl, tv
from limbeck.space.method import Method
from limbeck.space.pipeline import Stage
from limbeck.space.term import Sum, Term, routed

S, m, nan = sample(n=2), lb.methods, math.nan
A = group_advantage()
T = Term(A, clip(0.2))


def wrong(x: Any) -> Any:
    """A value of the wrong type, hidden from the type checker."""
    return x


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # numbers
    "scalar nan": (lambda: scalar(nan), "a coefficient is nan; give a finite number"),
    "scalar text nan": (lambda: scalar("nan"), "a coefficient is nan"),
    "scalar inf": (lambda: scalar("1e400"), "a coefficient is inf"),
    "scalar huge": (lambda: scalar(10**400), "a coefficient is a int"),
    "scalar none": (lambda: scalar(wrong(None)), "a coefficient is None"),
    "scalar truth": (lambda: scalar(True), "a coefficient is True"),
    "scalar tensor": (lambda: scalar(wrong(torch.ones(3, 40))), "a coefficient is a Tensor"),
    "constant": (lambda: Constant(-math.inf), "a coefficient is -inf"),
    "term times expr": (lambda: T * wrong(A), "a coefficient is "),
    "term times nan": (lambda: nan * T, "a coefficient is nan"),
    "anneal start": (lambda: anneal(nan, 0, 0), "anneal's start is nan"),
    "anneal floor": (lambda: anneal(1, -math.inf, 0), "anneal's floor is -inf"),
    "anneal decay": (lambda: anneal(1, 0, wrong("x")), "anneal's decay is 'x'"),
    "linear start": (lambda: linear(nan, 1, 2), "linear's start is nan"),
    "linear end": (lambda: linear(1, math.inf, 2), "linear's end is inf"),
    "linear steps": (lambda: linear(1, 2, wrong(2.5)), "linear's steps is 2.5; give a whole number of at least 1"),
    "linear no steps": (lambda: linear(1, 2, 0), "linear's steps is 0"),
    "linear text": (lambda: scalar("linear(1,2,1e400)"), "linear's steps is inf"),
    "linear text half": (lambda: scalar("linear(1,2,2.5)"), "linear's steps is 2.5"),
    "linear text of four": (lambda: scalar("linear(1,2,3,4)"), "is not a coefficient"),
    "clip nan": (lambda: clip(nan), "lo of clip .*is nan"),
    "clip hi nan": (lambda: clip(0.2, nan), "hi of clip .*is nan"),
    "clip text": (lambda: clip(wrong("0.2")), "lo of clip .*is '0.2'"),
    "cispo nan": (lambda: cispo(hi=nan), "hi of cispo .*is nan"),
    "dual": (lambda: clip(0.2, dual=1.0), "dual of clip is 1.0; give a finite number above 1"),
    "dual nan": (lambda: clip(0.2, dual=nan), "dual of clip is nan"),
    "cap": (lambda: clip(0.2, cap=0.5), "cap of clip is 0.5; give a finite number above 1"),
    "grpo clip": (lambda: m.grpo(clip_range=nan), "grpo: clip_range is nan"),
    "base of clip": (lambda: clip(0.2, base=wrong(behavior)), r"base of policy is .*give log-probs"),
    "jsd nan": (lambda: as_divergence("jsd(nan)"), "beta of jsd is nan"),
    "jsd text": (lambda: jsd(wrong("x")), "beta of jsd is 'x'"),
    "alpha nan": (lambda: as_divergence("alpha(nan)"), r"alpha of alpha\(...\) is nan"),
    "alpha inf": (lambda: alpha(math.inf), r"alpha of alpha\(...\) is inf"),
    "renyi inf": (lambda: as_divergence("renyi(inf)"), r"order of renyi\(...\) is inf"),
    "renyi nan": (lambda: renyi(nan), r"order of renyi\(...\) is nan"),
    "divergence of a number": (lambda: as_divergence(wrong(3)), "divergence is 3; give one such as rkl"),
    "divergence of a class": (lambda: divergence_loss(wrong(jsd)), "divergence is the class JSD"),
    "divergence of none": (lambda: divergence(wrong(None), teacher), "divergence is None"),
    "advantage of a number": (lambda: divergence_advantage(wrong(3), teacher), "divergence is 3"),
    "divergence_loss tau": (lambda: divergence_loss(rkl, tau=math.inf), "tau of divergence_loss is inf"),
    "divergence_loss top_k": (
        lambda: divergence_loss(rkl, top_k=wrong(2.5)),
        "top_k of divergence_loss is 2.5; give a whole number",
    ),
    "contrast tau": (lambda: contrast(tau=nan), r"tau of contrast .*is nan"),
    "contrast margin": (lambda: contrast(margin=nan), "margin of contrast is nan"),
    "contrast base": (lambda: contrast(base=wrong("ref")), "a reader is 'ref'; give one such as teacher"),
    "contrast renyi": (lambda: contrast(score=renyi(2.0)), "needs the row total"),
    "contrast tv": (lambda: contrast(score=tv), "its slope is constant"),
    "temperature nan": (lambda: teacher.at(nan), "temperature of teacher is nan"),
    "temperature inf": (lambda: teacher.at(math.inf), "temperature of teacher is inf"),
    "temperature text": (lambda: teacher.at(wrong("2")), "temperature of teacher is '2'"),
    "role": (lambda: other(wrong(3)), "name of a reader is 3"),
    "blend weight": (lambda: blend((student, nan), (teacher, 0.2)), "weight of student is nan"),
    "blend reader": (lambda: blend((wrong("student"), 1.0)), "a reader of blend is 'student'"),
    "blend bare": (lambda: blend(wrong(student)), "a part of blend is a Reader; give"),
    "discount text": (lambda: to_go(log_ratio(teacher), wrong("1")), r"to_go\(gamma='1'\)"),
    "to go of a reader": (lambda: to_go(wrong(teacher), 1.0), "what to_go sums is a Reader; give"),
    "sample n": (lambda: sample(n=wrong(1.5)), "n of sample is 1.5; give a whole number"),
    "sample tau": (lambda: sample(tau=math.inf), "tau of sample is inf"),
    "sample tokens": (lambda: sample(max_tokens=0), "max_tokens of sample is 0"),
    "sample writer": (lambda: sample(wrong("teacher")), "reader of sample is 'teacher'"),
    "resample source": (lambda: resample(wrong(teacher), correct), "source of resample is"),
    "resample until": (lambda: resample(S, wrong(True)), "until of resample is True"),
    "coin": (lambda: either(nan, S, data()), "a coefficient is nan"),
    "either source": (lambda: either(0.5, S, wrong("data")), "a source of either is 'data'"),
    "fixed": (lambda: fixed(wrong(math.inf)), r"fixed\(...\) divides by is inf"),
    "budget": (lambda: budget(wrong("3")), r"budget\(...\) divides by is '3'"),
    "reduction": (lambda: as_reduction(wrong(3)), "reduction is 3; give one of token_mean"),
    "minillm scale": (lambda: m.minillm(reward_scale=0), "minillm: reward_scale is 0; give a finite number above 0"),
    "minillm scale nan": (lambda: m.minillm(reward_scale=nan), "minillm: reward_scale is nan"),
    "minillm clip": (lambda: m.minillm(reward_clip=-1), "minillm: reward_clip is -1"),
    "opd coef": (lambda: m.opd(coef=nan), "opd: coef is nan"),
    # expressions
    "nan in an expression": (lambda: A + nan, "a value in an expression is nan"),
    "text in an expression": (lambda: A * wrong("x"), "a value in an expression is 'x'"),
    "reader in an expression": (lambda: A + wrong(teacher), r"teacher is a reader.*logp\(teacher\)"),
    "none in where": (lambda: where(correct, A, wrong(None)), "a value in an expression is None"),
    "no bound": (lambda: A.clip(), r"clip\(\) has no bound"),
    "crossed bounds": (lambda: A.clip(1, -1), r"clip\(1, -1\): lo is above hi"),
    "bound nan": (lambda: A.clip(hi=nan), "a bound of clip is nan"),
    "importance cap": (lambda: importance(student, old, nan), "the cap of an importance ratio .* is nan"),
    "unknown level": (lambda: A.over("sentence", "mean"), "'sentence' is no unit of text.*did you mean 'sequence'"),
    "level by number": (lambda: A.over(wrong(2), "mean"), "2 is no unit of text.*use one of token, turn"),
    "column of what": (lambda: column("x", "tokens"), "'tokens' is no unit of text.*did you mean 'token'"),
    "standardise over what": (lambda: standardise(score, "groups"), "did you mean 'group'"),
    "mask of over": (lambda: A.over("batch", "mean", wrong(True)), "mask of over is True"),
    "reader of logp": (lambda: logp(wrong("teacher")), "a reader is 'teacher'"),
    "target of a divergence": (lambda: divergence(rkl, wrong("ref")), "a reader is 'ref'"),
    "and": (lambda: correct and (score > 0), "cannot be used as one Python bool; combine masks with &"),
    "chained comparison": (lambda: 0 < score < 1, r"write \(x > 0\) & \(x < 1\)"),
    # terms, sums and methods
    "signal": (lambda: Term(wrong(1.0), reinforce), "signal of a term is 1.0; give an Expr"),
    "surrogate": (lambda: Term(A, wrong(clip)), r"surrogate of a term is the function clip.*clip\(0.2\)"),
    "where of a term": (lambda: Term(A, reinforce, where=wrong(True)), "where of a term is True; give a mask"),
    "weight": (lambda: Term(A, reinforce, weight=wrong(2.0)), r"weight of a term is 2.0.*2.0 \* Term"),
    "per": (lambda: Method(S, Term(A, reinforce, per=wrong(3))), "per=3: unknown"),
    "reduction of a term": (
        lambda: Term(A, reinforce, reduction=wrong("token_mean")),
        r"reduction of a term is 'token_mean'.*as_reduction\('token_mean'\)",
    ),
    "term plus number": (lambda: T + wrong(3), "a term of a sum is 3"),
    "sum of a list": (lambda: Sum(wrong([(1.0, T)])), r"parts of a sum is .*add terms with \+"),
    "sum of numbers": (lambda: Sum(((wrong(1.0), T),)), r"a coefficient of a sum is 1.0.*scalar\(0.5\)"),
    "sum of terms": (lambda: Sum((wrong(T),)), "a part of a sum is"),
    "source": (lambda: Method(wrong("data"), T), "source of a method is 'data'"),
    "no source": (lambda: Method({}, T), "no source"),
    "sources of the wrong type": (lambda: Method({"roll": wrong(teacher)}, T), "source 'roll' is"),
    "sources of no pairs": (lambda: Method(wrong((S,)), T), "are no pairs"),
    "terms": (lambda: Method(S, wrong([T])), "terms of a method is .*give Term"),
    "reduction of a method": (lambda: Method(S, T, wrong("token_mean")), "reduction of a method is 'token_mean'"),
    "updates as a text": (lambda: Method(S, T, token_mean, wrong("4")), "updates is '4'"),
    "updates": (lambda: Method(S, T, updates=wrong(1.5)), "updates is 1.5"),
    "live weight that counts": (
        lambda: Method(S, Term(logp(teacher), sampled("k2"), weight=entropy(student), per="weight")),
        "divides by the sum of.*use old instead",
    ),
    # names
    "get nothing": (lambda: lb.get(wrong(None)), "unknown method None"),
    "get a list": (lambda: lb.get(wrong(["opd"])), r"unknown method \['opd'\]"),
    "explain a number": (lambda: lb.explain(wrong(3)), "the method is 3; give a name"),
    "cite nothing": (lambda: lb.cite(wrong(None)), "the method is None"),
    "diff with a number": (lambda: lb.diff("opd", wrong(3)), "the method is 3"),
    "objective of a number": (lambda: lb.objective(wrong(3)), "the method is 3"),
    "objective of an unknown name": (lambda: lb.objective("kdlr"), "did you mean 'kdrl'"),
    "estimator": (lambda: sampled(wrong(3)), "unknown estimator"),
    "policy kind": (lambda: policy(wrong(3)), r"policy\(3\): unknown kind"),
    "pipeline": (lambda: lb.Pipeline(wrong(3)), "stages of a pipeline is 3; give a list"),
    "patch of numbers": (lambda: patch(wrong(1), wrong(2), wrong(3)), "the source inside of a source is 1"),
    "select of a number": (lambda: select(wrong(1), correct), "the source of select is 1"),
    "once of a number": (lambda: once(wrong(3)), "the source inside of a source is 3"),
    "ema of a word": (lambda: ema(wrong("x")), "the rate of ema is 'x'"),
    "synced of NaN": (lambda: synced(wrong(nan)), "every of synced is nan"),
    "pipeline of names": (lambda: lb.Pipeline(wrong(["opd"])), r"a stage of a pipeline is 'opd'; give stage\('sft'\)"),
    "pipeline repeat": (lambda: lb.Pipeline((lb.stage("opd"),), wrong(1.5)), "repeat of a pipeline is 1.5"),
    "pipeline no repeat": (lambda: lb.Pipeline((lb.stage("opd"),), 0), "repeat of a pipeline is 0"),
    "stage": (lambda: Stage(wrong(3)), "method of a stage is 3"),
    "stage settings": (lambda: Stage("opd", wrong(3)), "settings of a stage is 3"),
    "served by a number": (lambda: m.opd().validate(teacher=wrong(3)), "what teacher serves is 3; give one of text"),
    "summed by a number": (
        lambda: lb.objective("sft")(torch.zeros(1, 1, 3), torch.zeros(1, 1).long(), all_sum=wrong(3)),
        "all_sum is 3; give a function",
    ),
    # routes
    "route by weights": (
        lambda: routed(correct, Term(A, reinforce, weight=entropy(old), per="weight"), T),
        "divides by its weights",
    ),
    "second route by weights": (
        lambda: routed(correct, T, Term(A, reinforce, weight=entropy(old), per="weight")),
        "divides by its weights",
    ),
    "route through a sequence": (
        lambda: routed(entropy(old) > 1, T, Term(A, clip(0.2, pool="sequence"))),
        r"one value per token.*looks at a whole sequence.*\.over\('sequence', 'any'\)",
    ),
    "route through a pair": (
        lambda: routed(correct, Term(label, contrast(base=ref)), Term(label, contrast())),
        r"one value per sequence.*looks at a whole group",
    ),
    "route of a sum": (lambda: routed(correct, wrong(T + T), T), "a route is "),
    "route without a mask": (lambda: routed(wrong(True), T, T), "mask of routed is True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_values_are_refused_in_one_sentence(name: str) -> None:
    """A user's mistake gives a sentence, never a traceback from inside."""
    build, says = REFUSED[name]
    with pytest.raises(lb.LimbeckError, match=f"(?s){says}") as told:
        build()
    assert "\n" not in str(told.value)


def test_an_open_clip_is_allowed() -> None:
    """An infinite bound is none; the other side still clips."""
    assert clip(0.2, math.inf).hi == math.inf
    assert cispo().lo == math.inf
    assert A.clip(lo=-math.inf, hi=1) != A.clip(hi=1)


def test_names_stand_for_parts() -> None:
    """A divergence may be named wherever one is asked for."""
    assert divergence_loss("jsd(0.1)") == divergence_loss(jsd(0.1))
    assert divergence("rkl", teacher) == divergence(rkl, teacher)
    assert divergence_advantage("rkl", teacher) == divergence_advantage(rkl, teacher)
    assert contrast(score="rkl") == contrast()
    assert A.over("Sequence", "mean") == A.over("sequence", "mean")
    assert isinstance(scalar("linear(0, 1, 10)"), type(linear(0, 1, 10)))
    assert scalar("linear(0, 1, 10)") == linear(0, 1, 10)


def test_a_name_or_a_recipe_stands_for_its_defaults() -> None:
    """``objective``, ``explain``, ``cite`` and ``diff`` take either."""
    assert lb.objective("kdrl").method == lb.objective(lb.methods.kdrl).method == lb.methods.kdrl()
    assert lb.explain(lb.methods.opd) == lb.explain("opd")
    assert lb.cite(lb.methods.opd) == lb.cite("opd")
    assert lb.diff(lb.methods.opd, "opd") == []


WEIGHTS: dict[str, Expr] = {"importance": importance(old, teacher, 2.0), "entropy": entropy(old)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_total_of_old_weights_stays_legal_on_policy(name: str) -> None:
    """``per="weight"`` needs its total before the student is met, so ``old`` is a pass of its own there."""
    method = Method(S, Term(teacher, divergence_loss(rkl), weight=WEIGHTS[name], per="weight"))
    assert method.on_policy() == method
    assert "old: a pass before the first update" in lb.explain(method)
    light = Method(S, Term(teacher, divergence_loss(rkl), weight=WEIGHTS[name]))
    assert not light.on_policy().reads("old")
