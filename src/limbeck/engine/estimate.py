"""An estimate of a run without a forward pass: tokens and memory of a step, and the time of the whole.

Time is the larger of two bounds, floating-point operations at the speed of a matrix product and weights at the speed of
memory, plus a constant for every layer of every pass. All three speeds are measured here, in less than a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..axes.reader import Blend
from ..axes.source import Data, Sample
from ..types import Prompt
from .checks import data_sources, samples
from .session import Session

LOOKED_AT = 200
"""Training prompts whose tokens are counted."""

FACTOR = 4
"""Factor by which the time may be wrong either way, at equal response lengths (ours: runs of small models on a CPU)."""

ADAM_BYTES = 16
"""Bytes of a trained parameter: float32 weight, gradient, and AdamW's two averages."""

ACTIVATIONS = 34
"""Numbers that a layer keeps for the backward pass, by token and unit of width (arXiv:2205.05198, table 2, in bytes of
half precision: 34 s b h, so 17 numbers; attention's own and the gradients of both about double them)."""

OPERATIONS = 40
"""Small operations of one layer in a forward pass: projections, norms, rotations, attention, activation."""


@dataclass(frozen=True)
class Speed:
    """Measured speeds of this machine.

    Attributes:
        flops: floating-point operations a second of a matrix product, in the run's precision.
        bytes: bytes that memory delivers in a second.
        operation: seconds that one small operation takes to start.
        device: on which they were measured.
    """

    flops: float
    bytes: float
    operation: float
    device: str


def measured_speed(device: torch.device, precision: str) -> Speed:
    """Speeds of a device; about 0.3 s."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    n = 512 if device.type == "cpu" else 4096
    with torch.no_grad():
        a, b = (torch.ones(n, n, device=device, dtype=kind) for _ in range(2))
        large, there = (torch.ones(1 << 23, device=device) for _ in range(2))
        small = torch.ones(1, 16, device=device)
        product = _seconds(lambda: torch.mm(a, b), device)
        copy = _seconds(lambda: there.copy_(large), device)
        start = _seconds(lambda: torch.add(small, 1.0), device)
    return Speed(2 * n**3 / product, 2 * 4 * large.numel() / copy, start, str(device))


def _seconds(call: Callable[[], object], device: torch.device, budget: float = 0.1) -> float:
    """Seconds of one call, on average over a tenth of a second."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    wait()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < budget:
        call()
        n += 1
        if n % 16 == 0:
            wait()
    wait()
    return (time.perf_counter() - start) / n


# ---------------------------------------------------------------- sizes


@dataclass(frozen=True)
class Size:
    """The numbers of a model that decide its cost.

    Attributes:
        parameters: all of them.
        active: those that a token is multiplied with: without the table of embeddings and experts that are not chosen.
        trained: those that get a gradient.
        layers, width: number of blocks, and their hidden size.
        cache: numbers that generation keeps for each token.
    """

    parameters: int
    active: int
    trained: int
    layers: int
    width: int
    cache: int


