"""The training loop. It is the same for every method: a method is a value that it is given."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..axes.reader import Reader, old, teacher
from ..axes.scalar import move
from ..axes.surrogate import DivergenceLoss, Question
from ..errors import LimbeckError
from ..loss.terms import Batch, Loss, Prepared, loss, prepare
from ..math.divergence import fkl, rkl
from ..math.statistic import Distance, Entropy, LogProb
from ..types import DATA, Dense, Hidden, Rollout, Sampled, Scores
from .config import RunConfig
from .gradient_shares import add_squared_gradients
from .rollout.sources import write
from .rollout.writer import Failures
from .scoring.contexts import ContextViews
from .scoring.forward import run_model, score_record
from .session import Session


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of a step: linear warm-up, then the schedule. A function of the step, so it has no state."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    left = 1 - (step - config.warmup) / max(config.steps - config.warmup, 1)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left)))}
    return config.lr * max(shape[config.schedule], 0.0)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set the random state from (seed, step, rank), so that a resumed run needs no state of a generator."""
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + rank)


class Loop:
    """The training of one run. Accelerate has prepared the optimiser and the student's module already."""

    def __init__(self, session: Session, optimizer: Any):
        self.session, self.optimizer = session, optimizer
        self.config, self.accelerator = session.config, session.accelerator
        # With one update a batch the student at the start of the batch is the student itself, detached.
        method = session.method
        self.method = method.on_policy() if method.updates == 1 else method
        self.contexts = sorted(method.contexts, key=str)
        self.failures = Failures()  # of the newest batch, in this process

    # ---- the stages of a step
    def step(self, step: int) -> dict[str, Any]:
        """Train on one batch of prompts, step ``step`` (from 0). Returns its metrics."""
        timer = _Timer()
        seed_step(self.config.seed, step, self.accelerator.process_index)
        share = self.config.prompts // self.accelerator.num_processes
        record, self.failures = write(self.method.sources, self.session, share, step)
        timer.lap("seconds_write")
        views = ContextViews(record, self.session)
        record = views.with_columns(self.contexts)
        scores = self.read(views)
        timer.lap("seconds_read")
        record = record.to(self.accelerator.device)
        metrics = self.update(record, scores, step)
        timer.lap("seconds_train")
        counts = {"tokens_written": record.n_tokens, "tokens_read": record.ids_L.numel() * len(scores)}
        metrics |= {k: int(self._sum(v)) for k, v in counts.items()}
        metrics = {"step": step, **self._record_metrics(record), **metrics, **timer.laps, "seconds": timer.total}
        self.remember(step, views, metrics)
        return metrics

    def read(self, views: ContextViews) -> dict[str, Scores]:
        """The scores of each reader that the terms name, without gradient, on the record as that reader sees it."""
        asked = {r: a for r, a in self.method.views.items() if r == old or not r.is_policy}
        if teacher.role in self.session.policies and self.config.diagnostics:
            asked[teacher] = asked.get(teacher, frozenset()) | {"dense"}
        supports = [t.surrogate.support for _, t in self.method.parts if isinstance(t.surrogate, DivergenceLoss)]
        k = max((s.k for s in supports if s is not None and s.by == "target"), default=None)
        return {reader.key: self._view(reader, abilities, views, k) for reader, abilities in asked.items()}

    def _view(self, reader: Reader, abilities: frozenset[str], views: ContextViews, k: int | None) -> Scores:
        policy, record, tokens = self.session.policy(reader.role), views.seen_by(reader), self.config.micro_tokens
        n = sum(1 for _ in record.cuts(tokens))
        rounds = self._most(n) if policy is self.session.student else n  # only the student is wrapped
        return score_record(policy, record, abilities, tokens, k, rounds)

    def remember(self, step: int, views: ContextViews, metrics: Mapping[str, Any]) -> None:
        """Update the state that outlives a step: following weights, controllers, skills."""
        memory, student = self.session.state.memory, self.accelerator.unwrap_model(self.session.student.scorer)
        for follower in self.session.followers.values():
            follower.after(step, student)
        known = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        move(self.method.controllers, memory.numbers, step, known)
        for context in self.contexts:
            if context.bank is not None:
                views.learn(context)

    def update(self, record: Rollout, scores: dict[str, Scores], step: int) -> dict[str, Any]:
        """Update the student on one batch. Returns the metrics of the first update."""
        prepared = prepare(self.method, Batch(record, scores, step, self._sum, self.session.state.memory.numbers))
        rate = learning_rate(self.config, step)
        metrics: dict[str, Any] = {"lr": rate}
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        cuts = list(prepared.record.cuts(self.config.micro_tokens))
        rounds = self._most(len(cuts))
        for update in range(self.method.updates):
            self.optimizer.zero_grad(set_to_none=True)
            squares = {p.name: 0.0 for p in prepared.parts} if update == 0 and self._evaluates(step) else None
            losses = [self._backward(prepared.micro(*cut), i == rounds, squares) for i, cut in enumerate(cuts, 1)]
            for i in range(len(cuts) + 1, rounds + 1):
                self._keep_step(prepared.record, i == rounds)
            self._refuse_divergence(sum(float(r.loss.detach()) for _, r in losses), step)
            norm = self.accelerator.clip_grad_norm_(self.session.student.scorer.parameters(), self.config.clip_norm)
            self.optimizer.step()
            if update == 0:
                metrics |= self._loss_metrics(prepared, losses, float(norm)) | self._share_metrics(squares or {})
        return metrics

    def _evaluates(self, step: int) -> bool:
        """Whether an evaluation follows this step, or it is the first. It does not depend on the length of the run."""
        every = self.config.eval_every
        return step == 0 or bool(every and (step + 1) % every == 0)

    def _refuse_divergence(self, value: float, step: int) -> None:
        """Stop before a loss of NaN or infinity changes the weights; earlier checkpoints stay."""
        if not math.isfinite(float(self._sum(value))):
            raise LimbeckError(
                f"the loss is {value} at step {step} with lr={learning_rate(self.config, step):g}: the run has "
                "diverged; lower lr (or the coefficient), and start again or resume from the last checkpoint."
            )

    # ---- forward and backward
    def _keep_step(self, record: Rollout, last: bool) -> None:
        """Run a micro-batch with a loss of zero, on a process that has fewer micro-batches than another.

        Wrappers exchange parameters and gradients in every forward and backward, so that a process which did fewer of
        them would leave the others waiting.
        """
        with self._waiting(last):
            nothing: Tensor = run_model(self.session.student, record.groups(0, 1)[0], _nothing)
            self.accelerator.backward(nothing)

    def _waiting(self, last: bool) -> Any:
        """A context in which only the last micro-batch synchronises gradients."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.session.student.scorer)

    def _backward(self, micro: Prepared, last: bool, squares: dict[str, float] | None = None) -> tuple[Prepared, Loss]:
        student = self.session.student

        def objective(live: Dense | Hidden) -> Loss:
            if squares is not None:
                add_squared_gradients(self.method, micro, live, squares)
            return loss(self.method, micro, live, self._questions(micro))

        with self._waiting(last):
            result: Loss = run_model(student, micro.record, objective)
            # DDP averages gradients over processes; ours are shares of a global sum.
            self.accelerator.backward(result.loss * self.accelerator.num_processes)
        return micro, result

    def _questions(self, micro: Prepared) -> tuple[Question, ...]:
        """Statistics of the live student that are measured in addition to the loss."""
        if not self.config.diagnostics:
            return ()
        asked: tuple[Question, ...] = (Question(LogProb()), Question(Entropy()))
        if isinstance(micro.scores.get(teacher.role), Dense | Hidden):
            asked += (Question(Distance(rkl), teacher), Question(Distance(fkl), teacher))
        return asked

    # ---- numbers
    def _sum(self, x: Tensor | float) -> Tensor:
        """The sum over processes."""
        value = torch.as_tensor(x, device=self.accelerator.device)
        if self.accelerator.num_processes == 1:
            return value
        reduced: Tensor = self.accelerator.reduce(value, "sum")
        return reduced

    def _most(self, n: int) -> int:
        """The maximum over processes."""
        if self.accelerator.num_processes == 1:
            return n
        counts: Tensor = self.accelerator.gather(torch.tensor([n], device=self.accelerator.device))
        return int(counts.max())

    def _loss_metrics(self, prepared: Prepared, losses: list[tuple[Prepared, Loss]], norm: float) -> dict[str, Any]:
        out: dict[str, Any] = {"loss": float(self._sum(sum(float(r.loss.detach()) for _, r in losses)))}
        out["grad_norm"] = norm
        for part in prepared.parts:
            out[f"coef/{part.name}"] = part.coefficient
            out[f"term/{part.name}/loss"] = float(self._sum(sum(r.terms[part.name] for _, r in losses)))
        names = ("logp", "entropy", "kl_reverse", "kl_forward")
        tokens = float(self._sum(float(prepared.record.n_tokens)))
        for i, name in enumerate(names[1:], 1):
            if losses and len(losses[0][1].observed) > i:
                total = sum(float(r.observed[i].double().sum()) for _, r in losses)
                out[name] = float(self._sum(total)) / max(tokens, 1.0)
        taught = prepared.scores.get(teacher.role)
        if "kl_reverse" not in out and isinstance(taught, Sampled) and losses[0][1].observed:
            gap = torch.cat([r.observed[0] for _, r in losses]).double() - taught.logp_N.double()
            out["kl_reverse"] = float(self._sum(float(gap.sum()))) / max(tokens, 1.0)
        return out

    def _share_metrics(self, squares: dict[str, float]) -> dict[str, float]:
        """Norm of each term's gradient, and its share of their sum."""
        norms = {name: math.sqrt(float(self._sum(square))) for name, square in squares.items()}
        total = sum(norms.values())
        shares = {f"term/{name}/gradient_share": norm / total if total else 0.0 for name, norm in norms.items()}
        return {f"term/{name}/grad_norm": norm for name, norm in norms.items()} | shares

    def _signal_metrics(self, record: Rollout, judged: Tensor) -> dict[str, float]:
        """Shares of sampled responses that end with an end token, and of judged groups whose rewards differ."""
        out = {}
        last_B = torch.full((record.n_sequences,), -1, dtype=torch.int64, device=record.seq_N.device)
        last_B.scatter_reduce_(0, record.seq_N, torch.arange(record.n_tokens, device=last_B.device), "amax")
        last_B = last_B[last_B >= 0]
        last_B = last_B[record.author_N[last_B] != DATA]
        stops = torch.tensor(self.session.student.eos, device=last_B.device)
        ended = float(self._sum(float(torch.isin(record.token_N[last_B], stops).sum())))
        if sampled := float(self._sum(float(last_B.numel()))):
            out["ended"] = ended / sampled
        reward_B = torch.zeros(record.n_sequences, dtype=torch.float64, device=record.reward_U.device)
        reward_B.index_add_(0, record.seq_U, record.reward_U.double().nan_to_num(0.0))
        size_G = torch.bincount(record.group_B[judged], minlength=record.n_groups)
        ends = [torch.zeros(record.n_groups, dtype=torch.float64, device=reward_B.device) for _ in range(2)]
        for end, how in zip(ends, ("amin", "amax"), strict=True):
            end.scatter_reduce_(0, record.group_B[judged], reward_B[judged], how, include_self=False)
        differ = float(self._sum(float(((ends[0] != ends[1]) & (size_G > 1)).sum())))
        if groups := float(self._sum(float((size_G > 1).sum()))):
            out["groups_with_signal"] = differ / groups
        return out

    def _record_metrics(self, record: Rollout) -> dict[str, Any]:
        sequences = float(self._sum(float(record.n_sequences)))
        out: dict[str, Any] = {"length": float(self._sum(float(record.n_tokens))) / max(sequences, 1.0)}
        out["truncated"] = float(self._sum(float(record.truncated_B.sum()))) / max(sequences, 1.0)
        verified_B = torch.zeros(record.n_sequences, dtype=torch.bool, device=record.reward_U.device)
        verified_B[record.seq_U[~record.reward_U.isnan()]] = True
        out |= self._signal_metrics(record, verified_B)
        count = float(self._sum(float(verified_B.sum())))
        if count:
            out["reward"] = float(self._sum(float(record.reward_U.double().nansum()))) / count
            out["accuracy"] = float(self._sum(float(record.correct_B[verified_B].sum()))) / count
        serves = self.session.tasks["task"].serves
        if "episodes" in serves:
            out["episodes_died"] = int(self._sum(len(self.failures.died)))
        elif "reward" in serves:
            out["verifier_failed"] = int(self._sum(len(self.failures.unjudged)))
        if record.n_turns > record.n_sequences:
            out["turns"] = float(self._sum(float(record.n_turns))) / max(sequences, 1.0)
        return out


def _nothing(scores: Dense | Hidden) -> Tensor:
    """Zero, as a function of every parameter that a loss depends on."""
    if isinstance(scores, Dense):
        return 0.0 * scores.logits_NV.sum()
    head = scores.head
    bias = 0.0 if head.bias_V is None else head.bias_V.sum()
    return 0.0 * (scores.hidden_NH.sum() + head.weight_VH.sum() + bias)


class _Timer:
    """Seconds of each stage of a step."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return self.last - self.start
