"""The calculator: what it computes, what it refuses, and a task that uses it as a tool."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest

from limbeck.errors import LimbeckError
from limbeck.tasks import available_tasks, load_task
from limbeck.tasks.arithmetic import Mistake, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        (" -( -3 * 4 ) ", "12"),
        ("7 // 2 + 7 % 4", "6"),
        ("6 / 3", "2"),
        ("1 / 4", "0.25"),
        ("2 ** 10", "1024"),
        ("2 ** -1", "0.5"),
        ("min(3, 1) + max(1, 2) + abs(-4) + round(2.6)", "10"),
        ("round(2.666, 2)", "2.67"),
        ("+5", "5"),
        ("1 ** 999999999", "1"),
        ("10 ** 999", "1" + 999 * "0"),
    ],
)
def test_expressions_have_their_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("9**9**9", "the value is too large"),
        ("9**9**9**9", "the value is too large"),
        ("(-9)**99999999", "the value is too large"),
        ("10 ** 1000", "the value is too large"),
        ("10 ** 600 * 10 ** 600", "the value is too large"),
        ("1e200 ** 2", "the value is too large"),
        ("1e308 * 10", "the value is too large"),
        ("1e999", "the value is too large"),
        ("10 ** 400 / 3.0", "the value is too large"),
        ("round(1e999 - 1e999)", "a function was called in a wrong way"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("(-8) ** 0.5", "the value is not a real number"),
        ("1 +", "this is not an expression"),
        ("", "this is not an expression"),
        ("(" * 900 + "1", "this is not an expression"),
        ("1" + "+1" * 600, "longer than 1000 characters"),
        ("min()", "a function was called in a wrong way"),
        ("__import__('os')", "\"__import__('os')\" is not allowed"),
        ("(1).real", "is not allowed"),
        ("'a' * 9", "\"'a'\" is not allowed"),
        ("True + 1", "'True' is not allowed"),
        ("1 < 2", "is not allowed"),
        ("[1][0]", "is not allowed"),
        ("round(1, ndigits=2)", "is not allowed"),
        ("abs(*[1])", "is not allowed"),
        ("~1", "is not allowed"),
        ("1 << 99999999999", "is not allowed"),
        ("x", "'x' is not allowed"),
    ],
)
def test_wrong_expressions_give_a_message(expression: str, mistake: str) -> None:
    start = time.monotonic()
    with pytest.raises(Mistake) as raised:
        calculate(expression)
    assert mistake in str(raised.value)
    assert time.monotonic() - start < 1


def calculator(**options: Any) -> Any:
    return load_task("calculator", train_size=5, test_size=5, **options)


@pytest.mark.parametrize("dataset", ["chain_sum", "basic_arithmetic"])
def test_a_call_and_an_answer_solve_a_problem(dataset: str) -> None:
    task = calculator(dataset=dataset)
    assert (task.name, task.serves) == ("calculator", {"reward", "feedback", "episodes"})
    for prompt in (*task.train, *task.test):
        item = task.problems.item(prompt)
        call, answer = f"<calc>{item['metadata']['expression']}</calc>", f"<answer>{item['answer']}</answer>"
        episode = task.open(prompt)
        said = episode.step(call)
        assert (said.text, said.done, said.reward) == (prompt.privileged["answer"], False, 0.0)
        last = episode.step(answer)
        assert (last.done, last.reward, last.correct) == (True, 1.0, True)
        episode.close()
        assert call in prompt.privileged["solution"]
        assert answer in prompt.privileged["solution"]
        assert task.verify(prompt, answer).correct
    assert task.responses(prompt) == ()


def test_the_prompt_explains_the_tool_and_splits_are_those_of_the_data_set() -> None:
    task, problems = calculator(seed=2), load_task("chain_sum", seed=2, train_size=5, test_size=5)
    for ours, theirs in zip((*task.train, *task.test), (*problems.train, *problems.test), strict=True):
        assert ours.id == theirs.id
        assert ours.messages[0]["content"].endswith("\n\n" + theirs.messages[0]["content"])
        assert "<calc>EXPRESSION</calc>" in ours.messages[0]["content"]


def test_mistakes_are_feedback_and_the_episode_goes_on() -> None:
    task = calculator(max_turns=3, role="tool")
    prompt = task.test[0]
    episode = task.open(prompt)
    said = episode.step("<calc>9**9**9</calc>")
    assert (said.text, said.feedback) == ("error: the value is too large", "the value is too large")
    assert (said.done, said.role) == (False, "tool")
    assert episode.step("<calc>1</calc><calc>2</calc>").feedback == "call the calculator once a turn"
    last = episode.step(f"<calc>1 + 1</calc><answer>{prompt.privileged['answer']}</answer>")
    assert (last.text, last.done, last.reward, last.correct) == ("2", True, 0.0, False)
    assert last.feedback == "no answer was given in 3 turns"
    with pytest.raises(RuntimeError, match="over"):
        episode.step("x")


def test_a_wrong_answer_ends_the_episode() -> None:
    task = calculator()
    last = task.open(task.test[0]).step("<answer>x</answer>")
    assert (last.done, last.correct, last.feedback, last.role) == (True, False, "got x, which is not right", "user")


def test_a_warning_of_python_about_an_expression_is_not_shown() -> None:
    """The message goes to the model, and the terminal shows nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Mistake, match="'5 and 3' is not allowed"):
            calculate("5and 3")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "chain_sums"}, "dataset of task 'calculator' is 'chain_sums' (did you mean 'chain_sum'?)"),
        ({"role": "system"}, "role of task 'calculator' is 'system'; give user or tool."),
        ({"max_turns": 0}, "max_turns of task 'calculator' is 0"),
        ({"max_turn": 2}, "option 'max_turn' is not one of task 'calculator' (did you mean 'max_turns'?)"),
        ({"name": "x"}, "option 'name' is not one of task 'calculator'"),
        ({"train_size": 0}, "train_size of task 'calculator' is 0"),
        ({"reveal": 2}, "reveal of task 'calculator' is 2"),
        ({"min_terms": -1}, "min_terms must be positive"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LimbeckError) as refusal:
        load_task("calculator", **options)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_calculator_is_listed_as_a_task() -> None:
    assert "calculator" in available_tasks()
