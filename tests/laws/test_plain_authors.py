"""``by(...)`` and ``truncated`` in ``lb.objective``: a token's author is known from the source, given, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import BATCH, LENGTH, make
from limbeck.axes import (
    by,
    correct,
    data,
    either,
    ema,
    everywhere,
    feedback,
    hint,
    init,
    on,
    recast,
    refine,
    reinforce,
    resample,
    sample,
    student,
    teacher,
    truncated,
)
from limbeck.axes.reader import blend
from limbeck.axes.source import Source
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.types import AUTHORS

C = make()
HALF = ["student", "teacher"] * (BATCH // 2)


def loss(method: Method, **given: Any) -> Tensor:
    """``lb.objective`` on the case's student, tokens and mask."""
    return lb.objective(method)(C.logits, C.tokens, C.mask, **given).loss


def kept(by_whom: str, source: Source, **given: Any) -> set[int]:
    """The sequences in which a term that keeps one author's tokens has a gradient."""
    leaf = C.logits.clone().requires_grad_()
    method = Method(source, Term(everywhere, reinforce, by(by_whom)))
    value = lb.objective(method)(leaf, C.tokens, C.mask, **given).loss
    touched = torch.autograd.grad(value, leaf)[0].abs().sum((1, 2)) > 0
    return set(touched.nonzero().squeeze(-1).tolist())


ALL = set(range(BATCH))
WROTE: dict[str, tuple[Source, str]] = {
    "the student": (sample(n=2), "student"),
    "a student that sees more": (sample(student.given(hint), 2), "student"),
    "an average of students": (sample(ema(0.1)), "student"),
    "the first student": (sample(init), "student"),
    "a blend with the student": (sample(blend((student, 0.5), (teacher, 0.5))), "student"),
    "resampled": (resample(sample(n=2), correct.over("group", "any")), "student"),
    "the teacher": (sample(teacher), "teacher"),
    "refined by the teacher": (refine(sample(), teacher.given(feedback)), "teacher"),
    "demonstrations": (data(), "data"),
}


@pytest.mark.parametrize("clock", [{}, {"old_logp": C.given["old_logp"]}], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", WROTE)
def test_the_source_decides_the_author(name: str, clock: dict[str, Tensor]) -> None:
    """Whatever else is given: without ``old_logp`` ``by("student")`` was false everywhere, and its loss was 0."""
    source, author = WROTE[name]
    for who in AUTHORS:
        assert kept(who, source, **clock) == (ALL if who == author else set())


def test_on_policy_tokens_are_the_students() -> None:
    """A gate that keeps everything is no gate."""
    gated = Method(sample(n=2), Term(everywhere, reinforce, by("student")))
    assert loss(gated) == loss(Method(sample(n=2), Term(everywhere, reinforce))) != 0


def test_several_sources_have_their_own_authors() -> None:
    """A copy of another source's tokens has that source's author."""
    sources = {
        "roll": sample(n=2),
        "lm": data(),
        "again": recast("roll"),
        "told": recast("roll", response="{{ reply }}"),
    }
    term = Term(everywhere, reinforce, by("student")) + Term(everywhere, reinforce, on("lm"))
    names = ["roll", "lm", "again", "told"] * 2
    leaf = C.logits.clone().requires_grad_()
    made = lb.objective(Method(sources, term.parts[0][1]))(leaf, C.tokens, C.mask, source=names)
    touched = torch.autograd.grad(made.loss, leaf)[0].abs().sum((1, 2)) > 0
    assert touched.tolist() == [name in ("roll", "again") for name in names]


def test_an_author_may_be_given() -> None:
    """By one name, by a name for each sequence, or token by token; it wins over the source."""
    assert kept("teacher", sample(n=2), author="teacher") == ALL
    assert kept("teacher", sample(n=2), author=HALF) == {1, 3, 5, 7}
    tokens = torch.full((BATCH, LENGTH), AUTHORS["student"])
    tokens[3] = AUTHORS["teacher"]
    assert kept("teacher", sample(n=2), author=tokens) == {3}
    assert kept("teacher", sample(n=2), author=tokens.tolist()) == {3}


COIN = either(0.5, sample(), data())


def test_an_unknown_author_is_refused_where_it_is_read() -> None:
    """A coin decides who writes a batch, and plain tensors do not say how it fell."""
    gated = Method(COIN, Term(everywhere, reinforce, by("student")))
    with pytest.raises(lb.LimbeckError, match=r"author is not known .* at sequence 0, token 0.*give author="):
        loss(gated)
    assert loss(gated, author="student") != 0
    assert loss(gated, author="data") == 0
    assert torch.isfinite(loss(Method(COIN, Term(everywhere, reinforce))))
    assert loss(gated, author="student") == loss(Method(COIN, Term(everywhere, reinforce)))


REFUSED: dict[str, tuple[Any, str]] = {
    "misspelt": ("studnt", "author='studnt': unknown .did you mean 'student'.*use one of data, student, teacher"),
    "too few": (["student"], "author names 1 sequences, but there are 8"),
    "no code": (
        torch.full((BATCH, LENGTH), 7),
        r"author holds 7 to 7; give names, or the numbers -1 .data., 0 .student",
    ),
    "fractions": (torch.zeros(BATCH, LENGTH), "author has dtype torch.float32"),
    "another shape": (torch.zeros(BATCH, dtype=torch.int64), r"author has shape \(8,\)"),
    "a number": (3, "author has shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_author_is_refused(name: str) -> None:
    """One sentence."""
    author, says = REFUSED[name]
    with pytest.raises(lb.LimbeckError, match=says) as told:
        kept("student", sample(n=2), author=author)
    assert "\n" not in str(told.value)


def test_truncation_must_be_given_where_it_is_read() -> None:
    """``truncated`` was False everywhere where nobody gave it."""
    method = Method(sample(n=2), Term(everywhere, reinforce, ~truncated))
    with pytest.raises(lb.LimbeckError, match="reads which responses were cut at the token limit; give truncated="):
        loss(method)
    cut = torch.arange(BATCH) < 4
    assert loss(method, truncated=cut) != loss(method, truncated=~cut)
    assert torch.isfinite(loss(Method(sample(n=2), Term(everywhere, reinforce))))
