"""``demo`` and ``eval``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stub_engine import MEASURED, Notes, Run

from limbeck.cli.demo import DEMO, story
from limbeck.engine import Result


def test_demo_trains_the_embedded_pair(limbeck_: Run, notes: Notes) -> None:
    result = limbeck_("demo", "--steps", "5", "--seed", "4")
    assert result.exit_code == 0, result.stderr
    config = notes.config
    assert (config.method, config.student, config.teacher, config.steps, config.seed) == (
        DEMO["method"],
        "embedded",
        "embedded",
        5,
        4,
    )
    assert config.arguments == DEMO["arguments"][DEMO["method"]]
    _, (_, out), options = notes.calls[0]
    assert (out, options["overwrite"], options["command"]) == (
        Path("runs/demo"),
        True,
        "limbeck demo --steps 5 --seed 4",
    )


def test_demo_prints_the_result_and_next_steps(limbeck_: Run, notes: Notes) -> None:
    shown = limbeck_("demo").stdout
    solved = "It solved 25.0% [20.0% to 31.0%] of 200 held-out problems before training and 75.0% [69.0%"
    assert solved in shown
    assert "the reverse KL was 0.900 nats per token and is now 0.300" in shown
    for hint in ("open runs/demo/report.html", "limbeck explain kdrl", "limbeck train kdrl --student Qwen"):
        assert hint in shown


def test_demo_with_another_method_keeps_that_methods_defaults(limbeck_: Run, notes: Notes) -> None:
    found = json.loads(limbeck_("demo", "--method", "gkd", "--json", "--out", "o").stdout)
    assert (notes.config.method, notes.config.arguments, found["out"]) == ("gkd", {}, "o")


def test_demo_overwrites_only_the_folder_of_an_earlier_demo(limbeck_: Run, notes: Notes, run_folder: Path) -> None:
    refused = limbeck_("demo", "--out", "old")
    assert (refused.exit_code, notes.calls) == (2, [])
    assert "--out old: the folder holds something other than an earlier demo" in refused.stderr
    (run_folder / "run.json").write_text(json.dumps({"command": "limbeck demo --out old"}))
    assert limbeck_("demo", "--out", "old").exit_code == 0
    (run_folder / "run.json").write_text("damaged")
    assert limbeck_("demo", "--out", "old").exit_code == 2


def _result(before: dict | None, after: dict | None) -> Result:
    return Result(Path("o"), before, after, 3, None, Path("o/student"))


def test_demo_claims_an_effect_only_beyond_chance() -> None:
    base = {"accuracy": 0.5, "correct": [0, 1] * 20}
    better, worse, chance = [1] * 40, [0] * 40, [1, 1, *[0, 1] * 19]
    assert story("X", _result(base, {**base, "correct": better}))[-1] == "The student is better, by more than chance."
    assert story("X", _result(base, {**base, "correct": worse}))[-1] == "The student is worse, by more than chance."
    assert "may be chance" in story("X", _result(base, {**base, "correct": chance}))[-1]
    assert "further from its teacher" in story("X", _result({"kl_reverse": 0.1}, {"kl_reverse": 0.2}))[-1]
    assert story("X", _result(None, None)) == ["X, 3 steps. The trained student is in o/student."]


def test_eval_passes_its_options_to_the_engine(limbeck_: Run, notes: Notes) -> None:
    words = "eval --student embedded --teacher org/big --task chain_sum --size 50 --samples 4 --seed 2"
    result = limbeck_(*words.split(), "--set", "task_options.min_terms=2", "--set", "max_tokens=9", "--set", "cpu=true")
    assert result.exit_code == 0, result.stderr
    ((name, args, options),) = notes.calls
    del options["console"]
    assert (name, args) == ("evaluate", ("embedded",))
    assert options == {
        "teacher": "org/big",
        "task": "chain_sum",
        "size": 50,
        "samples": 4,
        "seed": 2,
        "max_tokens": 9,
        "template": None,
        "chat_template_kwargs": {},
        "remote_code": False,
        "skip_overlong": False,
        "cpu": True,
        "task_options": {"min_terms": 2},
    }


def test_eval_prints_a_table_of_its_numbers(limbeck_: Run, notes: Notes) -> None:
    shown = [" ".join(line.split()) for line in limbeck_("eval", "--student", "embedded").stdout.splitlines()]
    assert "accuracy 25.0% (95% interval 20.0% to 31.0%)" in shown
    assert "KL(student ‖ teacher) 0.9000 nats per token" in shown
    assert "length 21.2 tokens" in shown
    assert shown[-2:] == ["pass@1 25.0%", "pass@4 50.0%"]
    assert not any(line.startswith("perplexity") for line in shown)
    assert notes.calls[0][2]["task"] == "two_digit_sums"


def test_eval_prints_json(limbeck_: Run, notes: Notes) -> None:
    found = json.loads(limbeck_("eval", "--student", "embedded", "--json").stdout)
    expected = {**MEASURED, "reward": None, "entropy": 0.5, "length": 21.25, "pass_at": {"1": 0.25, "4": 0.5}}
    assert found == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--size", "0"), "invalid value for '--size'"),
        (("--samples", "0"), "invalid value for '--samples'"),
        (("--set", "max_token=3"), "no such setting (did you mean 'max_tokens'?)"),
        (("--set", "max_tokens=0"), "max_tokens=0:"),
        (("--task", "none.jsonl"), "--task none.jsonl: there is no such file"),
        (("--teacher", "./none"), "teacher='./none': there is no such folder"),
    ],
)
def test_eval_refuses_wrong_options(limbeck_: Run, notes: Notes, words: tuple[str, ...], sentence: str) -> None:
    result = limbeck_("eval", "--student", "embedded", *words)
    assert (result.exit_code, notes.calls, result.stdout) == (2, [], "")
    assert sentence in result.stderr


def test_eval_says_which_task_it_used_by_default(limbeck_: Run, notes: Notes) -> None:
    note = "note: without --task, the task is 'two_digit_sums'."
    assert note in limbeck_("eval", "--student", "embedded").stdout
    assert note in limbeck_("eval", "--student", "embedded", "--json").stderr
    assert "note" not in limbeck_("eval", "--student", "embedded", "--task", "chain_sum").stdout
