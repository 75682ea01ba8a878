"""The settings of ``lb.distill`` by name and type, for editors and type checkers.

``RunConfig`` holds the defaults, bounds and descriptions of settings; a test keeps both lists equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict


class OwnSettings(TypedDict, total=False):
    """Every field of ``RunConfig`` except those that are parameters of ``lb.distill``."""

    arguments: dict[str, Any]
    imports: Sequence[str] | str
    task_options: dict[str, Any]
    datasets: dict[str, str]
    others: dict[str, str]
    contexts: dict[str, str]
    steps: int
    token_budget: int
    prompts: int
    max_tokens: int
    skip_overlong: bool
    seed: int
    lr: float
    warmup: int
    schedule: Literal["constant", "linear", "cosine"]
    weight_decay: float
    clip_norm: float
    micro_tokens: int
    precision: Literal["no", "bf16", "fp16"]
    gradient_checkpointing: bool
    lora_rank: int
    lora_alpha: int
    verify_seconds: float
    eval_every: int
    eval_size: int
    save_every: int
    keep: int
    generate_batch: int
    diagnostics: bool
    trackers: Sequence[str] | str
    episode_turns: int
    template: str | None
    teacher_template: str | None
    chat_template_kwargs: dict[str, Any]
    remote_code: bool
    cpu: bool


class RunSettings(OwnSettings, total=False):
    """The same fields, and their names in Transformers and TRL (``engine.aliases``)."""

    learning_rate: float
    warmup_steps: int
    lr_scheduler_type: str
    max_grad_norm: float
    max_steps: int
    save_steps: int
    eval_steps: int
    save_total_limit: int
    report_to: Sequence[str] | str
    chat_template: str
    chat_template_path: str
    trust_remote_code: bool
    use_cpu: bool
    lora_r: int
    max_completion_length: int
    max_new_tokens: int
    bf16: bool
    fp16: bool
