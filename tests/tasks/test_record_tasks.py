"""JSONL files and data set folders: what they serve, how they split, how they verify, what they refuse."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest

from limbeck.errors import LimbeckError
from limbeck.tasks import Task, load_task
from limbeck.tasks.answers import same_answer
from limbeck.types import Prompt


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def problems(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i} + {i}?", "answer": 2 * i, "level": i % 3} for i in range(first, first + n)]


def texts(prompts: Any) -> set[str]:
    return {p.messages[-1]["content"] for p in prompts}


def test_a_file_is_read_split_and_verified(tmp_path: Path) -> None:
    task = load_task(str(write(tmp_path / "sums.jsonl", problems(50))))
    assert (task.name, task.serves) == ("sums", {"reward", "feedback"})
    assert len(task.train) + len(task.test) == 50
    assert not texts(task.train) & texts(task.test)
    prompt = next(p for p in task.train if p.messages[0]["content"] == "What is 4 + 4?")
    assert prompt.messages == ({"role": "user", "content": "What is 4 + 4?"},)
    assert (prompt.privileged, prompt.columns) == ({"answer": "8"}, {"level": 1.0})
    verdict = task.verify(prompt, "4 + 4 = <answer>8</answer>")
    assert (verdict.reward, verdict.correct, verdict.feedback) == (1.0, True, "got 8, which is right")
    assert task.verify(prompt, "\\boxed{9}").feedback == "got 9, which is not right"
    printed = load_task(str(tmp_path / "sums.jsonl"), reveal=True).verify(prompt, "<answer>9</answer>")
    assert printed.feedback == "got 9, which is not right; expected 8"
    assert not task.verify(prompt, "").correct
    assert task.responses(prompt) == ()


def test_the_split_is_stable_under_appending(tmp_path: Path) -> None:
    few = load_task(write(tmp_path / "a.jsonl", problems(60)))
    many = load_task(write(tmp_path / "b.jsonl", problems(60) + problems(60, 60)), seed=7)
    assert texts(few.train) <= texts(many.train)
    assert texts(few.test) <= texts(many.test)
    assert [p.id for p in few.train] == [p.id for p in many.train][: len(few.train)]


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 0.999999])
@pytest.mark.parametrize("n", [2, 3, 40])
def test_both_sides_hold_a_prompt(tmp_path: Path, n: int, fraction: float) -> None:
    task = load_task(write(tmp_path / "a.jsonl", problems(n)), test_fraction=fraction)
    assert len(task.train) >= 1
    assert len(task.test) >= 1
    assert len(task.train) + len(task.test) == n


def test_equal_texts_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i % 5}", "answer": "x", "id": i} for i in range(40)]
    with pytest.raises(LimbeckError, match="id"):
        load_task(write(tmp_path / "c.jsonl", [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}]), test_fraction=0)
    task = load_task(write(tmp_path / "a.jsonl", rows), test_fraction=0.4)
    assert not texts(task.train) & texts(task.test)
    single = load_task(write(tmp_path / "b.jsonl", rows[:1]))
    assert (len(single.train), len(single.test)) == (1, 0)


def test_fraction_zero_holds_nothing_out(tmp_path: Path) -> None:
    assert len(load_task(write(tmp_path / "a.jsonl", problems(20)), test_fraction=0).test) == 0


def test_a_test_file_and_its_overlap(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.jsonl", problems(10)), write(tmp_path / "b.jsonl", problems(5, 8))
    with pytest.warns(UserWarning, match="2 of 10 training prompts"):
        task = load_task(str(train), test_path=str(test))
    assert (len(task.train), len(task.test)) == (8, 5)
    with pytest.raises(LimbeckError, match="all training prompts"):
        load_task(str(train), test_path=str(train))


def test_demonstrations_pairs_and_privileged_text(tmp_path: Path) -> None:
    plain = load_task(write(tmp_path / "a.jsonl", [{"prompt": "p", "response": "r", "hint": "h", "id": 3}]))
    assert plain.serves == {"responses"}
    assert (plain.train[0].id, plain.train[0].privileged) == ("3", {"hint": "h"})
    assert [r.text for r in plain.responses(plain.train[0])] == ["r"]
    pairs = load_task(write(tmp_path / "b.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r", "answer": "c"}]))
    assert pairs.serves == {"pairs", "reward", "feedback"}
    assert [(r.text, r.label) for r in pairs.responses(pairs.train[0])] == [("c", 1.0), ("r", 0.0)]
    mixed = load_task(write(tmp_path / "c.jsonl", [{"prompt": "p", "response": "r"}, {"prompt": "q", "answer": "1"}]))
    assert mixed.serves == frozenset()


def test_a_last_assistants_message_is_the_demonstration(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    task = load_task(write(tmp_path / "a.jsonl", [{"messages": messages}]))
    assert task.serves == {"responses"}
    assert task.train[0].messages == (messages[0],)
    assert task.responses(task.train[0])[0].text == "ho"


def test_columns_rename_keys_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", [{"question": "q", "gold": "1"}])
    task = load_task("~/a.jsonl", columns={"prompt": "question", "answer": "gold"})
    assert task.train[0].privileged == {"answer": "1"}


@pytest.mark.parametrize(
    ("answer", "response", "correct"),
    [
        ("12", "it is \\boxed{12}", True),
        ("12", "\\boxed{13} no, \\boxed{\\frac{24}{2}}", True),
        ("0.5", "<answer>1/2</answer>", True),
        ("\\frac{1}{2}", "<answer>0.5</answer>", True),
        ("$\\frac{1}{2}$", "<answer>0.5</answer>", True),
        ("x^2 + 1", "<answer>1 + x^2</answer>", True),
        ("1,000", "<answer>1000</answer>", True),
        ("12", "The answer is 12", True),
        ("work\n#### 12", "so\n#### 12", True),
        ("12", "<answer>12</answer> or <answer>13</answer>", False),
        ("Paris", "<answer>Paris</answer>", True),
        ("Paris", "<answer>Pairs</answer>", False),
        ("B", "<answer>b</answer>", False),
        ("room 12", "<answer>12</answer>", False),
        ("2024-05-01", "<answer>2018</answer>", False),
        ("12", "<answer>9^{9^{9^{9}}}</answer>", False),
        ("12", "<answer>2**3**9**9</answer>", False),
        ("12", "<answer>10^{9999999999}</answer>", False),
        ("2^{10}", "<answer>1024</answer>", True),
        ("x^2y^3", "<answer>y^3 x^2</answer>", True),
        ("12", "<answer>)(^{</answer>", False),
    ],
)
def test_the_verifier(tmp_path: Path, answer: str, response: str, correct: bool) -> None:
    task = load_task(write(tmp_path / "a.jsonl", [{"prompt": "p", "answer": answer}]))
    assert task.verify(task.train[0], response).correct is correct


def test_the_verifier_outside_the_main_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(same_answer, "0.5", "1/2").result()
        assert not pool.submit(same_answer, "0.5", "9^{9^{9^9}}").result()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{nope", "line 2 is not JSON"),
        ("[1]", "line 2 holds [1]"),
        ({"promt": "x"}, "line 2 has neither 'prompt' nor 'messages', only 'promt' (did you mean 'prompt'?)"),
        ({"prompt": 3}, "line 2: 'prompt' is 3; give a string"),
        ({"prompt": " "}, "line 2: 'prompt' is ' '; give a string that is not empty"),
        ({"prompt": "a", "messages": []}, "line 2 has both 'prompt' and 'messages'"),
        ({"messages": []}, "line 2: 'messages' is []"),
        ({"messages": ["hi"]}, "line 2: 'messages' holds 'hi'"),
        ({"messages": [{"role": "user"}]}, "give strings 'role' and 'content'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "only an assistant's message"),
        ({"prompt": "a", "chosen": "c"}, "line 2 has 'chosen' but no 'rejected'"),
        ({"prompt": "a", "chosen": "c", "rejected": ["r"]}, "line 2: 'rejected' is ['r']; give a string"),
        ({"prompt": "a", "chosen": "c", "rejected": "r", "response": "r"}, "line 2 has both 'response' and 'chosen'"),
        ({"prompt": "a", "answer": True}, "line 2: 'answer' is True"),
        ({"prompt": "a", "id": [1]}, "line 2: 'id' is [1]"),
        ({"messages": [{"role": "user", "content": " "}]}, "whose content is empty; give it text"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}, "content is empty"),
        ({"messages": [{"role": "user", "content": None}]}, "give strings 'role' and 'content'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "give strings 'role' and 'content'"),
        ({"prompt": "a", "response": ""}, "line 2: 'response' is ''; give a string that is not empty"),
        ({"prompt": "a", "chosen": "c", "rejected": " "}, "line 2: 'rejected' is ' '"),
        ({"prompt": "a", "chosen": "c", "rejected": "c"}, "line 2: 'chosen' and 'rejected' are both 'c'"),
        ({"prompt": "a", "tools": "add"}, "line 2: 'tools' is 'add'; give a list"),
        ({"prompt": "a", "chat_template_kwargs": ["x"]}, "line 2: 'chat_template_kwargs' is ['x']; give an object"),
        (
            {"prompt": "a", "tools": [1], "chat_template_kwargs": {"tools": [2]}},
            "has 'tools' in 'chat_template_kwargs'",
        ),
        ('{"prompt": "a", "prompt": "b"}', "line 2 has the key 'prompt' twice in one object"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "line 2 has the key 'content' twice"),
    ],
)
def test_refusals_name_file_and_line(tmp_path: Path, line: Any, sentence: str) -> None:
    path = write(tmp_path / "bad.jsonl", [{"prompt": "fine"}, line])
    with pytest.raises(LimbeckError) as refusal:
        load_task(path)
    assert str(path) in str(refusal.value)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_wrong_files_and_options_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", problems(3))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xff"}')
    for spec, options, sentence in [
        (write(tmp_path / "empty.jsonl", ["", ""]), {}, "holds no records"),
        (tmp_path / "none.jsonl", {}, "does not exist"),
        (tmp_path / "latin.jsonl", {}, "is not UTF-8"),
        (tmp_path / "none", {}, "does not exist"),
        (write(tmp_path / "a.txt", ["a"]), {}, "another kind"),
        (tmp_path, {}, "is no saved data set"),
        (path, {"test_fracton": 0.1}, "did you mean 'test_fraction'?"),
        (path, {"test_fraction": 1.0}, "test_fraction is 1.0"),
        (path, {"reveal": "yes"}, "reveal of task 'a' is 'yes'; give true or false"),
        (path, {"columns": {"promt": "x"}}, "did you mean 'prompt'?"),
        (path, {"columns": {"prompt": "promt"}}, "no column 'promt' for 'prompt' (did you mean 'prompt'?); it has"),
    ]:
        with pytest.raises(LimbeckError) as refusal:
            load_task(str(spec), **options)
        assert sentence in str(refusal.value)


def test_a_prompt_without_an_answer_is_not_verified(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "a.jsonl", [{"prompt": "p"}]))
    with pytest.raises(LimbeckError, match="has no 'answer'"):
        task.verify(task.train[0], "x")


def folder(path: Path, **splits: list[dict[str, Any]]) -> Path:
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()}).save_to_disk(path)
    return path


def test_a_folder_with_and_without_a_test_split(tmp_path: Path) -> None:
    task: Task = load_task(folder(tmp_path / "both", train=problems(10), test=problems(4, 10)))
    assert (task.name, task.serves, len(task.train), len(task.test)) == ("both", {"reward", "feedback"}, 10, 4)
    prompt: Prompt = task.test[0]
    assert task.verify(prompt, f"\\boxed{{{prompt.privileged['answer']}}}").correct
    printed = load_task(tmp_path / "both", reveal=True).verify(prompt, "<answer>x</answer>").feedback
    assert printed == f"got x, which is not right; expected {prompt.privileged['answer']}"
    datasets.Dataset.from_list(problems(30)).save_to_disk(tmp_path / "plain")
    plain = load_task(str(tmp_path / "plain"))
    lines = load_task(write(tmp_path / "same.jsonl", problems(30)))
    assert [p.id for p in plain.test] == [p.id for p in lines.test]


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="split train, row 1: 'prompt' is ' '"):
        load_task(folder(tmp_path / "a", train=[{"prompt": "x"}, {"prompt": " "}]))
    with pytest.raises(LimbeckError, match="'x', 'y'; name the one to train on 'train'"):
        load_task(folder(tmp_path / "b", x=problems(1), y=problems(1)))
    broken = tmp_path / "c"
    broken.mkdir()
    (broken / "state.json").write_text("{}")
    with pytest.raises(LimbeckError, match="cannot be read"):
        load_task(broken)


# ---------------------------------------------------------------- odd JSON


ODD = {
    "a number of thousands of digits": ('{"prompt": "a", "n": ' + "9" * 5000 + "}", "thousands of digits"),
    "a deep list": ('{"prompt": "a", "n": ' + "[" * 100_000, "nested too deeply"),
    "half a character in the prompt": (r'{"prompt": "a\ud83d"}', r"half a character (\ud83d)"),
    "half a character in a message": (r'{"messages": [{"role": "user", "content": "\udc00"}]}', r"(\udc00)"),
    "half a character in the response": (r'{"prompt": "a", "response": "\ud800"}', r"(\ud800)"),
    "half a character in a column": (r'{"prompt": "a", "x": "\ud800"}', r"(\ud800)"),
    "half a character in a name": (r'{"prompt": "a", "\ud800": 1}', r"(\ud800)"),
    "an answer that is no number": ('{"prompt": "a", "answer": NaN}', "'answer' is nan"),
    "an endless answer": ('{"prompt": "a", "answer": -Infinity}', "'answer' is -inf"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_json_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    line, words = ODD[case]
    file = write(tmp_path / "a.jsonl", [*problems(3), line])
    with pytest.raises(LimbeckError) as e:
        load_task(file)
    assert "a.jsonl, line 4" in str(e.value)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_odd_columns_are_no_reason_to_stop(tmp_path: Path) -> None:
    huge = 10**400
    row = {"prompt": "a", "answer": huge, "n": huge, "m": -huge, "l": [1], "t": {"x": 1}, "b": True, "none": None}
    for _ in range(900):  # deep, and below Python's limit of 1,000 with the frames of the test itself
        row["l"] = [row["l"]]
    (prompt,) = load_task(write(tmp_path / "a.jsonl", [row])).train
    assert prompt.privileged == {"answer": str(huge)}
    assert prompt.columns == {"n": float("inf"), "m": -float("inf"), "b": 1.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": 3}, "columns is 3"),
        ({"columns": ["prompt"]}, "columns is ['prompt']"),
        ({"columns": {"prompt": 3}}, "columns.prompt is 3"),
        ({"columns": {"prompt": ["a"]}}, "columns.prompt is ['a']"),
        ({"test_path": 3}, "the held-out data is of type int; give a Dataset"),
        ({"test_path": "x" * 5000 + ".jsonl"}, "does not exist"),
    ],
)
def test_options_of_surprising_types(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    file = write(tmp_path / "a.jsonl", problems(3))
    with pytest.raises(LimbeckError) as e:
        load_task(file, **options)
    assert words in str(e.value)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "y/" + "x" * 5000, "~nobody-of-that-name/a", "~nobody-of-that-name/a.jsonl", "a\0b"]
)
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(LimbeckError, match=r"unknown|does not exist"):
        load_task(name)


def test_columns_that_cannot_be_decoded(tmp_path: Path) -> None:
    class Broken:
        def __iter__(self) -> Any:
            yield {"prompt": "a"}
            raise ImportError("Pillow is\nneeded")

    from limbeck.tasks.sources import rows_of

    with pytest.raises(
        LimbeckError, match=r"here cannot be read \(Pillow is\); leave out columns that are not text\.$"
    ):
        rows_of(Broken(), "here")


def trajectory(task: int, turns: int, ending: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": "Act."}, {"role": "user", "content": f"task {task}"}]
    for turn in range(1, turns + 1):
        messages.append({"role": "assistant", "content": f"act {task}.{turn}{ending}"})
        messages.append({"role": "user", "content": f"seen {task}.{turn}"})
    return {"messages": messages, "answer": "7", "level": task}


def test_a_trajectory_is_cut_into_a_prompt_for_each_turn(tmp_path: Path) -> None:
    whole = trajectory(0, 3)
    whole["messages"].pop()  # one that ends in the assistant's turn: the demonstration is a turn as well
    task = load_task(write(tmp_path / "a.jsonl", [whole]), per_turn=True)
    assert task.serves == {"responses"}
    assert [p.messages for p in task.train] == [tuple(whole["messages"][:place]) for place in (2, 4, 6)]
    assert [task.responses(p)[0].text for p in task.train] == ["act 0.1", "act 0.2", "act 0.3"]
    assert [p.id.split(", ")[1] for p in task.train] == ["turn 1", "turn 2", "turn 3"]
    assert task.train[1].privileged == {"answer": "7"}
    assert task.train[1].columns == {"level": 0.0}
    uncut = load_task(write(tmp_path / "b.jsonl", [whole]))
    assert (len(uncut.train), uncut.serves) == (1, {"responses", "reward", "feedback"})


def test_a_leading_assistant_message_is_not_a_turn(tmp_path: Path) -> None:
    said = [("assistant", "Hello."), ("user", "hi"), ("assistant", "ho")]
    messages = [{"role": role, "content": text} for role, text in said]
    task = load_task(write(tmp_path / "a.jsonl", [{"messages": messages}]), per_turn=True)
    assert [p.messages for p in task.train] == [tuple(messages[:2])]


def test_trajectories_of_one_opening_stay_on_one_side(tmp_path: Path) -> None:
    rows = [trajectory(n // 2, 2, ending=str(n)) for n in range(20)]
    task = load_task(write(tmp_path / "a.jsonl", rows), per_turn=True, test_fraction=0.4)
    openings = [{p.columns["level"] for p in side} for side in (task.train, task.test)]
    assert openings[0] | openings[1] == set(range(10))
    assert not openings[0] & openings[1]
    assert len(task.train) + len(task.test) == 40
    other = write(tmp_path / "b.jsonl", [trajectory(0, 3, ending="other")])
    with pytest.warns(UserWarning, match="2 of 20 training prompts"):
        apart = load_task(tmp_path / "a.jsonl", per_turn=True, test_path=other)
    assert (len(apart.train), len(apart.test)) == (36, 3)
    kept = folder(tmp_path / "folder", train=rows[:6], test=rows[6:])
    assert [len(side) for side in (load_task(kept, per_turn=True).train, load_task(kept).train)] == [12, 6]


@pytest.mark.parametrize(
    ("row", "per_turn", "words"),
    [
        ({"prompt": "a"}, True, "line 1 has no assistant turn; give the whole trajectory as 'messages'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, True, "line 1 is a pair, which has no turns to cut"),
        ({"prompt": "a", "response": "b"}, 1, "is 1; give true or false"),
    ],
)
def test_trajectories_that_cannot_be_cut_are_refused(
    tmp_path: Path, row: dict[str, Any], per_turn: Any, words: str
) -> None:
    with pytest.raises(LimbeckError, match=words):
        load_task(write(tmp_path / "a.jsonl", [row]), per_turn=per_turn)


def test_every_line_keeps_its_own_answer(tmp_path: Path) -> None:
    """Several demonstrations or pairs of one prompt become several prompts with different ids."""
    rows: list[dict[str, Any]] = [{"prompt": f"p{n % 4}", "response": f"r{n}", "id": f"i{n % 4}"} for n in range(12)]
    task = load_task(write(tmp_path / "a.jsonl", [*rows, rows[5]]), test_fraction=0)
    assert sorted(task.responses(p)[0].text for p in task.train) == sorted([*(r["response"] for r in rows), "r5"])
    assert {p.id for p in task.train} == {f"i{n}{k}" for n in range(4) for k in ("", " (2)", " (3)")}
    pairs = [{"prompt": "p", "chosen": f"c{n}", "rejected": f"d{n}"} for n in range(3)]
    both = load_task(write(tmp_path / "b.jsonl", pairs), test_fraction=0)
    assert [[r.text for r in both.responses(p)] for p in both.train] == [[f"c{n}", f"d{n}"] for n in range(3)]
    kept = load_task(folder(tmp_path / "folder", train=rows), test_fraction=0)
    assert len({kept.responses(p)[0].text for p in kept.train}) == 12
    turns = [trajectory(0, 2) for _ in range(3)]
    for n, row in enumerate(turns):
        row["messages"][-2]["content"] = f"last {n}"
    cut = load_task(write(tmp_path / "c.jsonl", turns), per_turn=True, test_fraction=0)
    assert {cut.responses(p)[0].text for p in cut.train} == {"act 0.1", "last 0", "last 1", "last 2"}


# ---------------------------------------------------------------- what the chat template gets


def test_every_key_of_messages_and_records_is_kept(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": None}}}
    asked = {"role": "user", "content": "q", "name": "Ann"}
    called = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": None}
    printed = {"role": "tool", "content": "", "tool_call_id": "1"}
    said = {"role": "assistant", "content": "42", "reasoning_content": "six"}
    row = {"messages": [asked, called, printed, said], "tools": [call], "chat_template_kwargs": {"thinking": False}}
    file = write(tmp_path / "a.jsonl", [row])
    task = load_task(file)
    (prompt,) = task.train
    del called["reasoning_content"]  # null is nothing
    assert prompt.messages == (asked, called, printed)
    assert prompt.chat_template_kwargs == {"tools": [call], "thinking": False}
    assert (prompt.columns, prompt.where) == ({}, f"{file}, line 1")
    assert [r.message for r in task.responses(prompt)] == [said]
    turns = load_task(file, per_turn=True)
    assert [[r.message for r in turns.responses(p)] for p in turns.train] == [[called], [said]]
    assert all(p.chat_template_kwargs == prompt.chat_template_kwargs for p in turns.train)


def test_a_folder_keeps_them_too(tmp_path: Path) -> None:
    """Its columns give every message the keys of all messages, with null for absent ones."""
    said = {"role": "assistant", "content": "42", "reasoning_content": "six"}
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}, said]} for i in range(2)]
    task = load_task(folder(tmp_path / "a", train=rows))
    assert task.train[0].messages == ({"role": "user", "content": "q0"},)
    assert task.responses(task.train[0])[0].message == said


def test_prompts_that_differ_for_the_template_have_different_ids(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": "a", "tools": [{"n": n}]} for n in (1, 2)]
    task = load_task(write(tmp_path / "a.jsonl", rows), test_fraction=0)
    first, second = task.train
    assert first.id != second.id
    asked, said = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    rows = [{"messages": [asked, {**said, "reasoning": r}]} for r in "xy"]
    task = load_task(write(tmp_path / "b.jsonl", rows), test_fraction=0)
    assert [task.responses(p)[0].further for p in task.train] == [{"reasoning": "x"}, {"reasoning": "y"}]
    # Nothing changes for records without: their ids are those of earlier runs.
    (plain,) = load_task(write(tmp_path / "c.jsonl", [{"prompt": "q"}])).train
    assert plain.id == hashlib.sha256(json.dumps([{"role": "user", "content": "q"}]).encode()).hexdigest()[:16]


def test_keys_that_nothing_reads_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": "1", "meta": {"x": 1}, "tags": ["a"], "level": 2}]
    with pytest.warns(UserWarning, match=r"a.jsonl: 'meta', 'tags' hold lists or objects, which are not used"):
        load_task(write(tmp_path / "a.jsonl", rows))
    with pytest.warns(UserWarning, match=r"split train: 'tags' hold lists"):
        load_task(folder(tmp_path / "b", train=[{"prompt": "q", "answer": "1", "tags": ["a"]}]))


def test_files_put_together_keep_their_byte_order_marks(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\n" for row in problems(3)))
    assert len(load_task(file, test_fraction=0).train) == 3


def test_services_that_some_records_lack_are_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{i}", "answer": "1", "response": "r"} for i in range(8)]
    del rows[4]["response"]
    task: Any = load_task(write(tmp_path / "a.jsonl", rows), test_fraction=0)
    assert task.serves == {"reward", "feedback"}
    assert task.lacking == {"responses": f"1 of 8 records lack it, first {tmp_path / 'a.jsonl'}, line 5"}
