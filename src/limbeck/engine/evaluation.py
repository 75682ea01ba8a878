"""Evaluation of a student on held-out problems: accuracy, and its distance to the teacher."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..axes.levels import Levels
from ..axes.source import sample
from ..errors import LimbeckError, shown
from ..evaluate import pass_at_k, ratio_interval, wilson
from ..kernels.tiles import StatisticRequest, statistics
from ..math.divergence import fkl, rkl
from ..math.statistic import Distance, Entropy, LogProb
from ..space.method import Method
from ..tasks import Task
from ..types import DATA, STUDENT, TEACHER, Dense, Hidden, Prompt, Rollout
from .models.generate import SamplingPolicy, generate
from .models.policy import Policy
from .rollout.episodes import write_episodes
from .rollout.sources import write_sample, writer_for
from .rollout.trajectory import assemble, single
from .rollout.writer import Failures, judge_all, refuse_empty
from .scoring.contexts import last_text
from .scoring.forward import run_model
from .session import Session

CUT = 0.5
"""Share of cut responses before training from which a notice is printed (ours)."""

JUDGED = frozenset({"reward", "correct"})
"""Record fields that a verifier fills."""


@dataclass
class Evaluator:
    """Measures the student on the same held-out problems every time.

    Attributes:
        session: of the run; distances are measured to the ``teacher`` among its policies. Failures of environments and
            verifiers during a measurement are not counted as those of a step.
    """

    session: Session

    def __post_init__(self) -> None:
        config, test = self.session.config, self.task.test
        prompts = [test[i] for i in range(min(config.eval_size, len(test)))]
        self.prompts: list[Prompt] = [p for p in prompts if not config.skip_overlong or self.session.renderer.fits(p)]
        self._reference: Rollout | None = None
        self.newest: dict[str, Any] = {}

    @property
    def task(self) -> Task:
        """The run's own task."""
        return self.session.tasks["task"]

    def measure(self) -> dict[str, Any]:
        """Greedy accuracy, and statistics over the student's greedy responses; keys that are not known are absent."""
        record, failures = self._greedy(self.session.policies["student"], STUDENT, self.prompts)
        failed = len(failures.unjudged)
        if failed == len(self.prompts):
            raise LimbeckError(
                f"the verifier of {shown(self.task.name)} judged no response of the evaluation ({failed} of them; the "
                f"first: {failures.unjudged[0]}); fix the verifier, give it more time (verify_seconds), or set "
                "eval_size=0."
            )
        out: dict[str, Any] = {"n": len(self.prompts), "length": float(record.length_B.double().mean())}
        out["truncated"] = float(record.truncated_B.double().mean())
        if "reward" in self.task.serves:
            correct = self._correct(record)
            low_high = wilson(sum(correct), len(correct))
            out |= {"accuracy": low_high.mean, "low": low_high.low, "high": low_high.high}
            out |= {"reward": float(record.reward_U.double().nanmean()), "correct": correct}
            out |= {"verifier_failed": failed} if failed else {}
            out |= clustered_interval("reward", record.reward_U, record.seq_U, record.n_sequences)
        stats = self.statistics(record)
        out |= clustered_interval("length", record.length_B, torch.arange(record.n_sequences), record.n_sequences)
        for name, values in stats.items():
            if name != "logp":
                out |= {name: float(values.double().mean())} | clustered_interval(
                    name, values, record.seq_N, record.n_sequences
                )
        if "episodes" in self.task.serves:
            out |= turn_measures(record, stats)
        self.newest = out
        return out | self._reference_measures()

    def _correct(self, record: Rollout) -> list[int]:
        """1 for each prompt that was solved; a broken episode is a failed one."""
        right = {id(p) for p, c in zip(record.prompts_B, record.correct_B.tolist(), strict=True) if c}
        return [int(id(p) in right) for p in self.prompts]

    def teacher_accuracy(self) -> dict[str, Any]:
        """The teacher's own greedy accuracy on the same problems; empty where it is not known.

        Its responses are also those on which the student's perplexity is measured, so they are generated only once.
        """
        if self._reference is None or "teacher" not in self.session.policies or "reward" not in self.task.serves:
            return {}
        correct = self._correct(self._reference)
        interval = wilson(sum(correct), len(correct))
        return {"accuracy": interval.mean, "low": interval.low, "high": interval.high, "n": len(correct)}

    def first_notices(self, method: Method) -> list[str]:
        """Notices from the newest measurement, before the first step."""
        if not self.newest:
            return []
        limit = self.session.config.max_tokens
        return unsolved(self.newest, self.teacher_accuracy(), limit, bool(method.fields & JUDGED))

    def _greedy(self, policy: Policy, author: int, prompts: Sequence[Prompt]) -> tuple[Rollout, Failures]:
        """Greedy responses to some prompts."""
        greedy = SamplingPolicy(((policy, 1.0),), tau=0.0)
        if "episodes" in self.task.serves:
            writer = writer_for(self.session, len(prompts), 0)
            record = assemble(write_episodes(sample(), writer, prompts, greedy), "main")
            refuse_empty(writer, record, "of the evaluation")
            return record, writer.failures
        failures, ids = Failures(), [self.session.renderer.prompt_ids(p) for p in prompts]
        texts = generate(greedy, ids, self.session.config.max_tokens, self.session.config.generate_batch)
        rows = [
            single(p, i, w.ids, w.logp, author, w.truncated, verdict)
            for p, i, w, verdict in zip(
                prompts, ids, texts, judge_all(self.session, prompts, texts, failures), strict=True
            )
        ]
        return assemble([[row] for row in rows], "main"), failures

    def _reference_measures(self) -> dict[str, Any]:
        """Perplexity on fixed texts: the teacher's greedy responses, else the responses of the data."""
        if self._reference is None:
            self._reference = self._reference_record()
        if self._reference is None:
            return {}
        stats = self.statistics(self._reference)
        out: dict[str, Any] = {"perplexity": math.exp(-float(stats["logp"].double().mean()))}
        logp = clustered_interval("logp", stats["logp"], self._reference.seq_N, self._reference.n_sequences)
        if logp and (low := logp["logp_interval"][0]) > -700:  # beyond it no float holds the perplexity
            out["perplexity_interval"] = [math.exp(-logp["logp_interval"][1]), math.exp(-low)]
        if "kl_forward" in stats:
            out["kl_forward_reference"] = float(stats["kl_forward"].double().mean())
        return out

    def _reference_record(self) -> Rollout | None:
        teacher = self.session.policies.get("teacher")
        if teacher is not None:
            return self._greedy(teacher, TEACHER, self.prompts)[0]
        if "responses" not in self.task.serves:
            return None
        rows = []
        for p in self.prompts:
            ids = self.session.renderer.response_ids(p, self.task.responses(p)[0])[: self.session.config.max_tokens]
            rows.append(single(p, self.session.renderer.prompt_ids(p), ids, None, DATA))
        return assemble([[row] for row in rows], "main")

    @torch.no_grad()
    def statistics(self, record: Rollout) -> dict[str, Tensor]:
        """Per scored token, ``[N]`` each: ``logp``, ``entropy``, and with a teacher both KLs and its log-prob."""
        teacher = self.session.policies.get("teacher")
        parts: dict[str, list[Tensor]] = {}
        for first, last in record.cuts(self.session.config.micro_tokens):
            part = record.groups(first, last)[0]
            target = None if teacher is None else run_model(teacher, part, _still)
            answers = run_model(self.session.policies["student"], part, partial(_ask, part=part, target=target))
            for name, values in answers.items():
                parts.setdefault(name, []).append(values.cpu())
        return {name: torch.cat(values) for name, values in parts.items()}

    def samples(self, n: int = 10) -> list[dict[str, Any]]:
        """Rollouts of the student with per-token statistics, for people to look at."""
        record, _ = self._greedy(self.session.policies["student"], STUDENT, self.prompts[:n])
        stats = self.statistics(record)
        return [self._sample(record, stats, b) for b in range(record.n_sequences)]

    def _sample(self, record: Rollout, stats: dict[str, Tensor], b: int) -> dict[str, Any]:
        tokenizer = self.session.student.tokenizer
        mine = record.seq_N == b
        ids: list[int] = record.token_N[mine].tolist()
        prompt = record.prompts_B[b]
        verified = "reward" in self.task.serves
        turns = _turns(record, b, tokenizer) if "episodes" in self.task.serves else {}
        return turns | {
            "prompt": last_text(prompt),
            "response": str(tokenizer.decode(ids, skip_special_tokens=True)),
            "tokens": [str(tokenizer.decode([i])) for i in ids],
            "student_logp": stats["logp"][mine].tolist(),
            "teacher_logp": stats["teacher_logp"][mine].tolist() if "teacher_logp" in stats else [None] * len(ids),
            "kl": stats["kl_reverse"][mine].tolist() if "kl_reverse" in stats else [],
            "entropy": stats["entropy"][mine].tolist(),
            "reward": float(record.reward_U[record.seq_U == b].sum()) if verified else None,
            "correct": bool(record.correct_B[b]) if verified else None,
            "answer": prompt.privileged.get("answer"),
        }

    def pass_at(self, samples: int, ks: Sequence[int]) -> dict[int, float]:
        """pass@k from sampled responses (Chen et al. 2021)."""
        record = write_sample(sample(n=samples), writer_for(self.session, len(self.prompts), 0), self.prompts)
        solved = Counter(id(p) for p, c in zip(record.prompts_B, record.correct_B.tolist(), strict=True) if c)
        counts = np.array([solved[id(p)] for p in self.prompts])  # an episode that broke off has failed
        return {k: float(pass_at_k(samples, counts, k).mean()) for k in ks if k <= samples}


