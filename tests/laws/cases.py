"""What the registry-wide laws run on: every method in many variants, and one batch that fits them all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import limbeck as lb
from limbeck.axes import (
    cispo,
    clip,
    column,
    contrast,
    correct,
    divergence_advantage,
    entropy,
    everywhere,
    fixed,
    group_advantage,
    group_mean,
    importance,
    label,
    log_ratio,
    logp,
    pairs,
    pathwise,
    ratio,
    ref,
    reinforce,
    sample,
    sampled,
    sequence_mean,
    sequence_sum,
    standardise,
    student,
    teacher,
    to_go,
    token_mean,
    writer,
)
from limbeck.math.divergence import as_divergence, fkl, rkl
from limbeck.method import Method, Term, routed
from limbeck.objective import Batch, Heard, hear
from limbeck.registry import REGISTRY
from limbeck.types import STUDENT, Dense, Rollout, Sampled, View

DIVERGENCES = [
    "rkl",
    "fkl",
    "jsd(0.1)",
    "jsd(0.9)",
    "skew_fkl(0.1)",
    "skew_rkl(0.1)",
    "alpha(0.7)",
    "alpha(2)",
    "alpha(-1)",
    "tv",
    "chi2",
    "neyman_chi2",
    "hellinger",
    "renyi(0.5)",
    "renyi(2)",
    "soft_ce",
]


def _variants() -> Iterator[tuple[str, Method]]:
    m = lb.methods
    for name, recipe in REGISTRY.items():
        yield name, recipe()
    for gate in ("none", "response", "group"):
        for denominator in ("kept", "all"):
            for estimator in ("k2", "k3"):
                given = {"gate": gate, "denominator": denominator, "estimator": estimator}
                reduction = "sequence_mean" if estimator == "k3" else "token_mean"
                yield f"kdrl({', '.join(given.values())})", m.kdrl(coef=0.5, reduction=reduction, **given)
        yield f"kdrl_shaping({gate})", m.kdrl_shaping(coef=0.5, gate=gate)
    yield "kdrl_reward(0.5)", m.kdrl_reward(coef=0.5)
    for divergence in DIVERGENCES:
        yield f"gkd({divergence})", m.gkd(divergence=divergence)
    yield "gkd(on-policy, tau)", m.gkd(lam=1, tau=2.0)
    for divergence in ("fkl", "rkl", "jsd(0.3)"):
        yield f"gkd({divergence}, top 3)", m.gkd(divergence=divergence, top_k=3)
    yield "kd(top 3)", m.kd(tau=1, top_k=3)
    yield "kd(weight 1)", m.kd(weight=1)
    yield "opd_full(top V)", m.opd_full(top_k=VOCABULARY)
    yield "opd_full(top 2)", m.opd_full(top_k=2)
    yield "dapo(overlong)", m.dapo(max_length=4, buffer=2)
    for reduction in ("token_mean", "sequence_sum", "token_sum"):
        yield f"grpo({reduction})", m.grpo(ref_coef=0, reduction=reduction)
    yield "opd(gamma .9)", m.opd(gamma=0.9)
    yield "opd(coef .5)", m.opd(coef=0.5)
    yield "minillm(no lm)", m.minillm(lm_coef=0)
    yield "minillm(gamma 0)", m.minillm(gamma=0)
    yield "dpo(sum of lists)", Method(pairs(), Term(label, contrast(2.0, ref, score=fkl)), group_mean)
    yield "simpo", Method(pairs(), Term(label, contrast(0.5, margin=0.3, length=True)), group_mean)
    yield from _compositions()


def _compositions() -> Iterator[tuple[str, Method]]:
    """Points of the space that no paper of the registry uses, but a user may."""
    A, S = group_advantage(), sample(student, 4)
    k2 = Term(logp(teacher), sampled("k2"))
    yield "cispo", Method(S, Term(A, cispo(0.2, 0.2)), token_mean)
    yield "dual clip, cap", Method(S, Term(A, clip(0.2, 0.28, dual=3.0, cap=5.0)), fixed(10))
    yield "ratio by sequence", Method(S, Term(A, lb.axes.policy("ratio", pool="sequence")), sequence_sum)
    yield "rho k3", Method(S, Term(logp(teacher), sampled("k3", ratio=True)), sequence_mean)
    yield "routed", Method(S, routed(correct, Term(A, clip(0.2)), k2), sequence_mean)
    entropic = standardise(entropy(teacher), "batch").exp()
    yield "batch-wide weight", Method(S, Term(teacher, pathwise(rkl), weight=entropic), token_mean)
    yield "batch-wide weight that counts", Method(S, Term(teacher, pathwise(rkl), weight=entropic, per="weight"))
    yield (
        "batch-wide gate",
        Method(
            S, Term(teacher, pathwise(fkl), entropy(teacher) > entropy(teacher).over("batch", "mean")), sequence_mean
        ),
    )
    yield "live weight", Method(S, Term(teacher, pathwise(rkl), weight=entropy(student)), sequence_mean)
    yield "live gate as a weight", Method(S, Term(logp(teacher), sampled("k2"), weight=importance(student, writer, 2)))
    skew = as_divergence("skew_rkl(0.1)")
    yield "divergence advantage", Method(S, Term(divergence_advantage(skew, teacher), ratio))
    yield "renyi advantage", Method(S, Term(divergence_advantage(as_divergence("renyi(2)"), teacher, student), ratio))
    yield "group normalised to-go", Method(S, Term(standardise(to_go(log_ratio(teacher), 1.0), "group"), clip(0.2)))
    yield "columns", Method(S, Term(column("told"), reinforce, weight=column("heft", "token")), token_mean)
    yield "entropy of the student", Method(S, Term(entropy(student), reinforce), token_mean)
    yield "constant", Method(S, Term(everywhere, ratio), sequence_mean)


BATCH, LENGTH, VOCABULARY, WIDTH = 8, 4, 7, 5
VARIANTS: dict[str, Method] = dict(_variants())


@dataclass
class Case:
    """A batch for any method: plain tensors under the names that ``lb.objective`` gives them.

    ``logits`` is ``[B, T, V]``; ``given`` holds everything a method might read.
    """

    logits: Tensor
    tokens: Tensor
    mask: Tensor
    given: dict[str, Tensor] = field(default_factory=dict)
    off_policy: bool = True

    def arguments(self, method: Method) -> dict[str, Any]:
        """Of all that is there, what this method reads."""
        g = self.given
        out: dict[str, Any] = {"reward": g["reward"], "correct": g["correct"], "group": g["group"], "step": 3}
        reading = {r for r, abilities in method.roles.items() if abilities != {"text"}}
        out |= {f"{r}_logits": g[f"{r}_logits"] for r in reading}
        if "label" in method.fields:
            out["label"] = g["label"]
        if len(method.sources) > 1:
            names = list(method.sources)
            out["source"] = [names[int(x) % len(names)] for x in g["group"]]
        out["columns"] = {"told": g["told"], "heft": g["heft"]}
        if self.off_policy:
            out |= {"old_logp": g["old_logp"], "writer_logp": g["writer_logp"]}
        return out

    def loss(self, method: Method, **changes: Any) -> Tensor:
        """``lb.objective`` on plain logits."""
        given = {**self.arguments(method), **changes}
        return lb.objective(method)(self.logits, self.tokens, self.mask, **given).loss

    def value_and_grad(self, method: Method, **changes: Any) -> tuple[Tensor, Tensor]:
        """The loss and its gradient with respect to the logits."""
        self.logits = self.logits.detach().requires_grad_()
        loss = self.loss(method, **changes)
        return loss.detach(), torch.autograd.grad(loss, self.logits)[0]

    def rows(self, x: Tensor) -> Tensor:
        """``[N, ...]`` of the kept tokens; the groups of a case are contiguous."""
        return x[self.mask]

    def heard(self, method: Method) -> tuple[Method, Heard, Dense]:
        """The batch as a record built by hand (``lb.objective`` builds its own), heard, and the live carrier."""
        args = self.arguments(method)
        live = Dense(self.rows(self.logits))
        now = live.logits_NV.detach().log_softmax(-1).gather(-1, self.rows(self.tokens)[:, None])[:, 0]
        counts = self.mask.sum(-1)
        seq_N = torch.arange(BATCH).repeat_interleave(counts)
        start = torch.cat([torch.zeros(1, dtype=torch.int64), (counts + 1).cumsum(0)])
        pos = torch.arange(len(seq_N)) + seq_N + 1
        ids = torch.zeros(int(start[-1]), dtype=torch.int64)
        ids[pos] = self.rows(self.tokens)
        names = tuple(method.sources)
        source = args.get("source", [names[0]] * BATCH)
        record = Rollout(
            ids_L=ids,
            start_B1=start,
            pos_N=pos,
            turn_N=seq_N,
            seq_U=torch.arange(BATCH),
            group_B=self.given["group"],
            author_N=torch.full_like(seq_N, STUDENT, dtype=torch.int8),
            writer_logp_N=self.rows(self.given["writer_logp"]) if self.off_policy else now,
            origin_B=torch.tensor([names.index(s) for s in source]),
            reward_U=self.given["reward"],
            correct_B=self.given["correct"],
            truncated_B=torch.zeros(BATCH, dtype=torch.bool),
            label_B=self.given["label"],
            sources=names,
            columns_B={"told": self.given["told"]},
            columns_N={"heft": self.rows(self.given["heft"])},
        ).check()
        scores = {k[:-7]: View(Dense(self.rows(v))) for k, v in args.items() if k.endswith("_logits")}
        if self.off_policy:
            scores["old"] = View(Sampled(self.rows(self.given["old_logp"])))
        else:
            scores["old"] = View(Dense(live.logits_NV.detach()))
            method = method.on_policy()
        return method, hear(method, Batch(record, scores, step=3)), live


def make(seed: int = 0, off_policy: bool = True, scale: float = 1.0) -> Case:
    """Eight sequences of one to four tokens in four groups of two, rewards and correctness mixed."""
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, dtype=torch.float64, generator=gen)

    logits = randn(BATCH, LENGTH, VOCABULARY)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=gen)
    now = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    mask = torch.arange(LENGTH) < torch.tensor([4, 2, 3, 1, 4, 4, 2, 3])[:, None]
    correct_B = torch.tensor([True, False, False, False, True, True, False, True])
    given = {
        "reward": correct_B.double() + 0.1 * torch.randn(BATCH, dtype=torch.float64, generator=gen),
        "correct": correct_B,
        "label": torch.tensor([1.0, 0.0] * 4, dtype=torch.float64),
        "group": torch.arange(BATCH) // 2,
        "old_logp": now + 0.3 * torch.randn(BATCH, LENGTH, dtype=torch.float64, generator=gen),
        "writer_logp": now + 0.2 * torch.randn(BATCH, LENGTH, dtype=torch.float64, generator=gen),
        "teacher_logits": randn(BATCH, LENGTH, VOCABULARY),
        "ref_logits": randn(BATCH, LENGTH, VOCABULARY),
        "told": torch.randn(BATCH, dtype=torch.float64, generator=gen),
        "heft": torch.rand(BATCH, LENGTH, dtype=torch.float64, generator=gen),
    }
    return Case(logits, tokens, mask, given, off_policy)


def changed(case: Case, **given: Tensor) -> Case:
    """A copy with other tensors in place: ``logits``, ``tokens``, ``mask`` or anything given."""
    out = copy.copy(case)
    out.given = dict(case.given)
    for name, value in given.items():
        if name in ("logits", "tokens", "mask"):
            setattr(out, name, value)
        else:
            out.given[name] = value
    return out
