"""A reader's temperature divides its logits wherever it stands, and no other reader's; references are in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import limbeck as lb
from limbeck.axes import (
    Support,
    behavior,
    blend,
    contrast,
    divergence,
    divergence_advantage,
    divergence_loss,
    entropy,
    importance,
    label,
    log_ratio,
    logp,
    old,
    once,
    pairs,
    policy,
    reinforce,
    sample,
    sampled,
    score_column,
    student,
    teacher,
    token_mean,
    token_sum,
)
from limbeck.axes.derived_source import refine
from limbeck.axes.reader import Blend, Reader, TargetReader, synced
from limbeck.errors import LimbeckError
from limbeck.space.method import Method
from limbeck.space.term import Term

T, V = 5, 7
G = torch.Generator().manual_seed(5)
Z, P, R = (1.5 * torch.randn(T, V, dtype=torch.float64, generator=G) for _ in range(3))
Y = torch.randint(0, V, (T,), generator=G)
LOGITS = {"student": Z, "old": Z, "teacher": P, "ref": R}
OUTCOME = {"reward": torch.ones(1), "ref_logits": R[None]}


def law(reader: TargetReader, tau: float = 1.0) -> Tensor:
    """Probabilities, written without the library."""
    if isinstance(reader, Blend):
        parts = [(law(r, tau), w) for r, w in reader.parts]
        if reader.space == "prob":
            return torch.stack([w * p for p, w in parts]).sum(0)
        mixed = torch.stack([p**w for p, w in parts]).prod(0)
        return mixed / mixed.sum(-1, keepdim=True)
    return (LOGITS[reader.role] / (reader.tau * tau)).softmax(-1)


def at_token(x: Tensor) -> Tensor:
    return x.gather(-1, Y[:, None]).squeeze(-1)


def rkl(q: Tensor, p: Tensor) -> Tensor:
    return (q * (q / p).log()).sum(-1)


def fkl(q: Tensor, p: Tensor) -> Tensor:
    return rkl(p, q)


def coarse(q: Tensor, ids: Tensor) -> Tensor:
    head = q.gather(-1, ids)
    return torch.cat([head, 1 - head.sum(-1, keepdim=True)], -1)


def value(method: Method, **given: Tensor) -> float:
    """The loss on one sequence of five tokens."""
    return float(lb.objective(method)(Z[None], Y[None], teacher_logits=P[None], **{**OUTCOME, **given}).loss)


def told(v: lb.axes.Expr, **given: Tensor) -> float:
    """The sum of a signal over the tokens: reinforce's loss is minus the signal times the log-prob."""
    return -value(Method(sample(), Term(v / logp(student), reinforce), token_sum), **given)


BLENDS = {
    "blend(prob)": lambda t: blend((t, 0.7), (Reader("ref"), 0.3)),
    "blend(log)": lambda t: blend((t, 1.4), (Reader("ref"), -0.4), space="log"),
}
HOT = 2.0


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("row", ["fkl", "rkl"])
@pytest.mark.parametrize("shape", ["reader", *BLENDS])
def test_a_target_law_is_at_its_readers_temperature_times_that_of_pathwise(shape: str, row: str, tau: float) -> None:
    target: TargetReader = teacher.at(4.0) if shape == "reader" else BLENDS[shape](teacher.at(4.0))
    expected = {"fkl": fkl, "rkl": rkl}[row](law(student, tau), law(target, tau)).mean()
    got = value(Method(sample(), Term(target, divergence_loss(row, tau=tau)), token_mean))
    assert got == pytest.approx(float(expected), abs=1e-10)