def clustered_interval(name: str, values: Tensor, owner: Tensor, problems: int) -> dict[str, list[float]]:
    """The 95% interval of a mean, as ``{"NAME_interval": [low, high]}``; empty with fewer than two problems.

    Args:
        name: of the number.
        values: those that were averaged, one a token, a turn or a response.
        owner: the problem of each value; values of one problem depend on each other.
        problems: number of problems.
    """
    total_B = torch.zeros(problems, dtype=torch.float64).index_add_(0, owner.cpu(), values.double().cpu())
    count_B = torch.bincount(owner.cpu(), minlength=problems)
    interval = ratio_interval(total_B.tolist(), count_B.tolist())
    if not math.isfinite(interval.low):
        return {}
    # Student's interval has no bounds, but a divergence is not negative, and no mean is below its smallest value. Where
    # all values are equal, rounding must not put their mean outside of the interval.
    mean = float(values.double().mean())
    low = max(interval.low, min(0.0, float(values.min())))
    return {f"{name}_interval": [min(low, mean), max(interval.high, mean)]}


def unsolved(measured: Mapping[str, Any], teacher: Mapping[str, Any], max_tokens: int, rewarded: bool) -> list[str]:
    """Notices about a run that will hardly learn, before its first step.

    Args:
        measured: of the student.
        teacher: its teacher's accuracy, or nothing.
        max_tokens: limit of a response.
        rewarded: whether the method learns from rewards.
    """
    n, notes = measured["n"], []
    if (cut := measured["truncated"]) >= CUT:
        notes.append(
            f"note: {cut:.0%} of the student's responses to {n:,} held-out problems are cut at max_tokens={max_tokens} "
            "before training; raise max_tokens where answers need more, or ask for shorter ones."
        )
    if measured.get("accuracy") == 0:
        remedy = "take easier tasks, or train on demonstrations (sft) first"
        why = f", so that few rewards will differ; {remedy}, or more responses a prompt" if rewarded else f"; {remedy}"
        notes.append(f"note: the student solves none of {n:,} held-out problems before training{why}.")
    if teacher.get("accuracy") == 0:
        notes.append(
            f"note: the teacher solves none of {teacher['n']:,} held-out problems, and its accuracy is what a student "
            "reaches by imitation; name another teacher, check its chat template, or raise max_tokens."
        )
    return notes


