"""Tensors that no loss can be computed on: one sentence for each, whichever argument holds them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import BATCH, LENGTH, VOCABULARY, make
from limbeck.axes import clip, column, data, group_advantage, reinforce, running, sample, score
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import Head

C, nan, inf = make(), math.nan, math.inf
G = C.given
GIVEN: dict[str, Any] = {
    "student_logits": C.logits,
    "tokens": C.tokens,
    "mask": C.mask,
    **{k: G[k] for k in ("reward", "ref_logits", "old_logp", "rollout_logp", "group", "correct", "label", "turn")},
    "truncated": G["correct"],
}
HIDDEN = torch.randn(BATCH, LENGTH, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
HEAD = torch.randn(VOCABULARY, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def grpo(**given: Any) -> Tensor:
    return lb.objective("grpo")(**{**GIVEN, **given}).loss


def loss(method: Any, **given: Any) -> Tensor:
    return lb.objective(method)(**{"student_logits": C.logits, "tokens": C.tokens, "mask": C.mask, **given}).loss


def _quantised(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)


def _nested(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([x.float().flatten()[:2], x.float().flatten()[:3]])


STRANGE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "meta": (lambda x: x.to("meta"), "is on the meta device and holds no numbers"),
    "sparse": (lambda x: x.to_sparse(), "is of the layout torch.sparse_coo; give a dense tensor"),
    "quantised": (_quantised, r"is quantised \(torch.qint8\)"),
    "nested": (_nested, "is nested; give a dense tensor"),
    "complex": (lambda x: x.to(torch.complex64), "has dtype torch.complex64; give real numbers"),
    "objects": (lambda x: np.array([object()] * BATCH, dtype=object), "; give a tensor, an array"),
    "words": (lambda x: ["a"] * BATCH, "; give a tensor, an array"),
    "nothing": (lambda x: [None] * BATCH, "; give a tensor, an array"),
    "huge": (lambda x: [10**30] * BATCH, "; give a tensor, an array"),
    "ragged": (lambda x: [[1.0, 2.0], [3.0]], "; give a tensor, an array"),
    "a table": (lambda x: {"a": 1}, "; give a tensor, an array"),
    "empty": (lambda x: x[:0], "has shape"),
}


@pytest.mark.parametrize("argument", GIVEN)
@pytest.mark.parametrize("name", STRANGE)
def test_odd_tensors_are_refused_by_every_argument(name: str, argument: str) -> None:
    """The sentence names the argument; there is no traceback."""
    if (name, argument) == ("empty", "student_logits"):
        argument = "tokens"  # it decides how many there are
        with pytest.raises(lb.LimbeckError, match="tokens has shape"):
            grpo(student_logits=C.logits[:0])
        return
    make_strange, says = STRANGE[name]
    with pytest.raises(lb.LimbeckError, match=f"(?s)^{argument} .*{says}") as told:
        grpo(**{argument: make_strange(GIVEN[argument])})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["meta", "sparse", "complex", "quantised"])
def test_odd_tensors_are_refused_in_heads_columns_and_rewards_of_turns(name: str) -> None:
    """Heads may come inside of a ``Head`` or a layer."""
    make_strange, says = STRANGE[name]
    for head in (make_strange(HEAD), Head(make_strange(HEAD)), Head(HEAD, make_strange(HEAD[:, 0]))):
        with pytest.raises(lb.LimbeckError, match=f"teacher_head(: bias)? {says}"):
            loss("opd_full", teacher_hidden=HIDDEN, teacher_head=head)
    with pytest.raises(lb.LimbeckError, match=f"teacher_hidden {says}"):
        loss("opd_full", teacher_hidden=make_strange(HIDDEN), teacher_head=HEAD)
    with pytest.raises(lb.LimbeckError, match=rf"columns\['told'\] {says}"):
        loss(Method(data(), Term(column("told"), reinforce)), columns={"told": make_strange(G["reward"])})
    with pytest.raises(lb.LimbeckError, match=f"turn_reward {says}"):
        loss("grpo", ref_logits=G["ref_logits"], turn_reward=make_strange(G["reward"][:, None]))


def test_a_layer_without_weights_is_refused() -> None:
    """As a loader leaves it whose weights lie elsewhere."""
    layer = torch.nn.Linear(5, VOCABULARY, device="meta")
    with pytest.raises(lb.LimbeckError, match="student_head is on the meta device"):
        lb.objective("sft")(student_hidden=HIDDEN, student_head=layer, tokens=C.tokens)


@pytest.mark.parametrize("argument", ["reward", "correct", "label", "truncated", "mask"])
def test_booleans_and_integers_are_numbers(argument: str) -> None:
    """1 and True are the same reward."""
    x = torch.tensor([True, False] * (BATCH // 2))
    x = C.mask if argument == "mask" else x
    want = grpo(**{argument: x.double()})
    for form in (x, x.long(), x.to(torch.uint8), x.half(), x.to(torch.float8_e4m3fn)):
        torch.testing.assert_close(grpo(**{argument: form}), want, check_dtype=False, rtol=1e-6, atol=1e-6)


def test_columns_of_booleans_are_numbers() -> None:
    """PyTorch cannot negate booleans, so they are converted first."""
    method = Method(data(), Term(column("told"), reinforce))
    told = G["correct"]
    torch.testing.assert_close(loss(method, columns={"told": told}), loss(method, columns={"told": told.double()}))


def test_logits_in_eight_bits_are_logits() -> None:
    """Both sides; the gradient comes back in eight bits as well."""
    leaf = C.logits.to(torch.float8_e4m3fn).requires_grad_()
    theirs = G["teacher_logits"].to(torch.float8_e4m3fn)
    value = loss("opd_full", student_logits=leaf, teacher_logits=theirs)
    want = loss("opd_full", student_logits=leaf.detach().float(), teacher_logits=theirs.float())
    torch.testing.assert_close(value, want)
    value.backward()
    assert leaf.grad is not None


EMPTY: dict[str, tuple[Callable[[], Any], str]] = {
    "a vocabulary": (lambda: loss("sft", student_logits=C.logits[..., :0]), "student_logits has shape .*is empty"),
    "a width": (
        lambda: lb.objective("sft")(student_hidden=HIDDEN[..., :0], student_head=HEAD[:, :0], tokens=C.tokens),
        "student_hidden has shape .*is empty",
    ),
    "a head": (
        lambda: lb.objective("sft")(student_hidden=HIDDEN, student_head=HEAD[:0], tokens=C.tokens),
        r"student_head has shape \(0, 5\)",
    ),
    "a list": (
        lambda: loss(
            lb.methods.opd_full(top_k=2),
            teacher_topk=(C.tokens[..., None][..., :0], C.logits[..., :0]),
        ),
        "teacher_topk has lists of no entry",
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_last_dimension_is_refused(name: str) -> None:
    """Of the last axis; a batch of nothing has a loss of 0."""
    attempt, says = EMPTY[name]
    with pytest.raises(lb.LimbeckError, match=says):
        attempt()
    assert lb.objective("sft")(C.logits[:0], C.tokens[:0]).loss == 0
    assert lb.objective("sft")(C.logits[:, :0], C.tokens[:, :0]).loss == 0


# ---------------------------------------------------------------- sums over processes

SUMS: dict[str, tuple[Any, str]] = {
    "nothing": (lambda x: None, "all_sum returned None; return the sum over processes, a tensor"),
    "a number": (lambda x: float(x.sum()), r"all_sum returned 8\.0; return the sum"),
    "an array": (lambda x: x.numpy(), "all_sum returned .*return the sum"),
    "another shape": (lambda x: x.sum(), r"all_sum returned a tensor of shape \(\) and torch.float64"),
    "both halves": (lambda x: torch.cat([x, x]), r"all_sum returned a tensor of shape \(2,\)"),
    "another dtype": (lambda x: x.long(), r"and torch.int64 on cpu for one of shape \(1,\) and torch.float64"),
    "no numbers": (lambda x: x.to("meta"), "on meta"),
    "no function": (3, "all_sum is 3; give a function"),
}


@pytest.mark.parametrize("name", SUMS)
def test_an_all_sum_that_returns_no_sum_is_refused(name: str) -> None:
    """``torch.distributed.all_reduce`` returns nothing, and that is the usual slip."""
    all_sum, says = SUMS[name]
    with pytest.raises(lb.LimbeckError, match=says) as told:
        grpo(all_sum=all_sum)
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------- laws that are read


def put(x: Tensor, value: float, *place: int) -> Tensor:
    out = x.clone()
    out[place] = value
    return out


FULL: dict[str, Any] = {
    "full rows": lb.methods.opd_full(),
    "sampled log-probs": lb.methods.opd(),
    "its top-k": lb.methods.opd_full(top_k=2),
    "the student's top-k": lb.methods.vopd(top_k=2),
}


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", FULL)
def test_a_row_that_is_no_distribution_is_refused_where_it_is_read(name: str, value: float) -> None:
    """A NaN anywhere in it, or nothing but -inf; under the mask it may be anything."""
    method, rows = FULL[name], G["teacher_logits"]
    say = {"teacher_logits is|teacher_logits has logits that are NaN, .inf, or all -inf at sequence 2, token 1, which"}
    with pytest.raises(lb.LimbeckError, match=next(iter(say))):
        loss(method, teacher_logits=put(rows, value, 2, 1))
    if value != -inf:
        with pytest.raises(lb.LimbeckError, match="teacher_logits has logits that are NaN"):
            loss(method, teacher_logits=put(rows, value, 2, 1, 3))
    assert not C.mask[3, 2]
    torch.testing.assert_close(
        loss(method, teacher_logits=put(rows, value, 3, 2)), loss(method, teacher_logits=rows), rtol=0, atol=0
    )


@pytest.mark.parametrize("value", [nan, inf, 1e308])
def test_hidden_states_that_give_no_logits_are_refused_where_they_are_read(value: float) -> None:
    """Also those that overflow only in the product with the head; sizes that a head shrinks are fine."""
    given: dict[str, Any] = {"teacher_head": HEAD}
    with pytest.raises(lb.LimbeckError, match=r"teacher_hidden gives logits .* at sequence 2, token 1, which"):
        loss("opd_full", teacher_hidden=put(HIDDEN, value, 2, 1), **given)
    torch.testing.assert_close(
        loss("opd_full", teacher_hidden=put(HIDDEN, value, 3, 2), **given),
        loss("opd_full", teacher_hidden=HIDDEN, **given),
    )
    small = loss("opd_full", teacher_hidden=HIDDEN * 1e200, teacher_head=HEAD * 1e-200)
    torch.testing.assert_close(small, loss("opd_full", teacher_hidden=HIDDEN, **given))
    with pytest.raises(lb.LimbeckError, match="teacher_hidden gives logits that are NaN"):
        loss("opd_full", teacher_hidden=HIDDEN, teacher_head=put(HEAD, nan, 0, 0))


def test_a_token_that_a_reader_excludes_has_no_log_prob() -> None:
    """Refused where its log-prob is read; in a whole law an excluded entry is one."""
    b, t = 2, 1
    holes = put(G["teacher_logits"], -inf, b, t, int(C.tokens[b, t]))
    with pytest.raises(lb.LimbeckError, match="teacher_logits is -inf for the token at sequence 2, token 1"):
        loss("opd", teacher_logits=holes)
    assert torch.isfinite(loss(lb.methods.opd_full(divergence="fkl"), teacher_logits=holes))


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("width", [3, VOCABULARY + 2])
def test_another_vocabulary_is_refused_whatever_is_read_of_it(name: str, width: int) -> None:
    """A top-k of other ids, or a log-prob normalised over other entries, has nothing to do with the student's."""
    rows = torch.cat([G["teacher_logits"]] * 2, -1)[..., :width]
    with pytest.raises(lb.LimbeckError, match=f"teacher_logits has a vocabulary of {width}, but the student's has 7"):
        loss(FULL[name], teacher_logits=rows)


