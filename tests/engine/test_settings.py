"""Settings: what Python must give, their types, the spellings of other libraries, and numbers that cannot be meant."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Shelf, llama
from transformers import AutoTokenizer

import limbeck as lb
from limbeck import LimbeckError
from limbeck.cli.pipeline import pipeline_settings
from limbeck.cli.settings import run_config
from limbeck.engine import aliases, checks, configure, distill, run_pipeline
from limbeck.engine.aliases import ALIASES, NEAR, SWITCHES, alias_table, near_table
from limbeck.engine.config import RunConfig
from limbeck.engine.export import Result
from limbeck.engine.options import OwnSettings, RunSettings
from limbeck.space.pipeline import get_pipeline
from limbeck.space.registry import REGISTRY

DOCS = Path(__file__).parents[2] / "docs"
PARAMETERS = {"method", "student", "teacher", "ref", "task"}
"""Fields that ``distill`` has as parameters of their own."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Configurations of runs that were asked for and are not begun."""
    configs: list[RunConfig] = []
    monkeypatch.setattr("limbeck.engine.api.train", lambda config, folder, **own: configs.append(config))
    return configs


# ---------------------------------------------------------------- what must be given, and types


@pytest.mark.parametrize(
    ("give", "words"),
    [
        ({}, "the method is missing"),
        ({"method": "sft", "task": "two_digit_sums"}, "the student is missing; give a model folder"),
        ({"method": "sft", "student": "embedded"}, "the task is missing; give task="),
        ({"config": RunConfig(method="sft", task="two_digit_sums")}, "the student is missing"),
        ({"config": RunConfig(method="sft", student="embedded")}, "the task is missing"),
        ({"config": {"method": "sft"}}, "is not a RunConfig"),
    ],
)
def test_what_decides_a_run_must_be_given(give: dict[str, Any], words: str, told: list[RunConfig]) -> None:
    with pytest.raises(LimbeckError, match=words):
        distill(**give)
    assert told == []


def test_the_typed_settings_are_the_fields_of_a_run() -> None:
    hints, fields = typing.get_type_hints(OwnSettings), RunConfig.model_fields
    assert set(hints) == set(fields) - PARAMETERS
    several = {"imports", "trackers"}  # a text stands for a list of one
    assert {n: h for n, h in hints.items() if n not in several} == {
        n: fields[n].annotation for n in hints if n not in several
    }


def test_the_typed_spellings_are_those_of_the_table() -> None:
    spelled = {a.theirs: a.ours for a in ALIASES if not a.argument and a.ours not in PARAMETERS}
    assert set(RunSettings.__annotations__) - set(OwnSettings.__annotations__) == {*spelled, *SWITCHES}


def test_distill_has_a_form_for_each_way_to_call_it() -> None:
    forms = typing.get_overloads(distill)
    assert [form.__annotations__["settings"] for form in forms] == ["Unpack[RunSettings]", "Any", "Unpack[RunSettings]"]


def test_an_unknown_name_is_told_what_is_an_argument_and_what_a_setting(told: list[RunConfig]) -> None:
    with pytest.raises(
        LimbeckError, match=r"'coeff' \(did you mean 'coef'\?\); kdrl takes the arguments coef.*settings"
    ) as e:
        distill("kdrl", "embedded", task="two_digit_sums", coeff=1.0)
    assert "verify_seconds" not in str(e.value), "a sentence does not list every setting"
    with pytest.raises(LimbeckError, match=r"'coef'.*a method value takes its arguments when it is built"):
        distill(lb.methods.kdrl(coef=1.0), "embedded", task="two_digit_sums", coef=1.0)


@pytest.mark.parametrize(
    ("give", "words"),
    [
        ({"train_dataset": [{"question": "1 + 1"}]}, r"^train_dataset=.*give task=lb\.task\(dataset, reward=function"),
        ({"reward_funcs": print}, r"^reward_funcs=.*give task=lb\.task\(\.\.\., reward=function\)"),
        ({"max_step": 3}, r"unknown setting 'max_step' \(did you mean 'max_steps'\?\)"),
        ({"leaning_rate": 1e-4}, r"unknown setting 'leaning_rate' \(did you mean 'learning_rate'\?\)"),
        ({"frobnicate": 1}, r"unknown setting 'frobnicate'; grpo takes"),
    ],
)
def test_names_of_another_library_are_told_apart_before_what_is_missing(
    give: dict[str, Any], words: str, told: list[RunConfig]
) -> None:
    task = {} if {"train_dataset", "reward_funcs"} & set(give) else {"task": "two_digit_sums"}
    with pytest.raises(LimbeckError, match=words):
        distill("grpo", "embedded", **task, **give)
    assert told == []


