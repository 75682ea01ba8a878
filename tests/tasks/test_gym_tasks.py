"""reasoning-gym tasks: splits, verifier, presets, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.errors import LimbeckError
from limbeck.tasks import Verdict, available_tasks, load_task
from limbeck.tasks.answers import describe, extract_answer, last_boxed
from limbeck.tasks.gym import GymTask
from limbeck.tasks.presets import column_working


def questions(prompts: Any) -> list[str]:
    return [p.messages[0]["content"] for p in prompts]


SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def test_splits_are_disjoint_even_where_questions_are_few() -> None:
    # 200 distinct questions in all, half of them held out: most of the training stream collides.
    task = load_task("chain_sum", train_size=500, test_size=100, **SMALL)
    train, test = questions(task.train), questions(task.test)
    assert (len(train), len(test), len(set(test))) == (500, 100, 100)
    assert not set(train) & set(test)


def test_the_same_seed_gives_the_same_task_and_another_seed_another() -> None:
    first, again, other = (load_task("chain_sum", seed=s, train_size=50, test_size=20) for s in (3, 3, 4))
    assert list(first.train) == list(again.train)
    assert list(first.test) == list(again.test)
    assert not set(questions(first.test)) & set(questions(other.test))
    longer = load_task("chain_sum", seed=3, train_size=400, test_size=20)
    assert list(longer.test) == list(first.test)


def test_prompts_are_made_when_read() -> None:
    task = load_task("chain_sum", train_size=10**6, test_size=10)
    assert task.train[999_999].id == "train/999999"
    assert task.train[-1] == task.train[999_999]
    assert [p.id for p in task.train[2:8:3]] == ["train/2", "train/5"]
    with pytest.raises(IndexError):
        task.train[10**6]


@pytest.mark.parametrize("name", ["chain_sum", "gsm_symbolic", "word_ladder", "spell_backward", "leg_counting"])
def test_right_answers_are_right_and_wrong_ones_wrong(name: str) -> None:
    task = load_task(name, train_size=4, test_size=3)
    for prompt in (*task.train, *task.test):
        (demonstration,) = task.responses(prompt)
        assert demonstration.text == f"<answer>{prompt.privileged['answer']}</answer>"
        assert task.verify(prompt, f"thinking\n{demonstration.text}") == task.verify(prompt, demonstration.text)
        assert task.verify(prompt, demonstration.text).correct
        wrong = task.verify(prompt, "<answer>nonsense</answer>")
        assert not wrong.correct
        assert wrong.reward < 1
        assert wrong.feedback == "got nonsense, which is not right"
        assert not task.verify(prompt, "").correct


def test_prompts_have_their_fields() -> None:
    prompt = load_task("chain_sum", train_size=1, test_size=1, **SMALL).test[0]
    assert prompt.id == "test/0"
    assert prompt.columns == {"num_terms": 2.0, "num_digits": 1.0}
    assert list(prompt.privileged) == ["answer"]


def test_a_data_set_without_a_single_answer_serves_rewards_only() -> None:
    task = load_task("graph_color", train_size=1, test_size=1)
    assert task.serves == {"reward", "feedback"}
    assert task.responses(task.test[0]) == ()
    assert task.test[0].privileged == {}
    assert load_task("chain_sum").serves == {"reward", "feedback", "responses"}


class Verifier:
    def __init__(self, score: Any) -> None:
        self.score = score

    def score_answer(self, answer: str, entry: Any) -> float:
        if isinstance(self.score, Exception):
            raise self.score
        return float(self.score)


def test_a_reward_that_is_not_finite_is_refused_and_a_failing_verifier_means_wrong() -> None:
    task = GymTask("chain_sum", train_size=2, test_size=1)
    prompt = task.test[0]
    task._train_data = Verifier(float("nan"))
    with pytest.raises(LimbeckError, match="gave reward nan to answer '1'"):
        task.verify(prompt, "1")
    task._train_data = Verifier(KeyError("x"))
    assert task.verify(prompt, "<answer>1</answer>") == Verdict(0.0, False, "got 1, which is not right")
    task._train_data = Verifier(0.5)
    assert (task.verify(prompt, "1").reward, task.verify(prompt, "1").correct) == (0.5, False)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("chainsum", {}, "task 'chainsum' is unknown (did you mean 'chain_sum'?)"),
        ("two_digit_sum", {}, "did you mean 'two_digit_sums'?"),
        ("chain_sum", {"min_term": 2}, "option 'min_term' is not one of task 'chain_sum' (did you mean 'min_terms'?)"),
        ("chain_sum", {"tran_size": 2}, "did you mean 'train_size'?"),
        ("chain_sum", {"min_terms": -2}, "min_terms must be positive"),
        ("chain_sum", {"train_size": 0}, "train_size of task 'chain_sum' is 0"),
        ("chain_sum", {"test_size": "9"}, "test_size of task 'chain_sum' is '9'"),
        ("chain_sum", {"seed": -1}, "seed of task 'chain_sum' is -1"),
        ("chain_sum", {"reveal": 1}, "reveal of task 'chain_sum' is 1; give true or false"),
        ("two_digit_sums", {"min_terms": 2}, "it takes train_size, test_size, reveal"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LimbeckError) as refusal:
        load_task(name, **options)
    assert sentence in str(refusal.value)


def test_too_few_questions_are_refused() -> None:
    task = load_task("chain_sum", test_size=300, **SMALL)
    with pytest.raises(LimbeckError, match="test_size=300 is more than the 200 distinct questions"):
        task.test[0]
    tiny = load_task("chain_sum", train_size=1, test_size=199, seed=1, **SMALL)
    with pytest.raises(LimbeckError, match="leaves no question"):
        tiny.train[0]


def test_a_foreign_prompt_is_refused() -> None:
    task, short = load_task("chain_sum", train_size=5, test_size=2), load_task("chain_sum", train_size=3, test_size=2)
    with pytest.raises(LimbeckError, match="'train/4' is not one of task 'chain_sum'"):
        short.verify(task.train[4], "1")


def test_a_ready_task_is_passed_through() -> None:
    task = load_task("two_digit_sums")
    assert load_task(task) is task
    with pytest.raises(LimbeckError, match="'test_size' was given with a Task object"):
        load_task(task, test_size=3)


def test_all_tasks_are_listed() -> None:
    names = available_tasks()
    assert names[0] == "two_digit_sums"
    assert "chain_sum" in names
    assert len(names) == len(set(names))


def test_the_preset_writes_out_right_solutions() -> None:
    task = load_task("two_digit_sums")
    assert (task.name, len(task.train), len(task.test)) == ("two_digit_sums", 12_000, 500)
    for prompt in (*task.train[:200], *task.test[:200]):
        (demonstration,) = task.responses(prompt)
        assert task.verify(prompt, demonstration.text).correct
        working = demonstration.text.split("<answer>")[0].rpartition(":")[2]
        for equation in working.split(","):
            left, right = equation.split("=")
            assert eval(left) == int(right)


def test_column_working() -> None:
    assert column_working(45, "+", 67) == "5+7=12,4+6+1=11<answer>112</answer>"
    assert column_working(45, "-", 67) == "67-45:7-5=2,6-4-0=2<answer>-22</answer>"
    assert column_working(52, "-", 37) == "52-37:12-7=5,5-3-1=1<answer>15</answer>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 12 ", "12"),
        ("<answer>1</answer><answer> 2\n</answer>", "2"),
        ("so #### 3 #### 4", "4"),
        ("#### 3 <answer>5</answer>", "5"),
        ("<answer>6", "<answer>6"),
    ],
)
def test_extract_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_last_boxed() -> None:
    assert last_boxed("\\boxed{1} \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{1") is None
    assert last_boxed("1") is None


@pytest.mark.parametrize(
    ("text", "correct", "feedback"),
    [
        ("<answer>12</answer>", False, "got 12, which is not right"),
        ("<answer> a\n  b </answer>", False, "got a b, which is not right"),
        (f"<answer>{'9' * 200}</answer>", False, f"got {'9' * 77}..., which is not right"),
        ("<answer></answer>", False, "got an empty answer, which is not right"),
        ("so #### 12", False, "got 12, which is not right"),
        ("it is 12", False, "no <answer>...</answer> was found, and the whole text is not the answer"),
        ("\\boxed{12}", False, "no <answer>...</answer> was found, and the whole text is not the answer"),
        ("<answer>12</answer>", True, "got 12, which is right"),
        ("12", True, "got 12, which is right"),
    ],
)
def test_feedback_quotes_the_answer(text: str, correct: bool, feedback: str) -> None:
    assert describe(text, correct) == feedback
    assert describe(text, correct, expected="15") == f"{feedback}; expected 15"


def test_feedback_of_boxed_answers() -> None:
    assert describe("\\boxed{12}", False, boxed=True) == "got 12, which is not right"


def test_feedback_reveals_the_answer_only_if_asked() -> None:
    sealed, open_ = (load_task("two_digit_sums", train_size=2, test_size=2, reveal=r) for r in (False, True))
    for prompt in sealed.test:
        answer = prompt.privileged["answer"]
        assert answer not in (sealed.verify(prompt, "<answer>x</answer>").feedback or "")
        printed = "got x, which is not right; expected " + answer
        assert open_.verify(prompt, "<answer>x</answer>").feedback == printed
    many = load_task("graph_color", train_size=1, test_size=1, reveal=True)
    assert many.verify(many.test[0], "<answer>x</answer>").feedback == "got x, which is not right"
