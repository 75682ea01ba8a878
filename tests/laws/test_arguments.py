"""What ``lb.objective`` is given: forms that mean the same, and values that are refused where they are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import BATCH, LENGTH, VOCABULARY, make
from limbeck.axes import (
    clip,
    correct,
    data,
    divergence_loss,
    everywhere,
    group_advantage,
    log_ratio,
    logp,
    on,
    other,
    reinforce,
    sample,
    sampled,
    score,
    standardise,
    teacher,
    to_go,
    truncated,
    where,
)
from limbeck.math.divergence import fkl
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import Head

C, m, nan, inf = make(), lb.methods, math.nan, math.inf
TEACHER, REF, OLD, WROTE = (C.given[k] for k in ("teacher_logits", "ref_logits", "old_logp", "rollout_logp"))
R, LABEL, GROUP = C.given["reward"], C.given["label"], C.given["group"]
SAID = TEACHER.log_softmax(-1).gather(-1, C.tokens[..., None])[..., 0]
TOP = tuple(TEACHER.log_softmax(-1).topk(3)[::-1])
S, A = sample(n=2), group_advantage()
K2 = logp(teacher), sampled("k2")


def loss(method: Any, **given: Any) -> Tensor:
    """``lb.objective`` on the case's student, tokens and mask."""
    return lb.objective(method)(**{"student_logits": C.logits, "tokens": C.tokens, "mask": C.mask, **given}).loss


def put(x: Tensor, value: float, *place: int) -> Tensor:
    """A copy with one number replaced."""
    out = x.clone()
    out[place] = value
    return out


# ---------------------------------------------------------------- forms


