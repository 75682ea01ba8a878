"""What the registry-wide laws run on: every method in many variants, and one batch that fits them all."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import limbeck as lb
from limbeck.axes import (
    Expr,
    behavior,
    blend,
    cispo,
    clip,
    column,
    contrast,
    correct,
    divergence_advantage,
    divergence_loss,
    draw,
    entropy,
    everywhere,
    fixed,
    group_advantage,
    group_mean,
    importance,
    label,
    log_ratio,
    logistic,
    logp,
    old,
    pairs,
    ratio,
    ref,
    reinforce,
    running,
    sample,
    sampled,
    sequence_mean,
    sequence_sum,
    standardise,
    student,
    teacher,
    to_go,
    token_mean,
    turn_mean,
    where,
)
from limbeck.axes.choice import Cohort
from limbeck.axes.expression import ToGo
from limbeck.axes.leaves import Column
from limbeck.axes.levels import Level
from limbeck.loss.terms import Batch, Prepared, prepare
from limbeck.math.divergence import as_divergence, fkl, rkl
from limbeck.space.method import Method
from limbeck.space.registry import REGISTRY
from limbeck.space.term import Term, routed
from limbeck.types import STUDENT, Dense, Rollout, Sampled

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
    yield from _on_policy_family()
    yield from _self_taught_family()
    yield from _compositions()


def _on_policy_family() -> Iterator[tuple[str, Method]]:
    m = lb.methods
    yield "sod(one turn)", m.sod(coef=0.4, turns=1)
    yield "exopd(lam 0.5)", m.exopd(lam=0.5)
    yield "exopd(domains)", m.exopd(domains={"easy": "first", "hard": "second"})
    yield "exopd_full(lam 0)", m.exopd_full(lam=0)
    yield "exopd_full(lam 2)", m.exopd_full(lam=2)
    yield "vopd(top 3)", m.vopd(top_k=3)
    yield "vopd(floor, reward)", m.vopd(top_k=2, floor=0.1, reward=True)
    yield "lightning_opd(advantage_clip)", m.lightning_opd(advantage_clip=0.5)
    yield "tip(rho 0.2)", m.tip(rho=0.2)
    yield "decoupled_kl(0.2, teacher's prefix)", m.decoupled_kl(lam=0.2, student_prefix=False)
    yield "decoupled_kl(levels)", m.decoupled_kl(levels=(4, 8))
    yield "brts(top 2)", m.brts(lam=0.5, top_k=2)
    yield "mad_opd(rkl, three)", m.mad_opd(("first", "second", "third"), rounds=1, tau=0.5, divergence="rkl")
    yield "mad_opd(no debate)", m.mad_opd(rounds=0)
    yield "tcod(every 3)", m.tcod(every=3)


def _self_taught_family() -> Iterator[tuple[str, Method]]:
    m = lb.methods
    for divergence in ("rkl", "jsd(0.5)"):
        yield f"opsd({divergence})", m.opsd(divergence=divergence)
        yield f"sdpo({divergence}, top 3)", m.sdpo(divergence=divergence, top_k=3, is_cap=1.1)
    yield "opsd(token clip)", m.opsd(token_clip=0.5)
    yield "opsd(entry clip)", m.opsd(entry_clip=0.05)
    yield "opsd(step feedback)", m.opsd(context="step_feedback")
    yield "sdpo(full)", m.sdpo(top_k=None, rate=0.01)
    yield "sdpo_trust_region(0.4, top 2)", m.sdpo_trust_region(mix=0.4, top_k=2)
    yield "sdpo_hybrid(0.5)", m.sdpo_hybrid(share=0.5)
    yield "srpo(beta 0, top 3)", m.srpo(beta=0, top_k=3)
    yield "srpo(beta 2)", m.srpo(beta=2, top_k=None)
    yield "distil(no future)", m.distil(future=False)
    yield "skill_sd(0.5)", m.skill_sd(lam=0.5)
    yield "tt_opd(4)", m.tt_opd(lam=4.0)
    for alpha in (0, 1):
        yield f"pi_distill(alpha {alpha})", m.pi_distill(alpha=alpha)
    yield "pi_distill(beta 0)", m.pi_distill(beta=0)
    yield "vpd(every step)", m.vpd(e_every=1)
    yield "vpd(at this step)", m.vpd(e_every=3, rate=0.0)
    yield "vpd(never)", m.vpd(e_every=None)
    yield "rltf_sd(second turn's mean)", m.rltf_sd(coef=0.5, first_turn_baseline=False, threshold=-2.0)
    yield "rltf_sd(linear)", m.rltf_sd(coef="linear(0, 0.1, 10)", gamma=0.9)
    yield "rltf_fm(0.5)", m.rltf_fm(coef=0.5)


def _compositions() -> Iterator[tuple[str, Method]]:
    """Methods that no paper of the registry describes, but that a user may build."""
    A, S = group_advantage(), sample(student, 4)
    k2 = Term(logp(teacher), sampled("k2"))
    yield "cispo", Method(S, Term(A, cispo(0.2, 0.2)), token_mean)
    yield "dual clip, cap", Method(S, Term(A, clip(0.2, 0.28, dual=3.0, cap=5.0)), fixed(10))
    yield "ratio by sequence", Method(S, Term(A, lb.axes.policy("ratio", pool="sequence")), sequence_sum)
    yield "rho k3", Method(S, Term(logp(teacher), sampled("k3", ratio=True)), sequence_mean)
    yield "routed", Method(S, routed(correct, Term(A, clip(0.2)), k2), sequence_mean)
    entropic = standardise(entropy(teacher), "batch").exp()
    yield "batch-wide weight", Method(S, Term(teacher, divergence_loss(rkl), weight=entropic), token_mean)
    yield "batch-wide weight that counts", Method(S, Term(teacher, divergence_loss(rkl), weight=entropic, per="weight"))
    yield (
        "batch-wide gate",
        Method(
            S,
            Term(teacher, divergence_loss(fkl), entropy(teacher) > entropy(teacher).over("batch", "mean")),
            sequence_mean,
        ),
    )
    yield "live weight", Method(S, Term(teacher, divergence_loss(rkl), weight=entropy(student)), sequence_mean)
    gate = importance(student, behavior, 2)
    yield "live gate as a weight", Method(S, Term(logp(teacher), sampled("k2"), weight=gate))
    skew = as_divergence("skew_rkl(0.1)")
    yield "divergence advantage", Method(S, Term(divergence_advantage(skew, teacher), ratio))
    yield "renyi advantage", Method(S, Term(divergence_advantage(as_divergence("renyi(2)"), teacher, student), ratio))
    yield "group normalised to-go", Method(S, Term(standardise(to_go(log_ratio(teacher), 1.0), "group"), clip(0.2)))
    yield "columns", Method(S, Term(column("told"), reinforce, weight=column("heft", "token")), token_mean)
    yield "entropy of the student", Method(S, Term(entropy(student), reinforce), token_mean)
    yield "constant", Method(S, Term(everywhere, ratio), sequence_mean)
    yield "every turn counts the same", Method(S, Term(teacher, divergence_loss(fkl), correct), turn_mean)
    yield "value in [0, 1]", Method(S, Term(entropy(teacher).sigmoid() * abs(log_ratio(teacher)), reinforce))
    at = divergence_loss(rkl, top_k=2, by="student", tail=False)
    yield "student's entries, normalised", Method(S, Term(teacher, at), sequence_mean)
    yield (
        "target's entries, normalised",
        Method(S, Term(teacher, divergence_loss(fkl, top_k=2, tail=False)), sequence_mean),
    )
    mixed = blend((teacher, 0.3), (ref, 0.7))
    yield "a blend as the target", Method(S, Term(mixed, divergence_loss("jsd(0.5)")))
    yield (
        "a blend of log-probs, warm",
        Method(S, Term(blend((teacher, 2.0), (ref, -0.5), space="log"), divergence_loss(fkl, 2.0))),
    )
    chosen = draw(entropy(old), 0.5, among=correct)
    yield "drawn among the correct", Method(S, Term(teacher, divergence_loss(rkl), chosen))
    yield (
        "judged",
        Method(
            S,
            Term(
                where(correct, 1.0, -1.0),
                logistic(0.5, logp(ref), running(log_ratio(old, ref).over("batch", "mean"), 0.5)),
            ),
            sequence_mean,
        ),
    )


BATCH, LENGTH, VOCABULARY, WIDTH = 8, 4, 7, 5
VARIANTS: dict[str, Method] = dict(_variants())
SLOTS = sorted({slot for m in VARIANTS.values() for slot in m.slots} | {"teacher", "ref", "init"})
CONTEXTS = sorted({c.column for m in VARIANTS.values() for c in m.contexts})
CONFIDENCE = sorted(
    {
        node.name
        for m in VARIANTS.values()
        for _, term in m.parts
        for v in term.exprs
        for node in v.walk()
        if isinstance(node, Column) and node.name[-1].isdigit()
    }
)
"""Columns in which debaters state how sure they are."""


def by_turn(method: Method) -> bool:
    """Whether it looks at the rewards of turns, and not only at their sum."""
    nodes: list[Expr] = [node for _, term in method.parts for v in term.exprs for node in v.walk()]
    return any(isinstance(n, Cohort) or (isinstance(n, ToGo) and n.level == Level.TURN) for n in nodes)


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
        out: dict[str, Any] = {name: g[name] for name in ("correct", "group", "turn")} | {"step": 3}
        if by_turn(method):
            kept = (self.mask[..., None] & (g["turn"][..., None] == torch.arange(g["share"].shape[1]))).any(1)
            out["turn_reward"] = torch.where(kept, g["reward"][:, None] * g["share"], 0.0)
        else:
            out["reward"] = g["reward"]
        slots = [s for s in method.slots if s != "old" or self.off_policy]
        out |= {f"{slot}_logits": g[f"{slot}_logits"] for slot in slots}
        if "label" in method.fields:
            out["label"] = g["label"]
        if len(method.sources) > 1:
            names = list(method.sources)
            out["source"] = [names[int(x) % len(names)] for x in g["group"]]
        told = {c.column for c in method.contexts}
        out["columns"] = {k: v for k, v in g.items() if k in COLUMNS and (k in told or not k.startswith("has "))}
        if self.off_policy:
            out |= {"old_logp": g["old_logp"], "rollout_logp": g["rollout_logp"]}
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

    def prepared(self, method: Method) -> tuple[Method, Prepared, Dense]:
        """The batch as a record built by hand (``lb.objective`` builds its own), prepared, and the live carrier."""
        args = self.arguments(method)
        live = Dense(self.rows(self.logits))
        now = live.logits_NV.detach().log_softmax(-1).gather(-1, self.rows(self.tokens)[:, None])[:, 0]
        scores = {r.key: Dense(self.rows(args[f"{s}_logits"])) for s, r in method.slots.items() if s != "old"}
        if self.off_policy:
            dense = "old" in method.slots
            old_ = Dense(self.rows(self.given["old_logits"])) if dense else Sampled(self.rows(self.given["old_logp"]))
            scores["old"] = old_
        else:
            scores["old"] = Dense(live.logits_NV.detach())
            method = method.on_policy()
        batch = Batch(self._record(method, args, now), scores, step=3)
        return method, prepare(method, batch), live

    def _record(self, method: Method, args: dict[str, Any], now: Tensor) -> Rollout:
        counts = self.mask.sum(-1)
        seq_N = torch.arange(BATCH).repeat_interleave(counts)
        start = torch.cat([torch.zeros(1, dtype=torch.int64), (counts + 1).cumsum(0)])
        pos = torch.arange(len(seq_N)) + seq_N + 1
        ids = torch.zeros(int(start[-1]), dtype=torch.int64)
        ids[pos] = self.rows(self.tokens)
        said = [sorted(set(turns[kept].tolist())) or [0] for turns, kept in zip(args["turn"], self.mask, strict=True)]
        turns = [(b, turn) for b, some in enumerate(said) for turn in some]
        turn_N = [turns.index((int(b), int(k))) for b, k in zip(seq_N, self.rows(args["turn"]), strict=True)]
        rewards = []
        for b, turn in turns:
            last = args["reward"][b] * (turn == said[b][-1]) if "reward" in args else None
            rewards.append(args["turn_reward"][b][turn] if last is None else last)
        names = tuple(method.sources)
        source = args.get("source", [names[0]] * BATCH)
        return Rollout(
            ids_L=ids,
            start_B1=start,
            root_B=torch.ones(BATCH, dtype=torch.int64),
            pos_N=pos,
            turn_N=torch.tensor(turn_N, dtype=torch.int64),
            seq_U=torch.tensor([b for b, _ in turns]),
            group_B=self.given["group"],
            author_N=torch.full_like(seq_N, STUDENT, dtype=torch.int8),
            rollout_logp_N=self.rows(self.given["rollout_logp"]) if self.off_policy else now,
            origin_B=torch.tensor([names.index(s) for s in source]),
            reward_U=torch.stack(rewards),
            correct_B=self.given["correct"],
            truncated_B=torch.zeros(BATCH, dtype=torch.bool),
            label_B=self.given["label"],
            sources=names,
            columns_B={k: v for k, v in args["columns"].items() if v.dim() == 1},
            columns_N={k: self.rows(v) for k, v in args["columns"].items() if v.dim() == 2},
        ).check()


PER_TOKEN = ("heft", "log π_teacher")
COLUMNS = ("told", "first reward", "domain=easy", "domain=hard", *PER_TOKEN, *CONTEXTS, *CONFIDENCE)
"""What ``given`` holds besides the named arguments."""


def make(seed: int = 0, off_policy: bool = True, scale: float = 1.0) -> Case:
    """Eight sequences of one to four tokens and one to three turns in four groups of two.

    Rewards and correctness are mixed, some sequences lack a context, and one debater did not say how sure it is.
    """
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, dtype=torch.float64, generator=gen)

    def spoken(z: Tensor) -> Tensor:
        return z.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    logits = randn(BATCH, LENGTH, VOCABULARY)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=gen)
    mask = torch.arange(LENGTH) < torch.tensor([4, 2, 3, 1, 4, 4, 2, 3])[:, None]
    correct_B = torch.tensor([True, False, False, False, True, True, False, True])
    near = logits + 0.3 * torch.randn(BATCH, LENGTH, VOCABULARY, dtype=torch.float64, generator=gen)
    given = {
        "reward": correct_B.double() + 0.1 * torch.randn(BATCH, dtype=torch.float64, generator=gen),
        "correct": correct_B,
        "label": torch.tensor([1.0, 0.0] * 4, dtype=torch.float64),
        "group": torch.arange(BATCH) // 2,
        "turn": torch.tensor(TURNS),
        "share": torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).expand(BATCH, 3),
        "old_logp": spoken(near),
        "rollout_logp": spoken(logits) + 0.2 * torch.randn(BATCH, LENGTH, dtype=torch.float64, generator=gen),
        "teacher_logits": randn(BATCH, LENGTH, VOCABULARY),
        "ref_logits": randn(BATCH, LENGTH, VOCABULARY),
        "old_logits": near,
        "told": torch.randn(BATCH, dtype=torch.float64, generator=gen),
        "heft": torch.rand(BATCH, LENGTH, dtype=torch.float64, generator=gen),
        "first reward": torch.rand(BATCH, dtype=torch.float64, generator=gen),
        "domain=easy": torch.arange(BATCH) % 3 != 0,
        "domain=hard": torch.arange(BATCH) % 3 == 0,
    }
    given["log π_teacher"] = spoken(given["teacher_logits"])
    for name in SLOTS:
        own = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
        rows = scale * torch.randn(BATCH, LENGTH, VOCABULARY, dtype=torch.float64, generator=own)
        given.setdefault(f"{name}_logits", rows)
    for i, name in enumerate(CONTEXTS):  # the first and the last group have every context, the others not
        given[name] = torch.tensor([True, True, i % 2 == 0, True, i % 2 == 1, True, True, True])
    for name in CONFIDENCE:
        given[name] = 100 * torch.rand(BATCH, dtype=torch.float64, generator=gen)
        given[name][2] = torch.nan
    return Case(logits, tokens, mask, given, off_policy)


TURNS = [[0, 0, 1, 2], [0, 1, 1, 1], [0, 0, 1, 1], [0] * 4, [0, 1, 1, 2], [0, 0, 0, 1], [0] * 4, [0, 1, 2, 2]]


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