def size_of(model: Any) -> Size:
    """The size of a model, which need not have its weights."""
    config = model.config.get_text_config()
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    chosen = getattr(config, "num_experts_per_tok", None) or experts
    share = chosen / experts if experts else 1.0
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and isinstance(head, nn.Module) and getattr(head, "weight", None) is table
    active = sum(p.numel() * (share if ".experts." in name else 1.0) for name, p in model.named_parameters())
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1))
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    wide = int(getattr(config, "head_dim", None) or width // heads)
    return Size(
        sum(p.numel() for p in model.parameters()),
        int(active) - (0 if tied else table.numel()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers,
        width,
        2 * layers * keys * wide,
    )


# ---------------------------------------------------------------- lengths


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and of written responses, over the first training prompts."""

    prompt: float
    longest: int
    response: float


def lengths(session: Session) -> Lengths:
    """Lengths of the first training prompts, and of the responses that the data holds for them."""
    task = session.tasks["task"]
    prompts = [p for p in _first(task.train) if session.renderer.fits(p)]
    counts = [len(session.renderer.prompt_ids(p)) for p in prompts]
    reads = any(source.name == "task" for source in data_sources(session.method))
    pairs = [(p, r) for p in prompts for r in task.responses(p)] if reads else []
    response_counts = [min(len(ids), session.config.max_tokens) for ids in session.renderer.all_response_ids(pairs)]
    return Lengths(_mean(counts), max(counts, default=0), _mean(response_counts))


def _first(split: Sequence[Prompt]) -> list[Prompt]:
    return [split[i] for i in range(min(LOOKED_AT, len(split)))]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


# ---------------------------------------------------------------- a step


@dataclass(frozen=True)
class Estimate:
    """The estimate of one step, and of the run.

    Attributes:
        sequences: responses of a step.
        prompt_tokens, response_tokens: of these; responses at their limit where they are sampled.
        written_tokens: sampled in a step, at most.
        bytes_models, bytes_training, bytes_work: weights of models that are not trained; weights, gradients and
            optimiser of the student; activations or the cache of generation, whichever is more.
        seconds_step, seconds_evaluation, seconds: of a step, of one evaluation, of all steps and evaluations.
        factor: by which times may be wrong either way.
        speed: measured speeds of this machine.
    """

    sequences: int
    prompt_tokens: int
    response_tokens: int
    written_tokens: int
    bytes_models: int
    bytes_training: int
    bytes_work: int
    seconds_step: float
    seconds_evaluation: float
    seconds: float
    factor: int
    speed: Speed


def estimate(session: Session, lengths: Lengths) -> Estimate:
    """The estimate of a run whose session :func:`~limbeck.engine.build.without_weights` has built."""
    config, method = session.config, session.method
    sizes = {role: size_of(policy.model) for role, policy in session.policies.items()}
    machine = _Machine(measured_speed(session.accelerator.device, config.precision), config.gradient_checkpointing)
    student = sizes["student"]

    sequences = sum(config.prompts * source.group for source in method.sources.values())
    response = max([_limit(s, session) for s in samples(method)], default=math.ceil(lengths.response))
    tokens = sequences * (lengths.prompt + response)
    written, seconds, work = 0.0, 0.0, _activations(session, student, tokens)
    for sample in samples(method):
        rows, limit = config.prompts * sample.n, _limit(sample, session)
        written += rows * limit
        for role in _writers(sample):
            size = sizes[_own(role, sizes)]
            seconds += machine.writing(size, rows, lengths.prompt, limit, config.generate_batch)
            work = max(work, min(rows, config.generate_batch) * (lengths.prompt + limit) * size.cache * 4)
    passes = math.ceil(tokens / config.micro_tokens)
    read = [r.role for r in method.views if r.key not in ("student", "behavior")]
    read += ["teacher"] if "teacher" in sizes and config.diagnostics and "teacher" not in read else []
    seconds += sum(machine.reading(sizes[_own(role, sizes)], tokens, passes) for role in read)
    seconds += method.updates * machine.training(student, tokens, passes)

    held_out = min(config.eval_size, len(session.tasks["task"].test))
    once = _evaluation(machine, sizes, held_out, lengths.prompt, session.config.max_tokens, config.generate_batch)
    times = (2 + (config.steps - 1) // config.eval_every if config.eval_every else 2) if held_out else 0
    followers = sum(r.follow is not None and not r.weights.in_student for r in method.views)
    frozen = sum(s.parameters for role, s in sizes.items() if role != "student")
    return Estimate(
        sequences,
        round(sequences * lengths.prompt),
        round(sequences * response),
        round(written),
        4 * (frozen + student.parameters - student.trained + followers * student.parameters),
        ADAM_BYTES * student.trained,
        round(work),
        seconds,
        once,
        config.steps * seconds + times * once,
        FACTOR,
        machine.speed,
    )


@dataclass(frozen=True)
class _Machine:
    """Seconds of passes on a device."""

    speed: Speed
    recomputes: bool

    def reading(self, size: Size, tokens: float, passes: int) -> float:
        """Of forward passes over so many tokens."""
        work = 2 * size.active * tokens / self.speed.flops
        return work + passes * size.layers * OPERATIONS * self.speed.operation

    def training(self, size: Size, tokens: float, passes: int) -> float:
        """Seconds of forward, backward and optimiser; with adapters, backward leaves out the gradients of weights."""
        whole = size.trained > size.active // 2
        rounds = (3 if whole else 2) + self.recomputes
        return rounds * self.reading(size, tokens, passes) + 5 * 4 * size.trained / self.speed.bytes

    def writing(self, size: Size, rows: int, prompt: float, limit: int, batch: int) -> float:
        """Seconds of sampling: the prompts are read at once, then each token takes a pass over all weights."""
        passes = math.ceil(rows / batch) * limit
        weights = passes * 4 * size.active / self.speed.bytes
        cached = rows * limit * (prompt + limit / 2) * size.cache * 4 / self.speed.bytes
        return self.reading(size, rows * (prompt + limit), passes) + weights + cached


def _evaluation(
    machine: _Machine, sizes: dict[str, Size], problems: int, prompt: float, limit: int, batch: int
) -> float:
    """Seconds of one evaluation: the student answers, and the models read its answers."""
    if not problems:
        return 0.0
    tokens = problems * (prompt + limit)
    roles = [role for role in ("student", "teacher") if role in sizes]
    reading = sum(machine.reading(sizes[role], tokens, 1) for role in roles)
    return machine.writing(sizes["student"], problems, prompt, limit, batch) + reading


def _limit(sample: Sample, session: Session) -> int:
    """Largest number of tokens of a sampled response, over all its turns."""
    steps = session.config.steps
    limit = session.config.max_tokens if sample.max_tokens is None else int(sample.max_tokens.most(steps))
    if sample.episodic:
        return limit * max(1, int(sample.turns.most(steps)))
    return limit * (session.config.episode_turns if "episodes" in session.tasks["task"].serves else 1)


def _writers(sample: Sample) -> list[str]:
    return [r.role for r in (sample.reader.readers if isinstance(sample.reader, Blend) else (sample.reader,))]


def _own(role: str, sizes: dict[str, Size]) -> str:
    """The role whose size counts: a model that follows the student, or equals it, has the student's size."""
    return role if role in sizes else "student"


def _activations(session: Session, size: Size, tokens: float) -> float:
    """Bytes of activations that one micro-batch keeps for its backward pass."""
    of_layer = 2 if session.config.gradient_checkpointing else ACTIVATIONS
    return min(session.config.micro_tokens, tokens) * size.width * 4 * of_layer * size.layers


def sources_in_words(session: Session) -> list[str]:
    """The sources of a step's text, in words."""
    prompts, out = session.config.prompts, []
    for part in session.method.sources_within:
        if isinstance(part, Sample):
            out.append(f"{prompts} prompts, {part.n} response{'' if part.n == 1 else 's'} to each from {part.reader}")
        elif isinstance(part, Data):
            out.append(f"{prompts} {'pairs' if part.pairs else 'demonstrations'} of {part.name}")
    return out