def test_a_configuration_answers_names_of_other_libraries_as_a_run_does() -> None:
    with pytest.raises(LimbeckError, match=r"^reward_funcs=3 is not taken over from Transformers or TRL: it holds"):
        lb.RunConfig(method="sft", reward_funcs=3)  # type: ignore[call-arg]
    with pytest.raises(LimbeckError, match=r"'leaning_rate' \(did you mean 'learning_rate'\?\); a method value takes"):
        distill(lb.methods.sft(), "embedded", task="two_digit_sums", leaning_rate=1)  # type: ignore[call-overload]


@pytest.mark.parametrize("task", [[{"question": "1 + 1"}], print], ids=["rows", "function"])
def test_data_in_place_of_a_task_is_told_how_to_become_one(task: object, told: list[RunConfig]) -> None:
    words = r'of data or a reward function make one with lb\.task\(dataset, reward=function, prompt="question"\)'
    with pytest.raises(LimbeckError, match=words):
        distill("grpo", "embedded", task=task)  # type: ignore[call-overload]


def test_a_name_of_trl_beside_a_method_value_is_told_where_it_belongs() -> None:
    with pytest.raises(LimbeckError, match=r"num_generations=4 is the argument 'group'.*give group there"):
        distill(lb.methods.grpo(), "embedded", task="two_digit_sums", num_generations=4)  # type: ignore[call-overload]
    with pytest.raises(LimbeckError, match=r"unknown setting 'bf16' \(it is 'precision' here\); docs/settings\.md"):
        lb.RunConfig(method="sft", bf16=True)  # type: ignore[call-arg]


def test_a_misspelt_task_is_named_and_not_called_missing() -> None:
    for method in ("grpo", lb.methods.grpo()):
        with pytest.raises(LimbeckError, match=r"unknown setting 'tsak' \(did you mean 'task'\?\)"):
            distill(method, "embedded", tsak="two_digit_sums")  # type: ignore[call-overload]


def test_a_method_names_its_argument_for_a_name_of_trl() -> None:
    with pytest.raises(LimbeckError, match=r"kdrl: unknown argument 'num_generations' \(it is 'group' here\)"):
        lb.methods.kdrl(num_generations=4)


def test_the_package_lists_its_public_names_alone() -> None:
    assert {name for name in dir(lb) if not name.startswith("__")} == set(lb.__all__)


def test_a_result_is_shown_on_one_line() -> None:
    result = Result(Path("runs/a"), {"accuracy": 0.25}, {"accuracy": 0.5}, 3, None, Path("runs/a/student"))
    assert repr(result) == "Result('runs/a', 3 steps, accuracy 25.0% -> 50.0%)"
    assert result.accuracy == 0.5
    bare = Result(Path("runs/a"), None, None, 1, None, Path("runs/a/student"))
    assert (repr(bare), bare.accuracy) == ("Result('runs/a', 1 step)", None)


# ---------------------------------------------------------------- a whole configuration


def test_a_configuration_may_be_given_whole_and_settings_beside_it_win(told: list[RunConfig]) -> None:
    whole = lb.RunConfig(
        method="kdrl",
        student="embedded",
        teacher="embedded",
        task="two_digit_sums",
        lr=1e-3,
        arguments={"coef": 0.5, "group": 4},
        task_options={"a": 1, "b": 2},
    )
    distill(config=whole)
    distill(config=whole, learning_rate=1e-4, coef=1.0, task_options={"b": 3}, task="chain_sum")
    distill("grpo", config=whole)
    first, second, third = told
    assert first == whole
    assert (second.lr, second.task, second.arguments) == (1e-4, "chain_sum", {"coef": 1.0, "group": 4})
    assert second.task_options == {"a": 1, "b": 3}
    assert (third.method, third.arguments, third.lr) == ("grpo", {}, 1e-3)


def test_a_method_value_takes_the_settings_of_a_configuration(told: list[RunConfig]) -> None:
    whole = lb.RunConfig(method="sft", student="embedded", task="two_digit_sums", lr=1e-3)
    distill(lb.methods.grpo(group=4), config=whole, warmup_steps=3)
    assert (told[0].method, told[0].lr, told[0].warmup) == ("grpo", 1e-3, 3)


def test_a_configuration_that_is_built_by_hand_is_refused_in_a_sentence() -> None:
    with pytest.raises(LimbeckError, match="lr=-1: input should be greater than 0"):
        lb.RunConfig(method="sft", lr=-1)
    with pytest.raises(LimbeckError, match=r"unknown setting 'learning_rate' \(it is 'lr' here\)"):
        lb.RunConfig(method="sft", learning_rate=1)  # type: ignore[call-arg]


# ---------------------------------------------------------------- tokenizers of models in memory


