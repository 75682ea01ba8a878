"""The configuration of a run: one flat, validated record, from the command line, a TOML file or ``lb.distill``."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from ..axes.scalar import Anneal, Constant, Linear, Scalar, Stairs
from ..errors import LARGEST, LimbeckError, nearest, quoted, shown
from ..limits import VERIFY_SECONDS
from ..space.registry import Recipe, get
from ..user_files import run_files
from .aliases import in_our_words, unknown_setting

MOST = 2**20
"""Largest number of things that a run holds at once: prompts, tokens of a response, problems, a rank (ours)."""

MOST_STEPS = 10**9
"""Largest number of steps (ours)."""

TRACKERS = ("tensorboard", "trackio", "wandb")
"""Trackers of experiments that a run can write to, through Accelerate."""


class RunConfig(BaseModel):
    """Every setting of a run. Its fields are the names that ``--set`` and TOML files accept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str = Field(description="name of the method (`limbeck methods`)")
    arguments: dict[str, Any] = Field(default_factory=dict, description="the method's own arguments")
    imports: tuple[str, ...] = Field((), description="Python files of your own, run first: they register methods")

    student: str = Field("embedded", min_length=1, description="model folder, hub name, or 'embedded'")
    teacher: str | None = Field(None, min_length=1, description="model folder, hub name, or 'embedded'")
    ref: str | None = Field(None, min_length=1, description="reference model; default: the student before training")
    task: str = Field(
        "two_digit_sums",
        min_length=1,
        description="file of problems (JSONL, Parquet, CSV), dataset folder, hub data set, reasoning-gym name, preset, "
        "or a task in a file of imports",
    )
    task_options: dict[str, Any] = Field(default_factory=dict, description="options of the task")
    datasets: dict[str, str] = Field(default_factory=dict, description="further data sets by the name a method reads")

    others: dict[str, str] = Field(default_factory=dict, description="further models by the name a method reads")
    contexts: dict[str, str] = Field(
        default_factory=dict, description="templates of contexts by name: a Jinja file, or the text itself"
    )

    steps: int = Field(100, ge=1, le=MOST_STEPS, description="optimiser batches")
    token_budget: int = Field(
        0, ge=0, le=LARGEST, description="tokens written, after which to stop before the last step; 0: no limit"
    )
    prompts: int = Field(32, ge=1, le=MOST, description="prompts a step, over all processes")
    max_tokens: int = Field(128, ge=1, le=MOST, description="limit of a response, in tokens")
    skip_overlong: bool = Field(
        False,
        description="whether to leave out prompts that are too long for a model's window instead of refusing them",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="the number that decides data order, sampling and initialisation")

    lr: float = Field(1e-5, gt=0, le=1, description="peak learning rate of AdamW")
    warmup: int = Field(10, ge=0, le=MOST_STEPS, description="steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the learning rate after the warm-up"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    clip_norm: float = Field(1.0, gt=0, description="bound of the gradient norm")
    micro_tokens: int = Field(
        16384, ge=1, le=2**30, description="tokens a micro-batch, prompts included; never cuts a group"
    )
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="mixed precision (Accelerate)")
    gradient_checkpointing: bool = Field(False, description="whether to recompute activations in backward")

    lora_rank: int = Field(
        0, ge=0, le=MOST, description="rank of the LoRA adapters to train (PEFT); 0 trains all weights"
    )
    lora_alpha: int = Field(32, gt=0, le=MOST, description="LoRA scale numerator")

    verify_seconds: float = Field(VERIFY_SECONDS, gt=0, le=86400, description="time a verifier has for one response")

    eval_every: int = Field(0, ge=0, le=MOST_STEPS, description="steps between evaluations; 0: only before and after")
    eval_size: int = Field(200, ge=0, le=MOST, description="held-out problems an evaluation; 0: no evaluation")
    save_every: int = Field(50, ge=0, le=MOST_STEPS, description="steps between checkpoints; 0: only at the end")
    keep: int = Field(2, ge=1, le=MOST_STEPS, description="checkpoints kept")
    generate_batch: int = Field(256, ge=1, le=MOST, description="sequences generated at once")
    diagnostics: bool = Field(True, description="whether to record entropy, and KL both ways where there is a teacher")
    trackers: tuple[str, ...] = Field(
        (), description="trackers of experiments: tensorboard, trackio, wandb (Accelerate)"
    )

    episode_turns: int = Field(
        8, ge=1, le=MOST, description="turns of an episode, where the task has episodes and the method does not say"
    )
    template: str | None = Field(
        None, min_length=1, description="chat template: a Jinja file, or 'plain'; default: the tokenizer's"
    )
    teacher_template: str | None = Field(
        None,
        min_length=1,
        description="chat template the teacher reads: 'own', a Jinja file or 'plain'; default: the student's",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="keywords for the chat template, such as enable_thinking; a record's own win"
    )
    remote_code: bool = Field(False, description="whether code from the model's repository may run")
    cpu: bool = Field(False, description="whether to use the CPU even where there is a GPU")

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic derives from the fields

        def __init__(self, **values: Any) -> None:
            """Check the values.

            Raises:
                LimbeckError: for an unknown field or a value that does not fit its field.
            """
            try:
                super().__init__(**values)
            except ValidationError as e:
                raise LimbeckError(_sentence(e)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_is_a_number(cls, value: Any, about: ValidationInfo) -> Any:
        """Refuse booleans for numbers: Python counts True as 1, so ``lr=true`` would train at 1.0."""
        if isinstance(value, bool) and cls.model_fields[str(about.field_name)].annotation in (int, float):
            raise ValueError("a number is needed, not true or false")
        return value

    @field_validator("trackers", mode="before")
    @classmethod
    def _words(cls, trackers: Any) -> Any:
        """Split ``wandb,tensorboard``, as a command line gives it."""
        return [x.strip() for x in trackers.split(",") if x.strip()] if isinstance(trackers, str) else trackers

    @field_validator("trackers")
    @classmethod
    def _known(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        for name in trackers:
            if name not in TRACKERS:
                near = nearest(name, TRACKERS)
                raise ValueError(f"there is no tracker {quoted(name)}{near}; give some of {', '.join(TRACKERS)}")
        return trackers

    @model_validator(mode="after")
    def _learns(self) -> RunConfig:
        """Refuse settings that are possible alone and useless together."""
        if self.warmup > max(self.steps, cast(int, type(self).model_fields["warmup"].default)):
            raise ValueError(
                f"warmup={self.warmup} is longer than the run (steps={self.steps}), so lr is never reached; give at "
                "most as many as there are steps"
            )
        if self.lr * self.weight_decay >= 1:
            raise ValueError(
                f"weight_decay={self.weight_decay:g} times lr={self.lr:g} is at least 1, so that each update would "
                "erase every weight; lower one of them"
            )
        return self

    @field_validator("arguments", "task_options")
    @classmethod
    def _recordable(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse values that JSON cannot hold, because a run is resumed from its ``run.json``."""
        for key, value in values.items():
            if not _finite(value):
                raise ValueError(f"{key}={value} is not finite, and a run could not be resumed with it")
            if isinstance(value, Scalar) and not isinstance(value, Constant | Anneal | Linear | Stairs):
                raise ValueError(
                    f"{key}={value} cannot be written to a run's folder; give a number, anneal(...), "
                    "linear(...) or stairs(...), or build the method and pass it as a value"
                )
        return values

    @field_serializer("arguments")
    def _storable(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: _as_text(value) for name, value in arguments.items()}

    @property
    def named_roles(self) -> frozenset[str]:
        """Roles that have a model: the reference and the initial weights are the student's own unless named."""
        teacher = ("teacher",) if self.teacher else ()
        return frozenset(("ref", "init", *teacher, *self.others))

    @property
    def recipe(self) -> Recipe:
        """The registered method."""
        return get(self.method)


def configure(method: str, settings: Mapping[str, Any]) -> RunConfig:
    """A run from settings that name fields of ``RunConfig`` or arguments of the method.

    Raises:
        LimbeckError: for an unknown key (with the nearest) or a value that does not fit its field.
    """
    if not isinstance(method, str):
        raise LimbeckError(f"method={shown(method)} is not the name of a method; `limbeck methods` lists them.")
    files = run_files(settings.get("imports", ()))
    recipe = get(method)
    fields = dict(RunConfig.model_fields)
    table = settings.get("arguments", {})
    if not isinstance(table, Mapping):
        raise LimbeckError(f"arguments={shown(table)} is not a table; give the method's arguments by name.")
    arguments = in_our_words(table, recipe.arguments, method)
    own: dict[str, Any] = {}
    for key, value in in_our_words(settings, recipe.arguments, method).items():
        if key in recipe.arguments:
            arguments[key] = value
        elif key in fields:
            own[key] = value
        else:
            known = [*fields, *recipe.arguments]
            raise LimbeckError(
                f"{unknown_setting(key, value, known)}; {method} takes the arguments "
                f"{', '.join(recipe.arguments) or '(none)'}, and docs/settings.md lists the settings of a run."
            )
    return RunConfig(**{**own, "method": method, "arguments": arguments, **({"imports": files} if files else {})})


def _finite(value: Any) -> bool:
    """Whether a value holds no NaN and no infinity, at any depth."""
    match value:
        case float():
            return math.isfinite(value)
        case Mapping():
            return all(_finite(x) for x in value.values())
        case list() | tuple():
            return all(_finite(x) for x in value)
    return True


def _as_text(value: Any) -> Any:
    """An argument in a form that JSON can hold and that a method reads as the same argument again."""
    match value:
        case Constant():
            return value.value
        case Anneal():
            return f"anneal({value.start!r}, {value.floor!r}, {value.decay!r})"
        case Linear():
            return f"linear({value.start!r}, {value.end!r}, {value.steps!r})"
        case Stairs():
            return f"stairs({value.start!r}, {value.every!r}, {value.rise!r})"
        case None | bool() | int() | float() | str() | list() | tuple() | dict():
            return value
    return str(value)


def _sentence(e: ValidationError) -> str:
    first = e.errors()[0]
    if not first["loc"]:  # a check of several fields, whose sentence names them
        return f"{first['msg'].removeprefix('Value error, ')}."
    field = ".".join(str(x) for x in first["loc"])
    known = RunConfig.model_fields.get(str(first["loc"][0]))
    if known is None:
        opening = unknown_setting(field, first["input"], RunConfig.model_fields)
        return f"{opening}; docs/settings.md lists the settings of a run, and arguments= takes those of the method."
    if first["type"] == "missing":
        return f"{field} is missing; it is {known.description}."
    fault = first["msg"].removeprefix("Value error, ")
    value = repr(first["input"])
    value = value if len(value) <= 80 else f"{value[:77]}..."
    if first["loc"][0] == "trackers" and first["type"] == "value_error":
        return f"{field}={value}: {fault}."  # it names every tracker already
    return f"{field}={value}: {fault[:1].lower()}{fault[1:]}; {field} is {known.description}."


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """``key=value`` words as a dictionary; values are read as TOML where they are TOML, else as text.

    ``task_options.size=3`` sets an entry of a table.

    Raises:
        LimbeckError: for a word that is not of this form.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise LimbeckError(f"--set {pair}: write key=value, for instance --set lr=1e-4.")
        *tables, name = (x.strip() for x in key.split("."))
        if not all([*tables, name]):
            raise LimbeckError(f"--set {pair}: write key=value, for instance --set lr=1e-4.")
        inner = out
        for table in tables:
            before = inner.setdefault(table, {})
            if not isinstance(before, dict):
                raise LimbeckError(
                    f"--set {pair}: {table} was set to {shown(before)} before, which is not a table; give one of both."
                )
            inner = before
        inner[name] = _toml_value(text.strip())
    return out


def _toml_value(text: str) -> Any:
    lowered = {"true": True, "false": False, "none": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return float(text) if _is_float(text) else tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):  # not TOML, or more digits or brackets than Python reads
        return text


def _is_float(text: str) -> bool:
    """Whether a text is a number with a fraction or an exponent: 1e-4, and also .5, which TOML does not accept."""
    try:
        float(text)
    except ValueError:
        return False
    return not text.lstrip("+-").isdigit()


def load_toml(path: Path) -> dict[str, Any]:
    """Settings from a TOML file.

    Raises:
        LimbeckError: where the file is missing or malformed.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows write a byte order mark
    except FileNotFoundError:
        raise LimbeckError(f"--config {path}: there is no such file; check the path.") from None
    except OSError as e:
        raise LimbeckError(f"--config {path}: it cannot be read ({e.strerror}); name a TOML file.") from None
    except (ValueError, RecursionError) as e:
        raise LimbeckError(f"--config {path}: it is not valid TOML ({e}); correct it.") from None
