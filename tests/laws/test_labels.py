"""``labels=``: unshifted labels and a classifier's labels give what aligned tokens and masks give, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import limbeck as lb
from laws.cases import BATCH, LENGTH, VARIANTS, VOCABULARY, make
from limbeck.axes import (
    budget,
    column,
    correct,
    divergence_loss,
    entropy,
    logp,
    reinforce,
    sample,
    sampled,
    score,
    teacher,
)
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import Head

C, m, nan = make(), lb.methods, float("nan")
TEACHER, REF = C.given["teacher_logits"], C.given["ref_logits"]


def later(x: Tensor) -> Tensor:
    """Rows of logits as a model returns them: one more at the end, which predicts what nobody wrote."""
    junk = torch.full_like(x[:, :1], nan) if x.is_floating_point() else torch.full_like(x[:, :1], -7)
    return torch.cat([x, junk], 1)


def earlier(x: Tensor, junk: float = nan) -> Tensor:
    """Something about each token at the positions of the input: one more at the start, which nothing predicts."""
    return torch.cat([torch.full_like(x[:, :1], junk), x], 1)


def unshifted(tokens: Tensor, mask: Tensor) -> Tensor:
    """The labels a collator makes of them; the first one is never scored."""
    return earlier(torch.where(mask, tokens, -100), 3)


LABELS = unshifted(C.tokens, C.mask)


def in_positions(given: dict[str, Any]) -> dict[str, Any]:
    """Aligned arguments at the positions of the input."""
    out = dict(given)
    for name, x in given.items():
        if name.endswith(("_logits", "_hidden")):
            out[name] = later(x)
        elif name.endswith("_logp"):
            out[name] = earlier(x)
        elif name == "turn":
            out[name] = earlier(x, 99)
    out["columns"] = {k: earlier(v) if v.dim() == 2 else v for k, v in given.get("columns", {}).items()}
    return out


# ---------------------------------------------------------------- unshifted labels


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_unshifted_labels_are_the_aligned_form(name: str, off_policy: bool) -> None:
    """Loss and gradient to the last bit; the last row gets no gradient, whatever it holds."""
    case, method = make(off_policy=off_policy), VARIANTS[name]
    given = case.arguments(method)
    torch.manual_seed(0)
    want, slope = case.value_and_grad(method)
    leaf = later(case.logits.detach()).requires_grad_()
    torch.manual_seed(0)
    got = lb.objective(method)(leaf, labels=LABELS, **in_positions(given)).loss
    assert torch.equal(got.detach(), want)
    (gradient,) = torch.autograd.grad(got, leaf)
    assert torch.equal(gradient[:, :-1], slope)
    assert not gradient[:, -1].any()


def test_every_way_to_give_a_model_is_shifted() -> None:
    """Hidden states and top-k lists move as logits do, log-probs as labels do."""
    torch.manual_seed(0)
    hidden, seen = torch.randn(2, BATCH, LENGTH, 5, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, 5, dtype=torch.float64)
    heads = {"student_head": weight, "teacher_head": Head(weight)}
    aligned = {"tokens": C.tokens, "mask": C.mask}
    want = lb.objective("opd_full")(student_hidden=hidden, teacher_hidden=seen, **heads, **aligned).loss
    rows = {"student_hidden": later(hidden), "teacher_hidden": later(seen)}
    assert torch.equal(lb.objective("opd_full")(**rows, **heads, labels=LABELS).loss, want)

    logp, ids = TEACHER.log_softmax(-1).topk(3)
    listed = lb.objective(m.opd_full(top_k=3))
    want = listed(C.logits, teacher_topk=(ids, logp), **aligned).loss
    assert torch.equal(listed(later(C.logits), teacher_topk=(later(ids), later(logp)), labels=LABELS).loss, want)

    spoken = [x.log_softmax(-1).gather(-1, C.tokens[..., None])[..., 0] for x in (C.logits, TEACHER)]
    want = lb.objective("opd")(student_logp=spoken[0], teacher_logp=spoken[1], mask=C.mask).loss
    moved = {"student_logp": earlier(spoken[0]), "teacher_logp": earlier(spoken[1])}
    assert torch.equal(lb.objective("opd")(**moved, labels=LABELS).loss, want)


def test_authors_are_shifted() -> None:
    from limbeck.axes import by, everywhere

    gated = lb.objective(Method(sample(n=2), Term(everywhere, reinforce, by("teacher"))))
    authors = torch.where(torch.arange(LENGTH) < 2, 1, 0).expand(BATCH, LENGTH)
    want = gated(C.logits, C.tokens, C.mask, author=authors).loss
    assert torch.equal(gated(later(C.logits), labels=LABELS, author=earlier(authors, -1)).loss, want)
    names = ["teacher", "student"] * (BATCH // 2)
    assert torch.equal(
        gated(later(C.logits), labels=LABELS, author=names).loss,
        gated(C.logits, C.tokens, C.mask, author=names).loss,
    )


def test_sft_is_the_loss_of_transformers() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = later(C.logits).nan_to_num(0.0)
    theirs = ForCausalLMLoss(logits, LABELS, VOCABULARY)
    torch.testing.assert_close(lb.objective("sft")(logits, labels=LABELS).loss.float(), theirs.float())
    over = ForCausalLMLoss(logits, LABELS, VOCABULARY, num_items_in_batch=torch.tensor(50))
    ours = lb.objective("sft")(logits, labels=LABELS, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(ours.float(), over.float())


def test_rows_without_a_label_are_empty_sequences() -> None:
    mask = C.mask.clone()
    mask[2] = False
    given = {"reward": C.given["reward"], "ref_logits": REF, "group": C.given["group"]}
    want = lb.objective("grpo")(C.logits, C.tokens, mask, **given).loss
    got = lb.objective("grpo")(later(C.logits), labels=unshifted(C.tokens, mask), **in_positions(given)).loss
    assert torch.equal(got, want)
    nothing = lb.objective("sft")(later(C.logits), labels=torch.full_like(LABELS, -100)).loss
    assert nothing == 0


def test_one_position_has_nothing_to_predict() -> None:
    assert lb.objective("sft")(C.logits[:, :1], labels=C.tokens[:, :1]).loss == 0


def test_arrays_and_lists_are_labels_too() -> None:
    want = lb.objective("sft")(later(C.logits), labels=LABELS).loss
    assert torch.equal(lb.objective("sft")(later(C.logits), labels=LABELS.numpy()).loss, want)
    assert torch.equal(lb.objective("sft")(later(C.logits), labels=LABELS.tolist()).loss, want)


def test_places_are_those_of_the_labels() -> None:
    """Token 1 of the aligned form is position 2 of the input."""
    spoken = TEACHER.log_softmax(-1).gather(-1, C.tokens[..., None])[..., 0].clone()
    spoken[2, 1] = nan
    with pytest.raises(lb.LimbeckError, match="teacher_logp is nan at sequence 2, token 1,"):
        lb.objective("opd")(C.logits, C.tokens, C.mask, teacher_logp=spoken)
    with pytest.raises(lb.LimbeckError, match="teacher_logp is nan at sequence 2, token 2,"):
        lb.objective("opd")(later(C.logits), labels=LABELS, teacher_logp=earlier(spoken))


# ---------------------------------------------------------------- classifiers

ROWS = C.logits[:, 0]
CLASS = torch.tensor([1, 4, -100, 0, 6, 2, -100, 3])


def test_classes_are_not_shifted() -> None:
    """Cross-entropy of torch, with its ignored examples; the gradient, too."""
    leaf = ROWS.clone().requires_grad_()
    ours, theirs = lb.objective("sft")(leaf, labels=CLASS).loss, F.cross_entropy(leaf, CLASS)
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(x, leaf)[0] for x in (ours, theirs))
    torch.testing.assert_close(mine, other)
    assert not mine[2].any()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_hintons_distillation_of_a_classifier(weight: float) -> None:
    leaf, seen, tau = ROWS.clone().requires_grad_(), TEACHER[:, 0], 3.0
    kept = CLASS != -100
    ours = lb.objective(m.kd(tau=tau, weight=weight))(leaf, labels=CLASS, teacher_logits=seen).loss
    soft = F.kl_div(
        (leaf[kept] / tau).log_softmax(-1), (seen[kept] / tau).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    theirs = weight * tau**2 * soft + (1 - weight) * F.cross_entropy(leaf, CLASS)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, leaf)[0], torch.autograd.grad(theirs, leaf)[0])


def test_a_classifier_is_a_batch_of_one_token_each() -> None:
    keep = (CLASS != -100)[:, None]
    tokens = torch.where(keep, CLASS[:, None], 0)
    logp, ids = TEACHER[:, 0].log_softmax(-1).topk(3)
    spoken = TEACHER[:, 0].log_softmax(-1).gather(-1, tokens)[:, 0]
    torch.manual_seed(0)
    hidden, weight = torch.randn(BATCH, 5, dtype=torch.float64), torch.randn(VOCABULARY, 5, dtype=torch.float64)
    listed = m.opd_full(top_k=3)
    for method, given in (
        (listed, {"student_logits": ROWS, "teacher_topk": (ids, logp)}),
        (m.opd(), {"student_logits": ROWS, "teacher_logp": spoken, "old_logp": spoken}),
        (m.opd_full(), {"student_hidden": hidden, "student_head": weight, "teacher_logits": TEACHER[:, 0]}),
    ):
        got = lb.objective(method)(**given, labels=CLASS).loss
        one = {k: v[:, None] if isinstance(v, Tensor) and not k.endswith("head") else v for k, v in given.items()}
        one |= {"teacher_topk": (ids[:, None], logp[:, None])} if "teacher_topk" in given else {}
        assert torch.equal(got, lb.objective(method)(**one, tokens=tokens, mask=keep).loss)
    weighted = Method(sample(), Term(teacher, divergence_loss("fkl"), weight=column("w")))
    heft = torch.rand(BATCH, dtype=torch.float64)
    got = lb.objective(weighted)(ROWS, labels=CLASS, teacher_logits=TEACHER[:, 0], columns={"w": heft}).loss
    each = F.kl_div(ROWS.log_softmax(-1), TEACHER[:, 0].softmax(-1), reduction="none").sum(-1)
    kept = CLASS != -100
    torch.testing.assert_close(got, (heft * each)[kept].sum() / kept.sum())


# ---------------------------------------------------------------- an external denominator


def test_micro_batches_over_one_count_add_up_to_the_batch() -> None:
    """Unequal micro-batches, and terms that count all tokens."""
    method = m.kdrl(coef=0.5)
    given = {"reward": C.given["reward"], "teacher_logits": later(TEACHER), "group": C.given["group"]}
    items = (LABELS[:, 1:] != -100).sum()
    leaf = later(C.logits.detach()).nan_to_num(0.0).requires_grad_()
    whole = lb.objective(method)(leaf, labels=LABELS, **given).loss
    parts = torch.zeros((), dtype=torch.float64)
    for cut in (slice(0, 2), slice(2, 8)):
        some = {k: v[cut] for k, v in given.items()}
        parts = parts + lb.objective(method)(leaf[cut], labels=LABELS[cut], num_items_in_batch=items, **some).loss
    torch.testing.assert_close(parts, whole)
    (a,), (b,) = (torch.autograd.grad(x, leaf) for x in (parts, whole))
    torch.testing.assert_close(a, b)
    assert b.any()


def test_a_constant_denominator_stays() -> None:
    over = lb.objective(m.kdrl(coef=0.5, reduction=budget(30)))
    given = {"reward": C.given["reward"], "teacher_logits": TEACHER, "group": C.given["group"]}
    assert torch.equal(
        over(C.logits, C.tokens, C.mask, num_items_in_batch=3.5, **given).loss,
        over(C.logits, C.tokens, C.mask, **given).loss,
    )


GATED = Method(sample(n=2), Term(logp(teacher), sampled("k2"), where=correct))
WEIGHED = Method(sample(n=2), Term(logp(teacher), sampled("k2"), weight=entropy(teacher), per="weight"))


def test_a_term_over_all_tokens_may_have_a_condition() -> None:
    from dataclasses import replace

    term = GATED.parts[0][1]
    every = lb.objective(Method(sample(n=2), replace(term, per="all")))
    given = {"teacher_logits": TEACHER, "correct": C.given["correct"], "num_items_in_batch": C.mask.sum()}
    want = every(C.logits, C.tokens, C.mask, **{**given, "num_items_in_batch": None}).loss
    assert torch.equal(every(C.logits, C.tokens, C.mask, **given).loss, want)


# ---------------------------------------------------------------- refusals


def asked(method: Any = "sft", logits: Tensor | None = None, **given: Any) -> Tensor:
    return lb.objective(method)(**{"student_logits": later(C.logits) if logits is None else logits, **given}).loss


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "labels and tokens": (lambda: asked(labels=LABELS, tokens=C.tokens), "labels and tokens were both given; give"),
    "labels and a mask": (lambda: asked(labels=LABELS, mask=C.mask), "labels and mask were both given; give"),
    "labels of floats": (lambda: asked(labels=LABELS.double()), "labels has dtype torch.float64; give whole"),
    "labels of truths": (lambda: asked(labels=LABELS > 0), "labels has dtype torch.bool; give whole"),
    "a text": (lambda: asked(labels="x"), "labels is 'x'; give a tensor"),
    "outside": (
        lambda: asked(labels=LABELS + VOCABULARY),
        r"labels holds \d+, which is outside the student's 7 entries",
    ),
    "another ignore index": (
        lambda: asked(labels=torch.where(LABELS == -100, -1, LABELS)),
        "labels holds -1, which is outside the student's 7 entries; write -100",
    ),
    "outside a classifier": (lambda: asked(logits=ROWS, labels=CLASS + 5), "labels holds .* the student's 7 entries"),
    "logits shifted by the caller": (
        lambda: asked(logits=C.logits, labels=LABELS),
        r"labels has shape \(8, 5\), but student_logits has \(8, 4, 7\); give .* the objective shifts them itself",
    ),
    "labels shifted by the caller": (lambda: asked(labels=LABELS[:, 1:]), "the objective shifts them itself"),
    "a shifted teacher": (
        lambda: asked("opd_full", labels=LABELS, teacher_logits=TEACHER),
        r"teacher_logits has shape \(8, 4, 7\), but labels has \(8, 5\); .* unshifted",
    ),
    "shifted log-probs": (
        lambda: asked("opd", labels=LABELS, teacher_logp=C.given["old_logp"]),
        "teacher_logp has shape .*unshifted",
    ),
    "a shifted column": (
        lambda: asked(
            Method(sample(), Term(column("told"), reinforce, weight=column("heft", "token"))),
            labels=LABELS,
            columns={"told": C.given["told"], "heft": C.given["heft"]},
        ),
        r"columns\['heft'\] has shape \(8, 4\), but labels has \(8, 5\)",
    ),
    "shifted turns": (lambda: asked(labels=LABELS, turn=C.given["turn"]), "turn has shape .*unshifted"),
    "preferences as labels": (
        lambda: asked("dpo", labels=C.given["label"].long(), ref_logits=later(REF)),
        r"labels has shape \(8,\), .*preferences of pairs go in label=",
    ),
    "one-hot classes": (
        lambda: asked(logits=ROWS, labels=F.one_hot(CLASS.clamp(0), VOCABULARY)),
        r"labels has shape \(8, 7\), .* rows of a classifier; give labels of shape \(8,\)",
    ),
    "classes of others": (lambda: asked(logits=ROWS, labels=CLASS[:3]), r"labels has shape \(3,\)"),
    "a teacher of texts for classes": (
        lambda: asked("opd_full", logits=ROWS, labels=CLASS, teacher_logits=TEACHER),
        r"teacher_logits has shape \(8, 4, 7\), .*8 classified examples; give \[8, C\]",
    ),
    "log-probs of texts for classes": (
        lambda: asked("opd", logits=ROWS, labels=CLASS, teacher_logp=C.given["old_logp"]),
        r"teacher_logp has shape \(8, 4\), .*8 classified examples; give \[8\]",
    ),
    "no student": (lambda: lb.objective("sft")(labels=LABELS), "0 of student_logits, .* were given"),
    "neither": (lambda: asked(), "tokens is missing: .*or labels="),
    "a count of nothing": (
        lambda: asked(labels=LABELS, num_items_in_batch=0),
        "num_items_in_batch is 0, but 23",
    ),
    "a negative count": (lambda: asked(labels=LABELS, num_items_in_batch=-4), "num_items_in_batch is -4"),
    "no count": (lambda: asked(labels=LABELS, num_items_in_batch="8"), "num_items_in_batch is '8'"),
    "an infinite count": (lambda: asked(labels=LABELS, num_items_in_batch=float("inf")), "num_items_in_batch is inf"),
    "counts of several": (
        lambda: asked(labels=LABELS, num_items_in_batch=torch.tensor([3, 3])),
        r"num_items_in_batch has shape \(2,\); give one number",
    ),
    "a count for sequences": (
        lambda: asked("grpo", num_items_in_batch=3, labels=LABELS, reward=C.given["reward"], ref_logits=later(REF)),
        "num_items_in_batch counts scored tokens, but term 1 of grpo is divided by the number of its sequences; use",
    ),
    "a count for a condition": (
        lambda: asked(GATED, num_items_in_batch=3, labels=LABELS, correct=C.given["correct"]),
        "is divided by the tokens that its condition keeps; use .*per='all'",
    ),
    "a count for weights": (
        lambda: asked(WEIGHED, num_items_in_batch=3, labels=LABELS),
        "is divided by the sum of its weights",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_refused_by_name(name: str) -> None:
    """One sentence, whatever was given."""
    attempt, says = CALLS[name]
    with pytest.raises(lb.LimbeckError, match=f"(?s){says}") as refusal:
        attempt()
    assert "\n" not in str(refusal.value)


def test_scores_that_no_term_reads_may_be_anything_under_labels() -> None:
    """As in the aligned form, a trainer may pass its reference to every method."""
    want = asked(labels=LABELS)
    assert torch.equal(asked(labels=LABELS, ref_logits=REF, teacher_logp=C.tokens, init_topk=3), want)
    assert asked(Method(sample(n=2), Term(score, reinforce)), labels=LABELS, reward=C.given["reward"]) != 0