def test_a_model_in_memory_may_bring_its_tokenizer(shelf: Shelf, out: Path) -> None:
    model, tokenizer = llama(1), AutoTokenizer.from_pretrained(shelf.student)
    settings = {**shelf.settings("sft", eval_size=0, steps=1), "student": model, "teacher": None}
    with pytest.raises(LimbeckError, match=r"its tokenizer is not known; give tokenizer=\.\.\."):
        distill("sft", out=out, quiet=True, **settings)
    result = distill("sft", out=out, quiet=True, tokenizer=tokenizer, **settings)
    assert AutoTokenizer.from_pretrained(result.student).get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_that_nobody_would_use_is_refused(shelf: Shelf, told: list[RunConfig]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shelf.student)
    with pytest.raises(LimbeckError, match="every model here has its own"):
        distill("sft", "embedded", task="two_digit_sums", tokenizer=tokenizer)
    with pytest.raises(LimbeckError, match="tokenizer='gpt2' is not a tokenizer"):
        distill("sft", llama(1), task="two_digit_sums", tokenizer="gpt2")  # type: ignore[call-overload]
    distill("kd", "embedded", llama(1), task="two_digit_sums", tokenizer=tokenizer)


# ---------------------------------------------------------------- spellings of other libraries

VALUES: dict[str, Any] = {
    "lr": 1e-4,
    "clip_norm": 2.0,
    "schedule": "cosine",
    "trackers": "wandb",
    "template": "plain",
    "remote_code": True,
    "cpu": True,
    "student": "org/x",
    "teacher": "org/x",
}
USES = {"group": "grpo", "updates": next(n for n, r in REGISTRY.items() if "updates" in r.arguments)}


@pytest.mark.parametrize("alias", ALIASES, ids=lambda a: a.theirs)
def test_an_alias_is_the_setting(alias: aliases.Alias) -> None:
    method, value = USES.get(alias.ours, "grpo"), VALUES.get(alias.ours, 7)
    assert configure(method, {alias.theirs: value}) == configure(method, {alias.ours: value})
    with pytest.raises(LimbeckError, match=f"{alias.theirs} and {alias.ours} are two names of one setting"):
        configure(method, {alias.theirs: value, alias.ours: value})


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"bf16": True}, "precision", "bf16"),
        ({"fp16": True, "bf16": False}, "precision", "fp16"),
        ({"fp16": False, "bf16": False}, "precision", "no"),
        ({"lr_scheduler_type": "constant_with_warmup"}, "schedule", "constant"),
        ({"report_to": "none"}, "trackers", ()),
        ({"report_to": ["none", "wandb"]}, "trackers", ("wandb",)),
        ({"max_steps": 30.0}, "steps", 30),
    ],
)
def test_values_of_other_libraries_are_read(given: dict[str, Any], field: str, value: object) -> None:
    assert getattr(configure("grpo", given), field) == value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bf16": True, "fp16": True}, "a run has one precision"),
        ({"bf16": True, "precision": "no"}, "precision and bf16 are two names of one setting"),
        ({"bf16": "yes"}, "bf16='yes' is not true or false"),
        ({"lr_scheduler_type": "polynomial"}, "give constant, linear or cosine"),
        ({"max_grad_norm": 0}, "give clip_norm=1e9"),
        ({"max_grad_norm": None}, "give clip_norm=1e9"),
        ({"warmup_steps": 0.1}, "share of the run"),
        ({"max_steps": -1}, "leaves the number to epochs"),
        ({"report_to": "all"}, "names no tracker"),
        ({"chat_template": "{{ messages }}"}, "write the text to a file"),
        ({"max_new_tokens": 4, "max_completion_length": 4}, "are two names of one setting"),
        ({"num_iterations": 2}, "'updates' of a method, which grpo does not have"),
        ({"arguments": {"num_generations": 2, "group": 3}}, "num_generations and group are two names"),
    ],
)
def test_values_that_ours_cannot_say_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(LimbeckError, match=words) as e:
        configure("grpo", given)
    assert str(e.value).endswith(".")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("near", NEAR, ids=lambda n: n.theirs)
def test_a_name_that_only_looks_alike_is_refused_with_ours(near: aliases.Near) -> None:
    with pytest.raises(LimbeckError, match=f"^{near.theirs}=1 is not taken over from Transformers or TRL: it ") as e:
        configure("grpo", {near.theirs: 1})
    assert str(e.value).endswith(f"{near.remedy}.")


def test_an_argument_of_the_method_goes_before_a_name_of_another_library() -> None:
    assert configure("dr_grpo", {"max_length": 9}).arguments == {"max_length": 9}


