"""Sampling responses for ``limbeck sample``: models answer prompts, and the task's verifier judges where it has one.

Prompts are rendered, and responses sampled and judged, by the functions that training uses. Nothing is trained here,
and no measure is reported: see ``evaluation``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..axes.source import sample
from ..errors import LimbeckError, number
from ..tasks import Response, Task, Verdict
from ..types import Prompt
from .api import refuse_too_many
from .build import accelerator_for, build_method
from .config import RunConfig
from .models import hub
from .models.chat import template_file, template_text
from .models.generate import SamplingPolicy, Written, generate
from .models.policy import Policy, add_lora, freeze, load_policy, share_vocabulary
from .models.written import refuse_unread
from .rendering import PromptRenderer
from .rollout.episodes import write_episodes
from .rollout.sources import writer_for
from .rollout.trajectory import Trajectory
from .rollout.writer import UNJUDGED, Failures, judge
from .session import Session
from .storage import checkpoint
from .storage.fingerprint import of_file

COLDEST, HOTTEST = 0.01, 100.0
"""Temperatures above 0 lie between these (ours): beyond them, logits overflow or every token is equally likely."""


@dataclass(frozen=True)
class Subject:
    """A model that is sampled.

    Attributes:
        label: its name in the output.
        spec: folder, hub name or ``"embedded"``.
        checkpoint: a run's checkpoint, whose weights replace those of ``spec``; None takes ``spec`` as it is.
        lora: rank and alpha of the adapters in the checkpoint; a rank of 0 means none.
        chat: text of the chat template that the run recorded; None takes the tokenizer's own.
    """

    label: str
    spec: str
    checkpoint: Path | None = None
    lora: tuple[int, int] = (0, 32)
    chat: str | None = None


class TypedPrompts:
    """Prompts that the user typed: a task without a verifier and without prompts for training.

    Args:
        prompts: as typed.
    """

    def __init__(self, prompts: Sequence[Prompt]):
        self.name = "prompts"
        self.serves: frozenset[str] = frozenset()
        self.train: Sequence[Prompt] = ()
        self.test: Sequence[Prompt] = tuple(prompts)

    def verify(self, prompt: Prompt, text: str) -> Verdict:  # noqa: ARG002
        """Refuse, because a typed prompt has no known answer.

        Raises:
            LimbeckError: always.
        """
        raise LimbeckError("a prompt that was typed has no verifier; give --task.")

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:  # noqa: ARG002
        """No response: a typed prompt has none."""
        return ()


def write_responses(
    subjects: Sequence[Subject],
    task: Task,
    prompts: Sequence[Prompt],
    config: RunConfig,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    device: str | None = None,
    console: Console,
) -> list[list[dict[str, Any]]]:
    """Let models answer prompts, one model after the other, each from the same seed.

    Args:
        subjects: the models.
        task: judges responses where it has a verifier.
        prompts: of the task.
        config: ``max_tokens``, ``seed``, ``template``, ``remote_code``, ``skip_overlong``, ``verify_seconds``,
            ``episode_turns`` and ``generate_batch`` are read.
        samples: responses a prompt.
        temperature: 0 takes the most likely token each time.
        device: as PyTorch names it; None takes a GPU where there is one.
        console: where progress goes.

    Returns:
        For each model its responses, in the order of the prompts: ``model``, ``prompt`` (its id), ``sample`` (from 0),
        ``response``, ``length`` (tokens), ``ended`` (False: cut at the limit), ``reward`` and ``correct`` (None: not
        judged), ``feedback``, and in episodes ``turns``.

    Raises:
        LimbeckError: before a model is loaded where that is possible.
    """
    refuse_too_many(samples, len(prompts))
    refuse_temperature(temperature, samples)
    for subject in subjects:
        hub.refuse_absent_model("model", subject.spec)
    if config.template is not None:
        template_file(config.template, "template")
    where = device_named(device)
    out: list[list[dict[str, Any]]] = []
    for subject in subjects:
        with console.status(f"{subject.label} is writing"):
            policy = _loaded(subject, config, where)
            if not out:  # of further models, one may read fewer keywords
                names = {subject.label: (policy.tokenizer, policy.chat.sources)}
                refuse_unread(config.chat_template_kwargs, names)
            session = _session(policy, task, config)
            read = [p for p in prompts if not config.skip_overlong or session.renderer.fits(p)]
            if len(read) < len(prompts):
                n = len(prompts) - len(read)
                console.print(f"note: {subject.label}: {n} prompts are too long and are left out.", style="yellow")
            torch.manual_seed(config.seed)
            out.append(_written(subject.label, session, read, samples, temperature, console))
            del policy, session  # the next model needs the memory
    return out


def _session(policy: Policy, task: Task, config: RunConfig) -> Session:
    """A session in which one model answers prompts; responses without a verdict are kept."""
    return Session(
        config=config,
        method=build_method(config),
        accelerator=accelerator_for("no", config.cpu),
        policies={"student": policy},
        tasks={"task": task},
        streams={},
        renderer=PromptRenderer({"student": policy}, config.max_tokens),
        reads_verdicts=False,
    )


def refuse_temperature(temperature: float, samples: int) -> None:
    """Refuse a temperature that cannot be computed with, or several samples that would all be equal.

    Raises:
        LimbeckError: naming the temperature and the remedy.
    """
    number("--temperature", temperature, 0, HOTTEST, ends=True)
    if 0 < temperature < COLDEST:
        raise LimbeckError(
            f"--temperature {temperature:g} is too close to 0 to compute with; give 0 (the most likely token each "
            f"time), or at least {COLDEST:g}."
        )
    if temperature == 0 and samples > 1:
        raise LimbeckError(
            f"--samples {samples} at --temperature 0 would write the same response {samples} times; give --samples 1, "
            "or a temperature above 0."
        )


def device_named(name: str | None) -> torch.device:
    """The device of a name; without one, the device that a run would use.

    Raises:
        LimbeckError: where this machine has no such device.
    """
    if name is None:
        return accelerator_for("no", False).device
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LimbeckError(
            f"--device {name}: PyTorch finds no such device on this machine; give cpu, cuda, cuda:1 or mps, or leave "
            "it out."
        ) from None
    return device


def _loaded(subject: Subject, config: RunConfig, device: torch.device) -> Policy:
    """The model on its device, with its chat template."""
    policy = load_policy(subject.spec, "model", remote_code=config.remote_code)
    given = config.template is not None or subject.chat is None
    policy.template = template_text(policy.tokenizer, config.template, subject.spec) if given else subject.chat
    policy.chat.keywords = config.chat_template_kwargs
    share_vocabulary(policy)
    if subject.checkpoint is not None:
        if subject.lora[0]:
            add_lora(policy, *subject.lora)
        put_weights(subject.checkpoint, policy)
    policy.scorer.to(device)
    return freeze(policy)


def put_weights(path: Path, policy: Policy) -> None:
    """Replace a model's trainable weights by those of a run's checkpoint.

    Raises:
        LimbeckError: where the checkpoint is damaged, or of another model.
    """
    state, file = checkpoint.peek(path), path / "weights.safetensors"
    try:
        whole = of_file(file) == state["files"].get(file.name)
        saved = load_file(file) if whole else {}
    except (OSError, SafetensorError):
        whole = False
    if not whole:
        raise LimbeckError(
            f"{file} has changed since the run wrote it; remove {path} to take the checkpoint before it."
        )
    own = {n: p for n, p in policy.scorer.named_parameters() if p.requires_grad}
    odd = sorted(set(own) ^ set(saved)) or [n for n in own if own[n].shape != saved[n].shape]
    if odd:
        raise LimbeckError(
            f"{path} holds weights of another model than {policy.name!r} ({odd[0]} does not fit); put back the model "
            "that the run began with."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


# ---------------------------------------------------------------- writing


def _written(
    label: str, session: Session, prompts: Sequence[Prompt], samples: int, temperature: float, console: Console
) -> list[dict[str, Any]]:
    policy = session.student
    sampling = SamplingPolicy(((policy, 1.0),), tau=temperature)
    if "episodes" in session.tasks["task"].serves:
        writer = writer_for(session, len(prompts), 0)
        groups = write_episodes(sample(n=samples), writer, prompts, sampling)
        for reason in dict.fromkeys(writer.failures.died):
            console.print(f"note: {label}: an episode was broken off by its environment ({reason}).", style="yellow")
        return [_of_episode(label, policy, row, i) for group in groups for i, row in enumerate(group)]
    repeated = [p for p in prompts for _ in range(samples)]
    ids = [session.renderer.prompt_ids(p) for p in repeated]
    texts = generate(sampling, ids, session.config.max_tokens, session.config.generate_batch)
    return [
        _of_text(label, session, prompt, text, i % samples)
        for i, (prompt, text) in enumerate(zip(repeated, texts, strict=True))
    ]


def _of_text(label: str, session: Session, prompt: Prompt, text: Written, sample: int) -> dict[str, Any]:
    failures = Failures()
    verdict = judge(session, prompt, text, failures)
    if verdict is UNJUDGED:
        verdict = Verdict(math.nan, False, f"not judged: {failures.unjudged[-1]}")
    judged = verdict is not None and math.isfinite(verdict.reward)
    return {
        "model": label,
        "prompt": prompt.id,
        "sample": sample,
        "response": as_written(session.student, text.ids),
        "length": len(text.ids),
        "ended": not text.truncated,
        "reward": verdict.reward if verdict and judged else None,
        "correct": verdict.correct if verdict and judged else None,
        "feedback": verdict.feedback if verdict else None,
    }


def _of_episode(label: str, policy: Policy, row: Trajectory, sample: int) -> dict[str, Any]:
    """One episode; ``turns`` holds the messages of the model and the environment, in order."""
    turns = [
        {"role": "assistant", "content": as_written(policy, p.ids)} if p.scored else {"role": "user", "content": p.said}
        for p in row.segments
    ]
    return {
        "model": label,
        "prompt": row.prompt.id,
        "sample": sample,
        "response": "\n".join(t["content"] for t in turns if t["role"] == "assistant"),
        "length": sum(len(p.ids) for p in row.turns),
        "ended": not row.truncated,
        "reward": float(sum(p.reward for p in row.turns)),
        "correct": row.correct,
        "feedback": row.feedback,
        "turns": turns,
    }


def as_written(policy: Policy, ids: Sequence[int]) -> str:
    """The text of tokens with every tag and special token in it, but without the token that ended the response."""
    kept = ids[:-1] if ids and ids[-1] in policy.eos else ids
    return str(policy.tokenizer.decode(list(kept), skip_special_tokens=False))
