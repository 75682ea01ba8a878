"""Tasks in turns: the protocol, the corridor, and a second chance."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.errors import LimbeckError
from limbeck.tasks import Corridor, Observation, Retry, Verdict, available_tasks, load_task
from limbeck.types import Prompt


def play(task: Any, prompt: Prompt, actions: Any) -> list[Observation]:
    episode = task.open(prompt)
    try:
        return [episode.step(action) for action in actions]
    finally:
        episode.close()
        episode.close()


def test_the_solution_of_the_corridor_reaches_the_goal() -> None:
    task = load_task("corridor", cells=5, test_size=4, step_cost=0.1)
    assert task.serves == {"reward", "feedback", "episodes"}
    for prompt in (*task.train, *task.test):
        moves = prompt.privileged["solution"].split("\n")
        distance = abs(prompt.columns["start"] - prompt.columns["goal"])
        assert prompt.columns["distance"] == len(moves) == distance
        seen = play(task, prompt, moves)
        assert [o.done for o in seen] == [o.correct for o in seen] == [False] * (len(moves) - 1) + [True]
        assert sum(o.reward for o in seen) == pytest.approx(1 - 0.1 * distance)
        assert all(o.feedback is None for o in seen)


def prompt_of(start: int, goal: int) -> Prompt:
    return Prompt("x", ({"role": "user", "content": "x"},), {}, {"start": float(start), "goal": float(goal)})


def test_the_replies_of_the_corridor() -> None:
    seen = play(
        Corridor(cells=4, test_size=1, max_turns=6), prompt_of(2, 4), ["L", "left", "", "up", " r please", "rr"]
    )
    assert [o.text for o in seen] == [f"at {cell}, goal 4" for cell in (1, 1, 1, 1, 2, 2)]
    write = "write l or r and nothing else"
    assert [o.feedback for o in seen] == ["the goal is to the right", "there is a wall", write, write, None, write]
    assert [(o.done, o.correct, o.reward) for o in seen] == [(False, False, 0.0)] * 5 + [(True, False, 0.0)]
    first = load_task("corridor").train[0]
    start, goal = (int(first.columns[k]) for k in ("start", "goal"))
    assert first.messages[0]["content"] == f"Walk to the goal: write l or r.\nat {start}, goal {goal}"


def test_corridor_splits_are_disjoint_and_a_function_of_the_seed() -> None:
    task, again, other = (load_task("corridor", seed=s) for s in (0, 0, 1))
    train, test = ({p.id for p in split} for split in (task.train, task.test))
    assert (len(train), len(test), len(train | test)) == (60, 12, 72)
    assert (task.train, task.test) == (again.train, again.test)
    assert test != {p.id for p in other.test}
    assert load_task("corridor", train_size=7).train == task.train[:7]


def test_an_episode_that_is_over_takes_no_action() -> None:
    episode = Corridor(cells=2, test_size=1).open(prompt_of(1, 2))
    assert episode.step("r").done
    with pytest.raises(RuntimeError, match="the episode is over"):
        episode.step("r")


def test_a_task_in_turns_does_not_judge_one_text() -> None:
    corridor = load_task("corridor")
    with pytest.raises(LimbeckError, match="'corridor' is played in turns and has no verdict"):
        corridor.verify(corridor.train[0], "r")
    assert corridor.responses(corridor.train[0]) == ()
    sums = load_task("two_digit_sums", train_size=1, test_size=1)
    with pytest.raises(LimbeckError, match="'train/0' is not one of task 'corridor'"):
        corridor.open(sums.train[0])


WRONG = "<answer>x</answer>"


def test_retry_says_what_was_wrong_until_it_is_right() -> None:
    task = load_task("retry", task="two_digit_sums", turns=3, train_size=2, test_size=2)
    assert (task.name, task.serves) == ("retry(two_digit_sums)", {"reward", "feedback", "responses", "episodes"})
    prompt = task.test[0]
    right = task.responses(prompt)[0].text
    first, second = play(task, prompt, [WRONG, right])
    said = "got x, which is not right"
    assert first == Observation("Got x, which is not right.\nTry again.", False, 0.0, False, said)
    assert (second.done, second.reward, second.correct) == (True, 1.0, True)
    last = play(task, prompt, [WRONG] * 3)[-1]
    assert (last.done, last.correct, last.reward, last.feedback) == (True, False, 0.0, said)
    assert task.verify(prompt, right).correct
    with pytest.raises(RuntimeError, match="over"):
        play(task, prompt, [right, right])


class Partial:
    name, serves = "partial", frozenset({"reward"})
    train = test = (prompt_of(1, 2),)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        return Verdict(0.5, text == "right")

    def responses(self, prompt: Prompt) -> tuple[()]:
        return ()


def test_retry_pays_once_and_has_words_of_its_own() -> None:
    seen = play(Retry(Partial(), template="No: {feedback} ({feedback})"), Partial.test[0], ["a", "b"])
    assert [o.reward for o in seen] == [0.0, 0.5]
    assert seen[0].text == "No: That is not right. (That is not right.)"
    assert [o.feedback for o in seen] == ["that is not right"] * 2
    assert play(Retry(Partial()), Partial.test[0], ["right"])[0] == Observation("", True, 0.5, True, None)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("corridor", {"cell": 3}, "option 'cell' is not one of task 'corridor' (did you mean 'cells'?)"),
        ("corridor", {"cells": 1}, "cells of task 'corridor' is 1; give a whole number of at least 2."),
        ("corridor", {"cells": "nine"}, "cells of task 'corridor' is 'nine'"),
        ("corridor", {"max_turns": 0}, "max_turns of task 'corridor' is 0"),
        ("corridor", {"step_cost": 1.5}, "step_cost of task 'corridor' is 1.5; give a number from 0 to 1."),
        ("corridor", {"step_cost": float("nan")}, "step_cost of task 'corridor' is nan"),
        ("corridor", {"test_size": 72}, "9 cells give only 72 prompts"),
        ("corridor", {"train_size": 61}, "train_size is 61, but 9 cells give only 72 prompts"),
        ("corridor", {"train_size": 0}, "train_size of task 'corridor' is 0"),
        ("corridor", {"seed": -1}, "seed of task 'corridor' is -1"),
        ("coridor", {}, "did you mean 'corridor'?"),
        ("retry", {}, "needs the option task"),
        ("retry", {"task": "retry"}, "'retry' itself"),
        ("retry", {"task": 3}, "task of task 'retry' is 3"),
        ("retry", {"task": "corridor"}, "task 'corridor' already has several turns"),
        ("retry", {"task": "chain_sum", "turns": 0}, "turns of task 'retry' is 0"),
        ("retry", {"task": "chain_sum", "template": "no"}, "template of task 'retry' is 'no'"),
        ("retry", {"task": "chain_sum", "template": "{feedback} {answer}"}, "whose only field is {feedback}."),
        ("retry", {"task": "chain_sum", "template": "{feedback"}, "whose only field is {feedback}."),
        ("retry", {"task": "chain_sum", "trns": 3}, "option 'trns' is not one of task 'chain_sum'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LimbeckError) as refusal:
        load_task(name, **options)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_retry_needs_a_verifier(tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    with pytest.raises(LimbeckError, match="task 'a' has no verifier"):
        load_task("retry", task=str(tmp_path / "a.jsonl"))


def test_environments_are_listed() -> None:
    assert {"corridor", "retry"} <= set(available_tasks())