def test_arguments_of_methods_never_collide_with_settings() -> None:
    settings = {*RunConfig.model_fields, *SWITCHES, *(alias.theirs for alias in ALIASES)}
    assert {n: sorted(settings & set(r.arguments)) for n, r in REGISTRY.items() if settings & set(r.arguments)} == {}
    theirs = [alias.theirs for alias in ALIASES] + [near.theirs for near in NEAR] + [*SWITCHES]
    assert len(theirs) == len(set(theirs))
    assert not set(theirs) & set(RunConfig.model_fields)
    for alias in ALIASES:
        known = {a for r in REGISTRY.values() for a in r.arguments} if alias.argument else set(RunConfig.model_fields)
        assert alias.ours in known


def test_each_layer_of_the_command_line_may_spell_as_it_likes(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('method = "grpo"\nlr = 1e-3\nnum_generations = 4\nmax_steps = 9\n')
    config = run_config(None, {"steps": 20}, tmp_path / "run.toml", ["learning_rate=1e-4", "arguments.group=5"])
    assert (config.lr, config.arguments, config.steps) == (1e-4, {"group": 5}, 20)
    with pytest.raises(LimbeckError, match="learning_rate and lr are two names"):
        run_config("grpo", {}, None, ["learning_rate=1e-4", "lr=1e-4"])


def test_pipelines_read_the_spellings_too(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = get_pipeline("opd_then_rl")
    stage = plan().methods[-1]
    value, common = pipeline_settings(
        plan, {}, None, ["learning_rate=1e-3", f"{stage}.max_new_tokens=3", f"{stage}.max_tokens=4"][:2]
    )
    assert common == {"lr": 1e-3}
    assert value.stages[-1].settings["max_tokens"] == 3
    configs: list[RunConfig] = []
    monkeypatch.setattr("limbeck.engine.pipeline.train", lambda config, *a, **own: configs.append(config))
    stages = lb.Pipeline((lb.stage("sft", learning_rate=1e-3), lb.stage("grpo", num_generations=3)))
    task = {"student": str(shelf.student), "task": str(shelf.verified)}
    run_pipeline(stages, tmp_path / "p", quiet=True, lr=0.5, max_new_tokens=7, **task)
    assert [(c.lr, c.max_tokens) for c in configs] == [(1e-3, 7), (0.5, 7)]
    assert configs[1].arguments == {"group": 3}


def test_the_documentation_has_the_tables() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert alias_table() in page
    assert near_table() in page
    assert settings_table() in page


def settings_table() -> str:
    """Every field of a run with its default and description, as ``docs/settings.md`` holds it."""
    rows = ["| setting | default | |", "| --- | --- | --- |"]
    for name, field in RunConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        said = {"None": "none", "True": "true", "False": "false", "{}": "empty", "()": "empty"}
        text = "required" if field.is_required() else said.get(str(default), f"`{default}`")
        description = str(field.description)
        rows.append(f"| `{name}` | {text} | {description[:1].upper()}{description[1:]}. |")
    return "\n".join(rows)


# ---------------------------------------------------------------- numbers that cannot be meant


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"warmup": 10**9}, r"warmup=1000000000 is longer than the run \(steps=100\), so lr is never reached; give"),
        ({"warmup": 10**400}, "warmup=1000.*less than or equal to"),
        ({"warmup": 30, "steps": 20}, "warmup=30 is longer than the run"),
        ({"weight_decay": 1e300}, "each update would erase every weight"),
        ({"trackers": "x"}, r"^trackers='x': there is no tracker 'x'; give some of tensorboard, trackio, wandb\.$"),
        ({"trackers": ["tensorbord"]}, "did you mean 'tensorboard'"),
        ({"template": ""}, "template='': string should have at least 1 character"),
        ({"teacher_template": ""}, "teacher_template='': string should have at least 1 character"),
        *(({name: 10**400}, f"{name}=1000.*should be less than") for name in (
            "steps", "token_budget", "prompts", "micro_tokens", "lora_rank", "lora_alpha", "eval_every", "save_every",
            "keep", "seed", "max_tokens",
        )),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(LimbeckError, match=words):
        configure("grpo", given)


def test_a_short_run_keeps_the_default_warm_up() -> None:
    assert configure("grpo", {"steps": 1}).warmup == 10


def test_huge_arguments_are_refused_where_a_method_is_built() -> None:
    with pytest.raises(LimbeckError, match="opd: group is 1000000000000; give at most 1,048,576"):
        lb.methods.opd(group=10**12)
    import torch

    with pytest.raises(LimbeckError, match="step is a whole number of more than 15 digits"):
        lb.objective("sft")(torch.zeros(1, 2, 5), step=10**400)


def test_every_whole_number_of_a_run_has_an_upper_bound() -> None:
    for name, field in RunConfig.model_fields.items():
        if field.annotation is int:
            assert any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in field.metadata), name


def test_a_tracker_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    with pytest.raises(LimbeckError, match="pip install wandb"):
        checks.check_trackers(configure("sft", {"trackers": "wandb"}))
    assert json.loads(RunConfig(method="sft").model_dump_json())["trackers"] == []
