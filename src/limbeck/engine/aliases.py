"""Names of settings in Transformers and TRL: those that mean the same here, and those that only look alike.

``ALIASES`` and ``NEAR`` are the only lists; ``docs/settings.md`` holds ``alias_table()`` and ``near_table()``. An
alias is accepted wherever a setting is: in Python, in a TOML file, and after ``--set``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LimbeckError, nearest, quoted, shown
from ..space.registry import THEIR_ARGUMENTS


def _as_it_is(name: str, value: Any) -> Any:
    del name
    return value


@dataclass(frozen=True)
class Alias:
    """Another name of a setting.

    Attributes:
        theirs: the name in Transformers, TRL or PEFT.
        ours: the field of ``RunConfig``, or the argument of the method.
        note: a remark for the documentation.
        read: translates a value; raises where the setting has no value of that meaning.
        argument: whether ``ours`` is an argument of the method.
    """

    theirs: str
    ours: str
    note: str = ""
    read: Callable[[str, Any], Any] = _as_it_is
    argument: bool = False


@dataclass(frozen=True)
class Near:
    """A name that Transformers or TRL uses for something that Limbeck does in another way.

    Attributes:
        theirs: the name there.
        differs: completes "it ...".
        remedy: what to give instead.
    """

    theirs: str
    differs: str
    remedy: str


def _steps(name: str, value: Any) -> Any:
    """A number of steps; Transformers reads numbers below 1 as a share of the run, and -1 as "not given"."""
    if isinstance(value, float) and 0 < value < 1:
        raise LimbeckError(f"{name}={value} is a share of the run to Transformers; give a whole number of steps.")
    if value == -1 and not isinstance(value, bool):
        raise LimbeckError(
            f"{name}=-1 leaves the number to epochs, which a run does not count; give a number of steps."
        )
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _clip(name: str, value: Any) -> Any:
    if value is None or (value == 0 and not isinstance(value, bool)):
        raise LimbeckError(f"{name}={value} turns clipping off, which clip_norm cannot; give clip_norm=1e9.")
    return value


_SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}


def _schedule(name: str, value: Any) -> Any:
    text = getattr(value, "value", value)  # Transformers has an enumeration of them
    if not isinstance(text, str) or text not in _SCHEDULES:
        raise LimbeckError(f"{name}={shown(text)} is not among the schedules here; give constant, linear or cosine.")
    return _SCHEDULES[text]


def _trackers(name: str, value: Any) -> Any:
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return value
    if "all" in words:
        raise LimbeckError(f"{name}='all' names no tracker; give trackers='tensorboard', 'trackio' or 'wandb'.")
    return [word for word in words if word != "none"]


def _template(name: str, value: Any) -> Any:
    if isinstance(value, str) and ("{" in value or "\n" in value):
        raise LimbeckError(
            f"{name} holds the text of a template, and template is the path of a Jinja file; write the text to a file, "
            "and give template='FILE.jinja'."
        )
    return value


_A_STEP = "a step is one batch of prompts, also where a method updates the weights several times on it"
_VALUES = "a share of the run (a number below 1) is refused"

_HAVE = {"group": "methods that sample several responses", "updates": "methods that have it"}

ALIASES: tuple[Alias, ...] = (
    Alias("learning_rate", "lr", "the peak; its default is 1e-5 here and 5e-5 there"),
    Alias("warmup_steps", "warmup", f"the default is 10 here and 0 there; {_VALUES}", _steps),
    Alias("lr_scheduler_type", "schedule", "`constant_with_warmup` is `constant`; there is no other", _schedule),
    Alias("max_grad_norm", "clip_norm", "0, which turns clipping off there, is refused", _clip),
    Alias("max_steps", "steps", _A_STEP, _steps),
    Alias("save_steps", "save_every", _VALUES, _steps),
    Alias("eval_steps", "eval_every", _VALUES, _steps),
    Alias("save_total_limit", "keep"),
    Alias("report_to", "trackers", "`none` is none of them; `all` is refused", _trackers),
    Alias("chat_template", "template", "the path of a Jinja file; the text itself is refused", _template),
    Alias("chat_template_path", "template", "the path of a Jinja file", _template),
    Alias("trust_remote_code", "remote_code"),
    Alias("use_cpu", "cpu"),
    Alias("lora_r", "lora_rank"),
    Alias("max_completion_length", "max_tokens"),
    Alias("max_new_tokens", "max_tokens"),
    Alias("model_name_or_path", "student"),
    Alias("teacher_model_name_or_path", "teacher"),
    *(
        Alias(theirs, ours, f"an argument of the {_HAVE[ours]}", argument=True)
        for theirs, ours in THEIR_ARGUMENTS.items()
    ),
)
"""Names that mean the same as ours. ``bf16`` and ``fp16``, two switches for ``precision``, are in ``SWITCHES``."""

SWITCHES = ("bf16", "fp16")
"""Switches of Transformers that choose ``precision``; all of them false is ``no``."""

_BATCH = "give prompts (prompts a step, over all processes) and micro_tokens (tokens a forward pass)"
_EVERY = "give a number of steps; 0 is never but at the end"
_RESUME = "run `limbeck train --resume DIR`"
_COEFFICIENTS = "ref_coef (grpo) or coef (kdrl), for instance"
_DRAWN = "responses are drawn from the model's own distribution"
TASK_OF_DATA = 'lb.task(dataset, reward=function, prompt="question")'
"""How a task is made of data in memory, for messages."""

NEAR: tuple[Near, ...] = (
    Near("per_device_train_batch_size", "counts sequences on each device in a forward pass", _BATCH),
    Near("gradient_accumulation_steps", "splits a batch by a number of passes", _BATCH),
    Near("generation_batch_size", "counts responses of a step", "give prompts and the method's group"),
    Near("auto_find_batch_size", "tries smaller batches after a failure", "lower micro_tokens"),
    Near(
        "per_device_eval_batch_size",
        "counts sequences of an evaluation",
        "give generate_batch (sequences generated at once) and micro_tokens",
    ),
    Near(
        "num_train_epochs",
        "counts passes over the data, and a run counts steps",
        "give steps (one epoch is the number of training prompts divided by prompts)",
    ),
    Near("warmup_ratio", "is a share of the run, and warmup counts steps", "give warmup=N"),
    Near(
        "max_length",
        "limits prompt and response together, and max_tokens limits the response alone",
        "give max_tokens",
    ),
    Near("max_seq_length", "limits prompt and response together", "give max_tokens, the limit of the response"),
    Near(
        "max_prompt_length",
        "cuts prompts, which are never cut here",
        "leave it out, or give skip_overlong=true to leave long prompts out",
    ),
    Near("logging_steps", "thins the log, and every step is written here", "leave it out"),
    Near("eval_strategy", "names when to evaluate", f"give eval_every: {_EVERY}"),
    Near("save_strategy", "names when to save", f"give save_every: {_EVERY}"),
    Near("load_best_model_at_end", "picks a checkpoint by its evaluation", "pick one of `checkpoints/` by hand"),
    Near("optim", "names an optimiser, and there is AdamW alone", "leave it out"),
    Near("torch_dtype", "is the type of the loaded weights, which are held in float32", "give precision='bf16'"),
    Near("dtype", "is the type of the loaded weights, which are held in float32", "give precision='bf16'"),
    Near("lora_target_modules", "chooses layers, and adapters sit on every linear layer but the head", "leave it out"),
    Near("lora_dropout", "adds dropout, and nothing random is in a forward pass here", "leave it out"),
    Near("dataset_name", "names a data set of the hub", "give task, which also takes files and folders"),
    Near("output_dir", "names the folder of the run, which is not a setting", "give --out, in Python out="),
    Near("overwrite_output_dir", "is not a setting", "give --overwrite, in Python overwrite=True"),
    Near("resume_from_checkpoint", "is not a setting", _RESUME),
    Near("resume", "is not a setting", _RESUME),
    Near("run_name", "names a run, and here the folder does", "give --out, in Python out="),
    Near("model", "names the model to train", "give student, and teacher where the method has one"),
    Near("args", "holds the settings in one object", "give them by name, or as config=lb.RunConfig(...)"),
    Near("processing_class", "holds the tokenizer, which comes with the student", "leave it out, or give tokenizer="),
    Near("train_dataset", "is the data alone, and a task is data and rewards", f"give task={TASK_OF_DATA}"),
    Near("eval_dataset", "is the held-out data, which belongs to the task", "give task=lb.task(..., test=dataset)"),
    Near("reward_funcs", "holds rewards, which belong to the task", "give task=lb.task(..., reward=function)"),
    Near("peft_config", "describes adapters in an object", "give lora_rank and lora_alpha"),
    Near("beta", "is a coefficient of a loss, which has other names here", f"give the method's own: {_COEFFICIENTS}"),
    Near("epsilon", "bounds the ratio of probabilities", "give the method's clip_range, or clip_low and clip_high"),
    Near("loss_type", "chooses a loss, and here the method does", "give another method, for instance dr_grpo or dapo"),
    Near("temperature", "changes how responses are drawn", f"leave it out, because {_DRAWN}"),
    Near("top_p", "leaves unlikely tokens out of responses", f"leave it out, because {_DRAWN}"),
    Near("use_vllm", "makes vLLM write the responses, and here the loaded model writes them", "leave it out"),
    Near("batch_size", "counts prompts in one library and responses in another", _BATCH),
    Near("device", "names a device, and Accelerate chooses it", "leave it out, or give cpu=true"),
    Near("deepspeed", "names a configuration of DeepSpeed, which a run does not read", "leave it out"),
)
"""Names that mean something else than any of ours."""

_BY_NAME = {alias.theirs: alias for alias in ALIASES}
_NEAR = {near.theirs: near for near in NEAR}


def in_our_words(settings: Mapping[str, Any], arguments: Collection[str], method: str = "the method") -> dict[str, Any]:
    """The settings under the names of ``RunConfig`` and of the method's arguments.

    A name that the method has for an argument is that argument, whatever it means elsewhere. Unknown names stay as they
    are.

    Args:
        settings: of one layer (one call, one file, one command line).
        arguments: names of the method's arguments.
        method: its name, for messages.

    Raises:
        LimbeckError: for one setting under two names, a name that only looks like one of ours, or a value that our
            setting cannot have.
    """
    out: dict[str, Any] = {}
    given: dict[str, str] = {}
    switches = {k: v for k, v in settings.items() if k in SWITCHES and k not in arguments}
    for name, value in settings.items():
        if name in switches:
            continue
        ours, theirs = (name, value) if name in arguments else _translated(name, value, arguments, method)
        _once(given, ours, name)
        out[ours] = theirs
    if switches:
        _once(given, "precision", next(iter(switches)))
        out["precision"] = _precision(switches)
    return out


def _translated(name: str, value: Any, arguments: Collection[str], method: str) -> tuple[str, Any]:
    if sentence := near_sentence(name, value):
        raise LimbeckError(sentence)
    alias = _BY_NAME.get(name)
    if alias is None:
        return name, value
    if alias.argument and alias.ours not in arguments:
        takes = ", ".join(arguments) or "no arguments"
        raise LimbeckError(
            f"{name}={shown(value)} is the argument {alias.ours!r} of a method, which {method} does not have; leave it "
            f"out ({method} takes {takes})."
        )
    return alias.ours, alias.read(name, value)


def near_sentence(name: str, value: Any) -> str:
    """The sentence about a name that only looks like a setting; empty for any other name."""
    near = _NEAR.get(name)
    if near is None:
        return ""
    return f"{name}={shown(value)} is not taken over from Transformers or TRL: it {near.differs}; {near.remedy}."


def unknown_setting(name: str, value: Any, known: Collection[str]) -> str:
    """The opening of a sentence about a name that is no setting: the name, and the nearest that can be given.

    Args:
        name, value: as they were given.
        known: settings, and arguments of the method; the names of Transformers and TRL are known too.

    Raises:
        LimbeckError: for a name that only looks like a setting, which has a sentence of its own.
    """
    if sentence := near_sentence(name, value):
        raise LimbeckError(sentence)
    ours = "precision" if name in SWITCHES else _BY_NAME[name].ours if name in _BY_NAME else None
    if ours is not None:
        return f"unknown setting {quoted(name)} (it is {ours!r} here)"
    return f"unknown setting {quoted(name)}{nearest(name, (*known, *_BY_NAME, *SWITCHES))}"


def is_setting(name: str, known: Collection[str]) -> bool:
    """Whether a name is among the known ones, or is one that Transformers or TRL has for a setting."""
    return name in known or name in _BY_NAME or name in SWITCHES


def _once(given: dict[str, str], ours: str, name: str) -> None:
    if ours in given:
        raise LimbeckError(f"{given[ours]} and {name} are two names of one setting ({ours}); give one of them.")
    given[ours] = name


def _precision(switches: Mapping[str, Any]) -> str:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise LimbeckError(f"{name}={shown(value)} is not true or false; give precision='no', 'bf16' or 'fp16'.")
    chosen = [name for name, value in switches.items() if value]
    if len(chosen) > 1:
        raise LimbeckError("bf16 and fp16 are both true, and a run has one precision; give one of them.")
    return chosen[0] if chosen else "no"


# ---------------------------------------------------------------- for the documentation


def alias_table() -> str:
    """The aliases as a Markdown table."""
    rows = [(a.theirs, a.ours, a.note) for a in ALIASES]
    rows += [(name, "precision", f"true is `{name}`; all false is `no`") for name in SWITCHES]
    lines = [f"| `{theirs}` | `{ours}` | {note} |" for theirs, ours, note in rows]
    return "\n".join(["| Transformers, TRL, PEFT | here | |", "| --- | --- | --- |", *lines])


def near_table() -> str:
    """The names that are refused, as a Markdown table."""
    lines = [f"| `{n.theirs}` | It {n.differs}. | {n.remedy[:1].upper()}{n.remedy[1:]}. |" for n in NEAR]
    return "\n".join(["| name | why it is refused | instead |", "| --- | --- | --- |", *lines])