def test_arrays_and_lists_are_as_good_as_tensors() -> None:
    """Everything but the gradient."""
    method = m.kdrl(coef=0.5)
    given: dict[str, Any] = {"reward": R, "teacher_logits": TEACHER, "old_logp": OLD, "rollout_logp": WROTE}
    given |= {"group": GROUP, "correct": C.given["correct"], "tokens": C.tokens, "mask": C.mask}
    want = loss(method, **given)
    arrays = {k: v.numpy() for k, v in given.items()} | {"student_logits": C.logits.numpy()}
    torch.testing.assert_close(loss(method, **arrays), want)
    lists = {k: v.tolist() for k, v in given.items()}
    torch.testing.assert_close(loss(method, **lists).double(), want, rtol=1e-5, atol=1e-6)
    columns = {"told": C.given["told"].tolist(), "heft": C.given["heft"].numpy()}
    method = Method(data(), Term(lb.axes.column("told"), reinforce, weight=lb.axes.column("heft", "token")))
    want = loss(method, columns={"told": C.given["told"], "heft": C.given["heft"]})
    torch.testing.assert_close(loss(method, columns=columns), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_a_head(bias: bool) -> None:
    """Weight and bias are taken, the student's with their gradient, a reader's without."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, VOCABULARY, bias=bias).double()
    hidden = torch.randn(BATCH, LENGTH, 5, dtype=torch.float64)
    plain = {"student_logits": None, "student_hidden": hidden, "teacher_hidden": hidden.flip(0)}
    head = Head(layer.weight, layer.bias)
    want = loss("opd_full", **plain, student_head=head, teacher_head=head)
    got = loss("opd_full", **plain, student_head=layer, teacher_head=layer)
    assert want > 0
    torch.testing.assert_close(got, want)
    got.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_one_source_name_holds_for_all_sequences() -> None:
    """``source="lm"`` for a batch of one source."""
    given = {"teacher_logits": TEACHER}
    torch.testing.assert_close(loss("minillm", source="lm", **given), loss("minillm", source=["lm"] * BATCH, **given))


def test_roles_that_the_method_does_not_read_are_ignored() -> None:
    """A trainer may hand its reference to every method; a misspelt role is refused."""
    want = loss("opd", teacher_logits=TEACHER)
    for extra in (
        {"ref_logits": REF},
        {"ref_logp": OLD[:, 1:]},
        {"init_logits": None},
        {"ref_head": REF, "ref_topk": 3},
    ):
        torch.testing.assert_close(loss("opd", teacher_logits=TEACHER, **extra), want)
    own = Method(S, Term(log_ratio(other("critic")), reinforce))
    assert loss(own, critic_logits=TEACHER) != 0


# ---------------------------------------------------------------- refusals

HIDDEN = {"student_logits": None, "student_hidden": C.logits}
WEIGHT = torch.zeros(9, VOCABULARY, dtype=torch.float64)

CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown role": (
        lambda: loss("grpo", reward=R, ref_logits=REF, techer_logits=TEACHER),
        r"unknown argument 'techer_logits'.*reads \['ref'\]",
    ),
    "somebody else's role": (lambda: loss("opd", teacher_logits=TEACHER, critic_logp=OLD), "unknown argument 'critic"),
    "two carriers": (
        lambda: loss("opd", teacher_logits=TEACHER, teacher_logp=SAID),
        "teacher_logits and teacher_logp were both given; give one",
    ),
    "no tensor": (lambda: loss("sft", student_logits="x"), "student_logits is 'x'; give a tensor"),
    "ragged": (lambda: loss("sft", tokens=[[1, 2], [3]]), "tokens is .*equally long"),
    "an object": (lambda: loss("grpo", ref_logits=REF, reward=object()), "reward is .*give a tensor"),
    "student of ids": (lambda: loss("sft", student_logits=C.tokens[..., None]), "student_logits has dtype torch.int64"),
    "teacher of ids": (lambda: loss("opd", teacher_logp=C.tokens), "teacher_logp has dtype torch.int64"),
    "old of ids": (lambda: loss("grpo", reward=R, ref_logits=REF, old_logp=C.tokens), "old_logp has dtype torch.int64"),
    "tokens of floats": (lambda: loss("sft", tokens=C.tokens + 0.7), "tokens has dtype torch.float32; give whole"),
    "tokens of truths": (lambda: loss("sft", tokens=C.mask), "tokens has dtype torch.bool; give whole"),
    "negative step": (lambda: loss("sft", step=-1), "step is -1; give a whole number of at least 0"),
    "half a step": (lambda: loss("sft", step=0.5), "step is 0.5"),
    "mask NaN": (lambda: loss("sft", mask=put(C.mask.double(), nan, 0, 0)), "mask holds NaN"),
    "group NaN": (lambda: loss("grpo", reward=R, ref_logits=REF, group=R * nan), "group holds numbers that are not"),
    "source by number": (lambda: loss("minillm", teacher_logits=TEACHER, source=[0] * BATCH), "source is .*one of"),
    "source of a tensor": (lambda: loss("minillm", teacher_logits=TEACHER, source=R), "source is a Tensor"),
    "columns in a list": (lambda: loss("sft", columns=[R]), "columns is .*by name"),
    "a module as head": (lambda: loss("sft", **HIDDEN, student_head=torch.nn.ReLU()), "student_head is a ReLU"),
    "a text as head": (lambda: loss("sft", **HIDDEN, student_head="x"), "student_head is 'x'"),
    "a head of ids": (lambda: loss("sft", **HIDDEN, student_head=WEIGHT.long()), "student_head has dtype torch.int64"),
    "a bias of others": (
        lambda: loss("sft", **HIDDEN, student_head=Head(WEIGHT, torch.zeros(3))),
        r"student_head has a bias of shape \(3,\)",
    ),
    # top-k lists
    "top-k alone": (lambda: topk(TOP[0]), "teacher_topk is a Tensor; give .ids, log-probs"),
    "top-k turned": (lambda: topk(TOP[::-1]), "teacher_topk: ids has dtype torch.float64"),
    "top-k of two lengths": (lambda: topk((TOP[0], TOP[1][..., :2])), r"ids are \(8, 4, 3\).*\(8, 4, 2\)"),
    "top-k without a list": (lambda: topk((TOP[0][..., 0], TOP[1][..., 0])), "teacher_topk has shape"),
    "top-k twice": (lambda: topk((TOP[0] * 0, TOP[1])), "teacher_topk has an id twice at sequence 0, token 0"),
    "top-k outside": (
        lambda: topk((put(TOP[0], VOCABULARY, 2, 1, 0), TOP[1])),
        "id outside the student's 7 at sequence 2, token 1",
    ),
    "top-k below": (lambda: topk((put(TOP[0], -1, 2, 1, 0), TOP[1])), "outside the student's 7 at sequence 2, token 1"),
    "top-k NaN": (
        lambda: topk((TOP[0], put(TOP[1], nan, 3, 0, 2))),
        "has log-probs .*sequence 3, token 0",
    ),
    "top-k inf": (lambda: topk((TOP[0], put(TOP[1], inf, 3, 0, 2))), "teacher_topk has log-probs"),
    "top-k of nothing": (lambda: topk((TOP[0], torch.full_like(TOP[1], -inf))), "all -inf at sequence 0, token 0"),
}


def topk(value: Any) -> Tensor:
    """Full-vocabulary distillation from top-k lists."""
    return loss(m.opd_full(divergence="fkl", top_k=3), teacher_topk=value)


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_refused_by_name(name: str) -> None:
    """One sentence, whatever was given."""
    attempt, says = CALLS[name]
    with pytest.raises(lb.LimbeckError, match=f"(?s){says}") as told:
        attempt()
    assert "\n" not in str(told.value)


def test_an_excluded_entry_of_a_list_has_no_mass() -> None:
    """-inf in the tail of a top-k list is what dense logits of -inf say, and unread lists may hold anything."""
    law = TEACHER.log_softmax(-1)
    ids = law.topk(3).indices
    law = law.scatter(-1, ids[..., 2:], -inf).log_softmax(-1)
    listed = topk((ids, law.gather(-1, ids)))
    top2 = loss(m.opd_full(divergence="fkl", top_k=2), teacher_topk=(ids[..., :2], law.gather(-1, ids[..., :2])))
    assert torch.isfinite(listed)
    assert listed >= top2 > 0
    junk = (torch.where(C.mask[..., None], TOP[0], -5), torch.where(C.mask[..., None], TOP[1], nan))
    torch.testing.assert_close(topk(junk), topk(TOP))


# ---------------------------------------------------------------- NaN where it is read, and where it is not

HELD = {"reward": R, "ref_logits": REF, "group": GROUP}
LOGPS: dict[str, tuple[Any, dict[str, Any], Tensor]] = {
    "teacher_logp": (m.opd(), {}, SAID),
    "ref_logp": (m.grpo(), {"reward": R}, SAID),
    "old_logp": (m.grpo(), HELD, OLD),
    "rollout_logp": (m.opd(), {"teacher_logp": SAID}, WROTE),
    "student_logp": (m.opd(), {"teacher_logp": SAID, "student_logits": None}, WROTE),
    "old_logp as the behavior's": (m.opd(), {"teacher_logp": SAID}, WROTE),
}


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", LOGPS)
def test_log_probs_are_finite_at_kept_tokens(name: str, value: float) -> None:
    """Named with the place; under the mask they may be anything."""
    method, given, logps = LOGPS[name]
    key = name.split()[0]
    with pytest.raises(lb.LimbeckError, match=f"{key} is {value} at sequence 2, token 1, which the method reads"):
        loss(method, **given, **{key: put(logps, value, 2, 1)})
    assert not C.mask[3, 2]
    want = loss(method, **given, **{key: logps})
    torch.testing.assert_close(loss(method, **given, **{key: put(logps, value, 3, 2)}), want)


def test_places_are_those_of_the_batch_that_was_given() -> None:
    """Also where groups are not contiguous."""
    mixed = {"group": torch.tensor([1, 0, 1, 0, 2, 2, 3, 3]), "ref_logits": REF}
    with pytest.raises(lb.LimbeckError, match="reward is nan at sequence 2"):
        loss("grpo", reward=put(R, nan, 2), **mixed)
    with pytest.raises(lb.LimbeckError, match="old_logp is nan at sequence 0, token 3"):
        loss("grpo", reward=R, old_logp=put(OLD, nan, 0, 3), **mixed)


def test_a_gate_of_the_method_drops_what_it_drops() -> None:
    """A trainer may leave the teacher out where the method's own ``where`` does not look."""
    wrong = ~C.given["correct"][:, None]
    holes = torch.where(wrong, SAID, nan)
    gated = Method(S, Term(*K2, where=~correct))
    torch.testing.assert_close(loss(gated, reward=R, teacher_logp=holes), loss(gated, reward=R, teacher_logp=SAID))
    inside = Method(S, Term(where(correct, 0.0, log_ratio(teacher)), reinforce))
    torch.testing.assert_close(
        loss(inside, correct=C.given["correct"], teacher_logp=holes),
        loss(inside, correct=C.given["correct"], teacher_logp=SAID),
    )
    for method in (Method(S, Term(*K2)), Method(S, Term(*K2, where=correct)), Method(S, Term(*K2, weight=correct))):
        with pytest.raises(lb.LimbeckError, match="teacher_logp is nan"):
            loss(method, reward=R, teacher_logp=holes)
    future = Method(S, Term(to_go(log_ratio(teacher), 1.0), reinforce))
    with pytest.raises(lb.LimbeckError, match="teacher_logp is nan"):
        loss(future, teacher_logp=holes)


NAMES = ["roll", "roll", "lm", "lm"] * 2
LM = torch.tensor([name == "lm" for name in NAMES])
LM_TERM = Term(everywhere, reinforce, on("lm"))
TWO = {"roll": sample(n=2), "lm": data()}


def test_what_a_source_does_not_read_may_be_anything() -> None:
    """Rewards of demonstrations, writers of data."""
    method = Method(TWO, Term(A, clip(0.2), on("roll")) + LM_TERM)
    given = {"source": NAMES, "group": GROUP}
    want = loss(method, reward=R, **given)
    torch.testing.assert_close(loss(method, reward=torch.where(LM, nan, R), **given), want)
    with pytest.raises(lb.LimbeckError, match="reward is nan at sequence 1"):
        loss(method, reward=put(R, nan, 1), **given)
    ungated = Method(TWO, Term(A, clip(0.2)) + LM_TERM)
    with pytest.raises(lb.LimbeckError, match="reward is nan at sequence 2"):
        loss(ungated, reward=torch.where(LM, nan, R), **given)
    poisoned = Method(TWO, Term(standardise(score, "batch"), clip(0.2), on("roll")) + LM_TERM)
    with pytest.raises(lb.LimbeckError, match="reward is nan at sequence 2"):
        loss(poisoned, reward=torch.where(LM, nan, R), **given)
    masked = Method(TWO, Term(standardise(score, "batch", where=on("roll")), clip(0.2), on("roll")) + LM_TERM)
    torch.testing.assert_close(loss(masked, reward=torch.where(LM, nan, R), **given), loss(masked, reward=R, **given))
    wrote = torch.where(LM[:, None], nan, WROTE)
    given = {"source": NAMES, "group": GROUP, "teacher_logits": TEACHER, "old_logp": OLD}
    expected = loss("minillm", rollout_logp=WROTE, **given)
    torch.testing.assert_close(loss("minillm", rollout_logp=wrote, **given), expected)


def test_correctness_truncation_and_labels_are_finite_where_read() -> None:
    """NaN is no boolean; a reward of NaN is neither right nor wrong."""
    gate = Method(S, Term(*K2, where=~correct))
    right = C.given["correct"].double()
    with pytest.raises(lb.LimbeckError, match="correct is nan at sequence 5"):
        loss(gate, correct=put(right, nan, 5), teacher_logp=SAID)
    with pytest.raises(lb.LimbeckError, match="reward is nan at sequence 5"):
        loss(gate, reward=put(right, nan, 5), teacher_logp=SAID)
    with pytest.raises(lb.LimbeckError, match="truncated is nan at sequence 5"):
        loss(Method(S, Term(*K2, where=~truncated)), truncated=put(right, nan, 5), teacher_logp=SAID)
    with pytest.raises(lb.LimbeckError, match="label is inf at sequence 1"):
        loss("dpo", label=put(LABEL, inf, 1), ref_logits=REF)
    for name in ("correct", "truncated", "label"):
        assert torch.isfinite(loss("opd", teacher_logp=SAID, **{name: right * nan}))
    assert torch.isfinite(loss("opd", teacher_logp=SAID, reward=right * nan))


def test_a_student_that_overflowed_is_not_refused() -> None:
    """A loss scaler skips a step whose logits are not finite; only what somebody reported is looked at."""
    broken = put(C.logits, nan, 2, 1, 0)
    assert torch.isnan(loss("opd", student_logits=broken, teacher_logp=SAID))
    assert torch.isnan(
        loss(Method(S, Term(teacher, divergence_loss(fkl))), student_logits=broken, teacher_logits=TEACHER)
    )