def turn_measures(record: Rollout, stats: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Measures by turn of an episode: means over tokens, and the number of episodes that reached the turn."""
    place_U = Levels(record).turn() - 1
    turn_N, K = place_U[record.turn_N], int(place_U.max()) + 1
    count_K = torch.bincount(turn_N, minlength=K)
    out = {"episodes_by_turn": [float(x) for x in torch.bincount(place_U, minlength=K)]}
    for name in ("kl_reverse", "kl_forward", "entropy"):
        if name in stats:
            total_K = torch.zeros(K, dtype=torch.float64).index_add_(0, turn_N, stats[name].double())
            out[f"{name}_by_turn"] = (total_K / count_K.clamp(min=1)).tolist()
    return out


def _turns(record: Rollout, b: int, tokenizer: Any) -> dict[str, Any]:
    """The turn of each token of an episode (from 1), the environment's text between turns, and each turn's reward."""
    turns = (record.seq_U == b).nonzero().squeeze(-1).tolist()
    places = [record.pos_N[record.turn_N == u].tolist() for u in turns]
    texts = []
    for now, later in itertools.pairwise(places):
        between = record.ids_L[now[-1] + 1 : later[0]].tolist() if now and later else []
        texts.append(str(tokenizer.decode(between, skip_special_tokens=True)).strip())
    return {
        "turn": [k for k, own in enumerate(places, 1) for _ in own],
        "said": texts,
        "rewards": [float(record.reward_U[u]) for u in turns],
    }


def _still(scores: Dense | Hidden) -> Dense | Hidden:
    return scores.detach()


def _ask(scores: Dense | Hidden, part: Rollout, target: Dense | Hidden | None) -> dict[str, Tensor]:
    token_N = part.token_N.to(scores.device)
    asks = {"logp": StatisticRequest(LogProb()), "entropy": StatisticRequest(Entropy())}
    if target is not None:
        asks |= {
            "kl_reverse": StatisticRequest(Distance(rkl), None, target),
            "kl_forward": StatisticRequest(Distance(fkl), None, target),
        }
    out = dict(zip(asks, statistics(scores.detach(), token_N, list(asks.values())), strict=True))
    if target is not None:
        out["teacher_logp"] = statistics(target, token_N, [StatisticRequest(LogProb())])[0]
    return out
