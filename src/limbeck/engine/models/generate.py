"""Batched sampling with the log-probs of the behaviour policy, on Hugging Face ``generate``.

The next-token distribution is ``softmax(logits / tau)`` on the shared vocabulary, or a mixture of such distributions.
Top-k and top-p of a model's generation config are ignored, because a truncated distribution gives zero probability
to tokens that the losses need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...errors import LimbeckError
from .checks import HALF, accepted, weight_dtype
from .policy import Policy, causal_model
from .weights import FULL


@dataclass(frozen=True)
class Written:
    """One response.

    Attributes:
        ids: the tokens, the end token included where there is one.
        logp: their log-probs in nats, under the distribution from which they were sampled; same length.
        truncated: whether it was cut at the limit.
    """

    ids: list[int]
    logp: list[float]
    truncated: bool


@dataclass(frozen=True)
class SamplingPolicy:
    """The policies that are sampled from, with weights that sum to 1, at a temperature; ``tau = 0`` is greedy.

    Attributes:
        parts: policies and their weights.
        tau: divides the logits of all.
        heats: temperatures of the parts, which multiply ``tau``; empty: 1 each.
    """

    parts: tuple[tuple[Policy, float], ...]
    tau: float = 1.0
    heats: tuple[float, ...] = ()


class _LogprobRecorder(LogitsProcessor):
    """Replaces the first policy's logits by log-probs of the mixture, and keeps them until the next token is known."""

    def __init__(self, sampling: SamplingPolicy, mask_BT: Tensor):
        self.sampling, self.mask_BT = sampling, mask_BT
        self.caches: list[object | None] = [None for _ in sampling.parts]
        self.last_BV: Tensor | None = None
        self.logp: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note(input_ids[:, -1])
        parts = []
        for i, (policy, weight) in enumerate(self.sampling.parts):
            logits = scores if i == 0 else self._next_logits(i, policy, input_ids)
            logits = logits.float().clone()
            logits[:, policy.vocabulary :] = -torch.inf
            tau = (self.sampling.tau or 1.0) * (self.sampling.heats[i] if self.sampling.heats else 1.0)
            parts.append((logits / tau).log_softmax(-1)[:, : policy.vocabulary] + torch.tensor(weight).log())
        mixed = parts[0] if len(parts) == 1 else torch.stack(parts).logsumexp(0)
        self.last_BV = mixed
        out = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        out[:, : mixed.shape[1]] = mixed
        return out

    def note(self, token_B: Tensor) -> None:
        """Record the log-prob of the token that was sampled last."""
        if self.last_BV is not None:
            inside = token_B.clamp(max=self.last_BV.shape[1] - 1)
            self.logp.append(self.last_BV.gather(1, inside.unsqueeze(1)).squeeze(1))

    def _next_logits(self, i: int, policy: Policy, input_ids: Tensor) -> Tensor:
        """A further policy's logits after the same text, with its own cache."""
        new = input_ids.shape[1] - self.mask_BT.shape[1]
        if new:
            self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(self.mask_BT.shape[0], new)], dim=1)
        position = (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        cached = self.caches[i] is not None
        own = {"position_ids": position[:, -1:] if cached else position, "past_key_values": self.caches[i]}
        own = accepted(policy.model, **own, use_cache=True)
        out = policy.model(input_ids=input_ids[:, -1:] if cached else input_ids, attention_mask=self.mask_BT, **own)
        # A state-space model has no such cache: it reads the whole text again.
        self.caches[i] = getattr(out, "past_key_values", None) if "past_key_values" in own else None
        logits: Tensor = out.logits[:, -1]
        return logits


@torch.no_grad()
def generate(sampling: SamplingPolicy, prompts: Sequence[list[int]], max_tokens: int, batch: int) -> list[Written]:
    """One response per prompt (repeat a prompt for several).

    Random numbers come from torch's global generator; seed it for reproducible text.

    Args:
        sampling: the policies that are sampled from.
        prompts: token ids.
        max_tokens: limit of a response.
        batch: number of sequences at once.
    """
    for policy, _ in sampling.parts:
        check_writing(policy)
    return _write(sampling, prompts, max_tokens, batch)


def _write(sampling: SamplingPolicy, prompts: Sequence[list[int]], max_tokens: int, batch: int) -> list[Written]:
    """One response per prompt, in batches that every policy reads as it reads a single text."""
    order = list(range(len(prompts)))
    alike = [order]
    ways = {policy.writes for policy, _ in sampling.parts}
    if ways != {"padded"}:
        alike = [[i for i in order if len(prompts[i]) == n] for n in sorted({len(p) for p in prompts})]
    at_once = 1 if "alone" in ways else batch
    out: dict[int, Written] = {}
    for rows in alike:
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            out |= zip(some, _generate(sampling, [prompts[i] for i in some], max_tokens), strict=True)
    return [out[i] for i in order]


PROBES = ((3,), (5,), (2, 6, 3, 1), (4, 1, 5, 2))
"""Prompts that a model answers for its check: of several lengths, one token included."""


def check_writing(policy: Policy) -> None:
    """Find, once, the largest batches in which a model samples with the log-probs of a single pass over the text.

    A recurrent model reads padding as text, and some models mix the rows of a batch in their state.

    Raises:
        LimbeckError: where the log-probs differ even for single prompts.
    """
    if policy.writes:
        return
    for way in ("padded", "alike", "alone"):
        policy.inner.writes = way
        try:
            gap = _gap(policy)
        except (*FULL, LimbeckError):
            raise
        except Exception as e:  # generation without a fitting cache may raise any exception
            message = next(iter(str(e).strip().splitlines()), type(e).__name__).rstrip(" .:")
            raise LimbeckError(
                f"{policy.name!r} cannot write: generate fails on a short prompt ({message}); give another model, or "
                "upgrade Transformers."
            ) from None
        if gap <= (0.3 if weight_dtype(policy.model) in HALF else 1e-2):
            return
    raise LimbeckError(
        f"{policy.name!r} writes with log-probs that are {gap:.2g} nats from those of one pass over the same text, "
        "so its cache does not work in this version of Transformers; give another model, or upgrade Transformers."
    )


@torch.no_grad()
def _gap(policy: Policy) -> float:
    """Largest difference in nats between log-probs of sampled tokens and those of one pass over the text."""
    prompts = [[i % policy.vocabulary for i in probe] for probe in PROBES]
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(0)
        texts = _write(SamplingPolicy(((policy, 1.0),)), prompts, 4, len(prompts))
    gap = 0.0
    with _neutral(policy) as model:
        for prompt, written in zip(prompts, texts, strict=True):
            ids = torch.tensor([prompt + written.ids], device=policy.device)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            logp_NV = logits[0, len(prompt) - 1 : -1, : policy.vocabulary].float().log_softmax(-1)
            inside = [(n, i) for n, i in enumerate(written.ids) if i < policy.vocabulary]
            gap = max(gap, *(abs(float(logp_NV[n, i]) - written.logp[n]) for n, i in inside), 0.0)
    return gap


@contextmanager
def _neutral(policy: Policy) -> Iterator[Any]:
    """The model without generation settings of its own, in evaluation mode.

    Transformers fills values that a generation config leaves open from the model's own (``min_p``, ``suppress_tokens``
    ...), and gradient checkpointing, which is active in training mode only, drops the cache of a generating model.
    """
    model = causal_model(policy.model)
    own, training = model.generation_config, [m for m in model.modules() if m.training]
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield model
    finally:
        model.generation_config = own
        for module in training:  # one by one: with gradient checkpointing, only some are in training mode
            module.training = True


def _generate(sampling: SamplingPolicy, prompts: Sequence[list[int]], max_tokens: int) -> list[Written]:
    policy = sampling.parts[0][0]
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[policy.pad] * (width - len(p)) + p for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    writer = _LogprobRecorder(sampling, mask)
    untruncated = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampling.tau > 0 else {}
    config = GenerationConfig(
        do_sample=sampling.tau > 0,
        **untruncated,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_tokens,
        pad_token_id=policy.pad,
        eos_token_id=list(policy.eos),
    )
    processors = LogitsProcessorList([writer])
    with _neutral(policy) as model:
        try:
            full = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
            )
        except RuntimeError as e:
            if "probability tensor contains" not in str(e):
                raise
            raise LimbeckError(
                f"{policy.name!r} gives next-token probabilities of NaN or infinity: its weights have diverged; lower "
                "lr (or the coefficient), and start again or resume from the last checkpoint."
            ) from None
    writer.note(full[:, -1])
    logp_BT = torch.stack(writer.logp, dim=1)
    ends = set(policy.eos)
    written = []
    for row, logps in zip(full[:, width:].tolist(), logp_BT.tolist(), strict=True):
        stop = next((t + 1 for t, token in enumerate(row) if token in ends), None)
        n = len(row) if stop is None else stop
        written.append(Written(row[:n], logps[:n], stop is None))
    return written