def test_the_gradient_of_a_heated_target_is_that_of_its_own_formula() -> None:
    live = Z[None].clone().requires_grad_()
    method = Method(sample(), Term(teacher.at(4.0), divergence_loss("fkl", tau=0.5)), token_mean)
    lb.objective(method)(live, Y[None], teacher_logits=P[None], **OUTCOME).loss.backward()
    own = Z.clone().requires_grad_()
    fkl((own / 0.5).softmax(-1), law(teacher.at(2.0))).mean().backward()
    torch.testing.assert_close(live.grad[0], own.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("by", ["target", "student"])
def test_the_entries_of_a_heated_target_have_its_heated_mass(by: str) -> None:
    q, p = law(student), law(teacher.at(HOT))
    ids = (p if by == "target" else q).topk(3).indices
    expected = fkl(coarse(q, ids), coarse(p, ids)).mean()
    got = value(Method(sample(), Term(teacher.at(HOT), divergence_loss("fkl", top_k=3, by=by)), token_mean))
    assert got == pytest.approx(float(expected), abs=1e-10)


READS: dict[str, tuple[Callable[[Reader], lb.axes.Expr], Callable[[Reader], Tensor]]] = {
    "logp": (logp, lambda t: at_token(law(t).log())),
    "entropy": (entropy, lambda t: -(law(t) * law(t).log()).sum(-1)),
    "log_ratio, target": (log_ratio, lambda t: at_token((law(t) / law(old)).log())),
    "importance": (lambda t: importance(t, old), lambda t: at_token(law(t) / law(old))),
    "divergence, target": (lambda t: divergence("rkl", t, old), lambda t: rkl(law(old), law(t))),
    "divergence, of": (lambda t: divergence("rkl", Reader("ref"), t), lambda t: rkl(law(t), law(Reader("ref")))),
    "divergence, both": (
        lambda t: divergence("rkl", t, old.at(0.5)),
        lambda t: rkl(law(old.at(0.5)), law(t)),
    ),
    "divergence, live": (
        lambda t: divergence("rkl", t, student.at(4.0)),
        lambda t: rkl(law(student.at(4.0)), law(t)),
    ),
    "divergence, blend": (
        lambda t: divergence("fkl", BLENDS["blend(log)"](t), old),
        lambda t: fkl(law(old), law(BLENDS["blend(log)"](t))),
    ),
    "divergence, entries": (
        lambda t: divergence("fkl", t, old, Support(2)),
        lambda t: fkl(*(coarse(law(r), law(t).topk(2).indices) for r in (old, t))),
    ),
    "divergence_advantage, renyi": (
        lambda t: divergence_advantage("renyi(2)", t),
        lambda t: -2 * at_token(law(old) / law(t)) / (law(old) ** 2 / law(t)).sum(-1),
    ),
}


@pytest.mark.parametrize("place", READS)
def test_what_is_read_of_a_heated_reader_is_what_its_heated_law_says(place: str) -> None:
    make, reference = READS[place]
    cold, hot = told(make(teacher)), told(make(teacher.at(HOT)))
    assert hot == pytest.approx(float(reference(teacher.at(HOT)).sum()), abs=1e-9)
    assert cold == pytest.approx(float(reference(teacher).sum()), abs=1e-9)
    assert abs(hot - cold) > 1e-3


def test_divergence_to_a_cold_target_heats_only_the_one_that_says_so() -> None:
    got = told(divergence("fkl", teacher, old.at(4.0)))
    assert got == pytest.approx(float(fkl(law(old.at(4.0)), law(teacher)).sum()), abs=1e-10)


BASES = {
    "policy(base)": Term(logp(teacher), policy("ratio", base=logp(Reader("ref", HOT)))),
    "sampled": Term(logp(Reader("ref", HOT)), sampled("k3")),
}


def test_a_heated_base_or_sampled_target_is_heated() -> None:
    u = at_token(law(student) / law(Reader("ref", HOT)))
    ratio = value(Method(sample(), BASES["policy(base)"], token_sum))
    assert ratio == pytest.approx(float(-(u * at_token(law(teacher).log())).sum()), abs=1e-9)
    k3 = value(Method(sample(), BASES["sampled"], token_sum))
    assert k3 == pytest.approx(float((1 / u - 1 + u.log()).sum()), abs=1e-9)


def test_a_heated_base_of_contrast_is_heated() -> None:
    two = {"teacher_logits": P[None].repeat(2, 1, 1), "ref_logits": R[None].repeat(2, 1, 1)}
    y = torch.stack([Y, (Y + 1) % V])
    method = Method(pairs(), Term(label, contrast(1.0, Reader("ref", HOT))), lb.axes.group_mean)
    got = lb.objective(method)(Z[None].repeat(2, 1, 1), y, label=torch.tensor([1.0, 0.0]), **two).loss
    s = ((law(student) / law(Reader("ref", HOT))).log()[None].expand(2, T, V).gather(-1, y[..., None])).sum((1, 2))
    assert float(got) == pytest.approx(float(-(s[0] - s[1]).sigmoid().log()), abs=1e-9)


def test_the_student_at_another_temperature_is_a_valid_target() -> None:
    Method(sample(), Term(synced(1).at(0.5), divergence_loss("fkl")), token_mean)
    with pytest.raises(LimbeckError, match="gradient is zero"):
        Method(sample(), Term(synced(1), divergence_loss("fkl")), token_mean)


def test_an_impossible_temperature_is_refused_in_one_sentence() -> None:
    with pytest.raises(LimbeckError, match=r"behavior\.at\(2\.0\).*use old\.at"):
        behavior.at(2.0)
    method = Method(sample(), Term(teacher.at(HOT), divergence_loss("fkl", top_k=2)), token_mean)
    top = P.log_softmax(-1).topk(2)
    with pytest.raises(LimbeckError, match="teacher"):
        lb.objective(method)(Z[None], Y[None], teacher_topk=(top.indices[None], top.values[None]))


def test_a_reader_with_a_temperature_needs_full_rows() -> None:
    assert once(sample(), score=teacher.at(2.0)).needs >= {(teacher.at(2.0), "dense")}
    assert once(sample(), score=teacher).needs >= {(teacher, "sampled")}
    heated = Method(sample(), Term(teacher.at(2.0), divergence_loss("fkl", top_k=2)), token_mean)
    assert heated.roles["teacher"] == {"dense"}


def test_explain_says_each_temperature_where_it_is() -> None:
    source = once(sample(teacher.at(0.7), tau=0.5), score=teacher.at(2.0))
    text = lb.explain(Method(source, Term(teacher.at(4.0), divergence_loss("fkl", tau=3.0)), token_mean))
    assert "sampled from teacher@0.7, τ=0.5 on top" in text
    assert "teacher@2's log-probs" in text
    assert "divergence_loss(fkl, τ=3)[teacher@4]" in text
    assert "refined by teacher@2, τ=0.5 on top" in str(refine(sample(), teacher.at(2.0), tau=0.5))
    assert score_column(teacher.at(2.0)) != score_column(teacher)