def test_rows_of_a_reader_need_their_tokens() -> None:
    """With ``student_logp`` alone nobody needs ids; a reader's logits do, and they must reach them."""
    said = C.logits.log_softmax(-1).gather(-1, C.tokens[..., None])[..., 0]
    given = {"student_logp": said, "mask": C.mask}
    with pytest.raises(lb.LimbeckError, match=r"tokens is missing: .* that the rows of teacher_logits score"):
        lb.objective("opd")(**given, teacher_logits=G["teacher_logits"])
    with pytest.raises(lb.LimbeckError, match="tokens holds ids outside the teacher's 3"):
        lb.objective("opd")(**given, tokens=C.tokens, teacher_logits=G["teacher_logits"][..., :3])
    assert torch.isfinite(lb.objective("opd")(**given, tokens=C.tokens, teacher_logits=G["teacher_logits"]).loss)


# ---------------------------------------------------------------- preferences

PREFERENCES = {
    "both chosen": ([1, 1], "label is the same for its whole group at sequence 2"),
    "both rejected": ([0, 0], "label is the same for its whole group at sequence 2"),
    "nobody preferred": ([0.5, 0.5], "label is the same for its whole group at sequence 2"),
    "signs": ([1, -1], "label does not sum to 1 over its group at sequence 2"),
    "too much": ([2, 0], "label does not sum to 1 over its group at sequence 2"),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_labels_that_are_no_preference_are_refused_where_they_are_read(name: str) -> None:
    """Named with the sequence; a pair that the mask hides may be anything."""
    pair, says = PREFERENCES[name]
    label = torch.tensor([1.0, 0.0, *pair, 1.0, 0.0, 0.0, 1.0])
    with pytest.raises(lb.LimbeckError, match=f"{says}.*give 1 for the chosen and 0 for the rejected"):
        loss("dpo", ref_logits=G["ref_logits"], label=label)
    hidden = C.mask & ~(torch.arange(BATCH) // 2 == 1)[:, None]
    assert torch.isfinite(loss("dpo", ref_logits=G["ref_logits"], label=label, mask=hidden))


def test_an_odd_batch_holds_no_pairs() -> None:
    """Of three, the last is alone."""
    three = {"ref_logits": G["ref_logits"][:3], "label": [1, 0, 1]}
    with pytest.raises(lb.LimbeckError, match="label belongs to a group of one at sequence 2"):
        lb.objective("dpo")(C.logits[:3], C.tokens[:3], C.mask[:3], **three)


def test_soft_and_smoothed_pairs_are_preferences() -> None:
    """Robust DPO's labels lie outside [0, 1]."""
    for pair in ([0.9, 0.1], [1.1, -0.1], [True, False]):
        assert torch.isfinite(loss("dpo", ref_logits=G["ref_logits"], label=pair * (BATCH // 2)))


# ---------------------------------------------------------------- what a refused batch leaves


def test_a_refused_batch_leaves_no_trace_in_the_moving_averages() -> None:
    """A NaN reward was refused, and every later batch was NaN."""
    moving = Method(sample(n=2), Term(score - running(score.over("batch", "mean"), 0.5), clip(0.2)))
    objective, clean = lb.objective(moving), lb.objective(moving)
    with pytest.raises(lb.LimbeckError, match="reward is nan"):
        objective(C.logits, C.tokens, C.mask, reward=put(G["reward"], nan, 0))
    again = objective(C.logits, C.tokens, C.mask, reward=G["reward"]).loss
    assert again == clean(C.logits, C.tokens, C.mask, reward=G["reward"]).loss


def test_doubts_are_followed_through_sums_over_turns() -> None:
    """A NaN that nobody reads gave a traceback where the method sums rewards over turns."""
    case = make()
    method = lb.methods.rltf_sd()
    want = case.loss(method)
    given = {**case.arguments(method), "label": torch.full((BATCH,), nan), "truncated": torch.full((BATCH,), nan)}
    got = lb.objective(method)(case.logits, case.tokens, case.mask, **given).loss
    assert got == want
    assert group_advantage() is not None
