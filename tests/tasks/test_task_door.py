"""``lb.task``: data of every kind, reward functions of every form, and what bad input gets."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import limbeck as lb
from limbeck import user_files as own_files
from limbeck.engine.build import build_method, prepare_tasks
from limbeck.engine.config import RunConfig, configure, parse_settings
from limbeck.errors import LimbeckError
from limbeck.tasks import DatasetTask, Verdict, load_task, sources
from limbeck.tasks.base import Unjudged, judge_response, judge_responses

ROWS = [{"question": f"What is {i} + {i}?", "gold": str(2 * i), "level": i % 3} for i in range(40)]


def shorter(response: str) -> float:
    return 1 / (1 + len(response))


def texts(prompts: Any) -> list[str]:
    return [p.messages[-1]["content"] for p in prompts]


def make(kind: str, folder: Path) -> Any:
    """The same rows in another form."""
    data = datasets.Dataset.from_list(ROWS)
    file = folder / f"sums.{kind}"
    match kind:
        case "dataset":
            return data
        case "dict":
            return datasets.DatasetDict({"train": data})
        case "list":
            return ROWS
        case "jsonl":
            file.write_text("\n".join(map(json.dumps, ROWS)))
        case "parquet":
            data.to_parquet(file)
        case "csv":
            data.to_csv(file)
        case "folder":
            data.save_to_disk(file)
    return str(file)


@pytest.mark.parametrize("kind", ["dataset", "dict", "list", "jsonl", "parquet", "csv", "folder"])
def test_every_form_of_the_same_rows_is_the_same_task(kind: str, tmp_path: Path) -> None:
    task = lb.task(make(kind, tmp_path), prompt="question", answer="gold")
    plain = lb.task(ROWS, prompt="question", answer="gold")
    assert task.serves == {"reward", "feedback"}
    assert (texts(task.train), texts(task.test)) == (texts(plain.train), texts(plain.test))
    assert [p.privileged for p in task.train] == [p.privileged for p in plain.train]
    assert task.train[0].columns["level"] == plain.train[0].columns["level"]
    assert task.verify(task.train[0], f"<answer>{task.train[0].privileged['answer']}</answer>").correct


def test_a_csv_file_keeps_texts_and_reads_empty_cells_as_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('question,gold,hint,n\n007,2024-05-01,,1\n"two\nlines",NA,"h, i",2.5\n')
    first, second = lb.task(file, prompt="question", answer="gold", test_size=0).train
    assert (texts([first, second]), first.columns) == (["007", "two\nlines"], {"n": 1.0})
    assert (first.privileged, second.privileged) == ({"answer": "2024-05-01"}, {"answer": "NA", "hint": "h, i"})
    file.write_text("question,gold\n007,0010\n")
    (numbers,) = lb.task(file, prompt="question", answer="gold").train
    assert (texts([numbers]), numbers.privileged) == (["007"], {"answer": "0010"})


def test_a_prompt_may_be_chat_messages_as_in_trl() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    said = [{"role": "assistant", "content": "Ho"}]
    task = lb.task([{"prompt": chat, "completion": said}], response="completion")
    assert list(task.train[0].messages) == chat
    assert [r.text for r in task.responses(task.train[0])] == ["Ho"]
    named = lb.task([{"prompt": "not this", "dialogue": chat}], prompt="dialogue")
    assert list(named.train[0].messages) == chat
    both = lb.task([{"messages": chat, "question": "this"}], prompt="question")
    assert texts(both.train) == ["this"]


def test_columns_may_change_places() -> None:
    task = lb.task(
        [{"prompt": "the solution", "problem": "the problem"}], prompt="problem", columns={"solution": "prompt"}
    )
    assert (texts(task.train), task.train[0].privileged) == (["the problem"], {"solution": "the solution"})


# ---------------------------------------------------------------- splits


def splits(**parts: list[Any]) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})


def test_the_split_to_train_on_and_the_held_out_one() -> None:
    data = splits(train=ROWS[:20], validation=ROWS[20:25], test=ROWS[25:])
    task = partial(lb.task, data, prompt="question")
    sizes = [
        {},
        {"test": "validation"},
        {"split": "validation"},
        {"split": "test", "test": "validation"},
        {"test_size": 0.0},
        {"test": ROWS[30:]},
    ]
    found = [(len(t.train), len(t.test)) for t in (task(**options) for options in sizes)]
    assert found == [(20, 15), (20, 5), (5, 15), (15, 5), (20, 0), (20, 10)]


def test_a_number_of_problems_or_a_share_is_held_out() -> None:
    counts = [len(lb.task(ROWS, prompt="question", test_size=n).test) for n in (0, 1, 7, 39, 40, 1000)]
    assert counts == [0, 1, 7, 39, 39, 39]
    few, many = (lb.task(ROWS[:n], prompt="question", test_size=0.3) for n in (20, 40))
    assert set(texts(few.test)) <= set(texts(many.test))
    default = lb.task(ROWS, prompt="question", test_size=0.3, seed=0)
    other = lb.task(ROWS, prompt="question", test_size=0.3, seed=1)
    assert texts(default.test) == texts(many.test)
    assert texts(other.test) != texts(many.test)


def test_a_held_out_file_of_another_kind(tmp_path: Path) -> None:
    task = lb.task(make("parquet", tmp_path), prompt="question", test=[*ROWS[:3], {"question": "new"}])
    assert (len(task.train), texts(task.test)[-1]) == (37, "new")


def test_the_earlier_names_of_options_still_work(tmp_path: Path) -> None:
    file = make("jsonl", tmp_path)
    same = [load_task(file, prompt="question", **o) for o in ({"test_fraction": 0.4}, {"test_size": 0.4})]
    assert texts(same[0].test) == texts(same[1].test)


# ---------------------------------------------------------------- rewards


def judge(reward: Any, text: str = "abc", **options: Any) -> Verdict:
    task = lb.task(ROWS, prompt="question", reward=reward, **options)
    return judge_response(task, next(p for p in task.train if "4 + 4" in p.messages[0]["content"]), text)


def test_arguments_are_filled_by_name() -> None:
    seen: list[Any] = []

    def one(prompt: str, response: str, gold: str, row: dict[str, Any], level: int, other: int = 7) -> float:
        seen.append((prompt, response, gold, row, level, other))
        return 0.25

    assert judge(one) == Verdict(0.25, False)
    assert seen == [("What is 4 + 4?", "abc", "8", ROWS[4], 1, 7)]
    assert judge(lambda response, **columns: float(columns == ROWS[4])).correct
    assert judge(lambda response, answer: float(answer == "8"), answer="gold").correct


def test_a_batch_gets_lists_as_in_trl() -> None:
    seen: list[Any] = []

    def batch(prompts: list[Any], completions: list[Any], gold: list[str], **kwargs: Any) -> list[float]:
        seen.append((prompts, completions, gold, sorted(kwargs)))
        return [float(g == c) for g, c in zip(gold, completions, strict=True)]

    task = lb.task(ROWS, prompt="question", reward=batch)
    said = judge_responses(task, task.train[:3], ["0", "0", "4"])
    assert [v.reward for v in said if isinstance(v, Verdict)] == [1.0, 0.0, 1.0]
    assert seen == [(texts(task.train[:3]), ["0", "0", "4"], ["0", "2", "4"], ["level", "question"])]
    chat = lb.task([{"prompt": [{"role": "user", "content": "Hi"}]}], reward=batch_of_messages)
    assert judge_response(chat, chat.train[0], "Ho").reward == 2.0


def batch_of_messages(prompts: Any, completions: Any) -> Any:
    assert prompts == [[{"role": "user", "content": "Hi"}]]
    assert completions[0][0]["role"] == "assistant"
    return np.array([len(c[0]["content"]) for c in completions])


def test_several_rewards_are_weighed() -> None:
    def one(response: str) -> float:
        return 0.5

    def right(response: str) -> bool:
        return True

    assert judge([one, right]).reward == 1.5
    assert judge([one, right], weights=[2, -3]) == Verdict(-2.0, False)
    assert judge([one, lambda response: None], weights=[3, 100]).reward == 1.5  # None takes no part
    assert judge(one, correct_at=0.6).correct is False
    assert judge(lambda response: Verdict(0.1, True)).correct is True
    for scalar in (torch.tensor(0.25), np.float32(0.25)):
        assert judge(lambda response, s=scalar: s).reward == 0.25


def test_a_reward_of_none_leaves_the_response_unjudged() -> None:
    def raises(response: str) -> float:
        raise KeyError("no key")

    place = r"line \d+ of test_task_door\.py"
    for reward, reason in (
        (named("mute", lambda response: None), "^reward mute returned None"),
        (raises, f"^reward raises, {place}: KeyError: 'no key'"),
    ):
        with pytest.raises(Unjudged, match=reason):
            judge(reward)
    with pytest.raises(Unjudged, match="every reward function returned None"):
        judge([lambda response: None, lambda response: None])
    with pytest.raises(Unjudged, match="no key"):
        judge([lambda response: 1.0, raises])


def test_in_a_batch_that_raises_only_those_at_fault_are_lost() -> None:
    def batch(completions: list[str]) -> list[float]:
        return [1 / len(c) for c in completions]

    task = lb.task(ROWS, prompt="question", reward=batch)
    said = judge_responses(task, task.train[:3], ["a", "", "ab"])
    assert [v.reward if isinstance(v, Verdict) else v.reason.split(": ")[1] for v in said] == [
        1.0,
        "ZeroDivisionError",
        0.5,
    ]


def test_coroutines_run_together_in_one_loop() -> None:
    loops: set[int] = set()
    running, most = 0, 0

    async def ask(response: str) -> float:
        nonlocal running, most
        loops.add(id(asyncio.get_running_loop()))
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        if response == "bad":
            raise OSError("refused")
        return float(response)

    task = lb.task(ROWS, prompt="question", reward=ask)
    said = judge_responses(task, task.train[:4], ["1", "2", "bad", "3"])
    line = ask.__code__.co_firstlineno + 8
    failed = f"reward ask, line {line} of test_task_door.py: OSError: refused"
    assert [v.reward if isinstance(v, Verdict) else v.reason for v in said] == [1.0, 2.0, failed, 3.0]
    assert judge_response(task, task.train[0], "5").reward == 5.0
    assert most == 4
    assert len(loops) == 1  # a client keeps its connections

    async def in_a_notebook() -> Any:  # where a loop is running already
        return judge_response(task, task.train[0], "6")

    assert asyncio.run(in_a_notebook()).reward == 6.0

    async def batch(completions: list[str]) -> list[float]:
        return [float(c) for c in completions]

    both = lb.task(ROWS, prompt="question", reward=[ask, batch])
    assert [v.reward for v in judge_responses(both, both.train[:2], ["1", "2"]) if isinstance(v, Verdict)] == [2.0, 4.0]


@pytest.mark.parametrize("kind", ["sync", "async", "batch"])
def test_a_reward_that_hangs_is_ended(kind: str) -> None:
    async def waits(response: str) -> float:
        await asyncio.sleep(60 if response == "x" else 0)
        return 1.0

    def hangs(response: str) -> float:
        time.sleep(60 if response == "x" else 0)
        return 1.0

    def batch(completions: list[str]) -> list[float]:
        return [hangs(c) for c in completions]

    task = lb.task(ROWS, prompt="question", reward={"sync": hangs, "async": waits, "batch": batch}[kind])
    began = time.monotonic()
    said = judge_responses(task, task.train[:2], ["x", "y"], seconds=0.3)
    assert time.monotonic() - began < 5
    assert isinstance(said[0], Unjudged)
    judged_by = {"sync": "hangs", "async": "waits", "batch": "batch"}[kind]
    assert said[0].reason == f"reward {judged_by} took longer than 0.3 s"
    assert isinstance(said[1], Unjudged if kind == "batch" else Verdict)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, "right", [1.0], {}, Verdict(math.nan, True)])
def test_values_that_are_not_rewards_are_refused(value: Any) -> None:
    with pytest.raises(LimbeckError, match=r"reward mine gave .* to prompt .*; return a finite number, or None"):
        judge(named("mine", lambda response: value))


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    function.__name__ = name
    return function


@pytest.mark.parametrize("value", [[], [1.0, 2.0], 1.0, None])
def test_a_batch_of_another_length_is_refused(value: Any) -> None:
    with pytest.raises(LimbeckError, match=r"gave .* for 1 completions; return a list with one for each"):
        judge(lambda completions: value)


def test_a_subclass_may_judge_by_itself() -> None:
    class Own(DatasetTask):
        def verify(self, prompt: Any, text: str) -> Verdict:
            return Verdict(0.125, False)

    task = Own([{"prompt": "p", "answer": "1"}])
    assert judge_responses(task, task.train, ["x"]) == [Verdict(0.125, False)]


def test_answers_of_any_kind_reach_a_reward() -> None:
    rows = [{"prompt": f"p{i}", "answer": [i], "solution": {"x": i}} for i in range(3)]
    task = lb.task(rows, reward=lambda response, answer, solution: float(answer == [solution["x"]]), test_size=0)
    assert judge_response(task, task.train[2], "").reward == 1.0
    assert task.serves == {"reward"}


# ---------------------------------------------------------------- bad input


def by_place(response: str, /) -> float:
    return 0.0


def unread(prompt: str) -> float:
    return 0.0


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an unknown column": (
        ROWS,
        {"prompt": "quesion"},
        r"no column 'quesion' for 'prompt' \(did you mean 'question'\?\)",
    ),
    "an unknown answer": (
        ROWS,
        {"prompt": "question", "answer": "x"},
        "has no column 'x' for 'answer'.*; it has 'question'",
    ),
    "no problem": (ROWS, {}, "neither 'prompt' nor 'messages', only 'question', 'gold', 'level'; .*prompt='question'"),
    "an empty list": ([], {}, "holds no records"),
    "an empty data set": (datasets.Dataset.from_list([]), {}, "holds no records"),
    "a null problem": ([{"q": "a"}, {"q": None}], {"prompt": "q"}, "row 1: 'q', the problem, is null; give it text"),
    "mixed types": ([{"prompt": "a"}, {"prompt": 3}], {}, "row 1: 'prompt' is 3; give a string"),
    "rows that are none": ([1, 2], {}, "row 0 holds 1"),
    "no data": (3, {}, "the task's data is of type int; give a Dataset or DatasetDict"),
    "a generator": (iter(ROWS), {}, "the task's data is of type list_iterator; give a Dataset"),
    "a stream": (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), {}, "is streamed .*without streaming=True"),
    "a wrong split": (
        splits(train=ROWS, val=ROWS),
        {"split": "vall"},
        r"split='vall'.*'train', 'val' \(did you mean 'val'",
    ),
    "a wrong test split": (
        splits(train=ROWS, val=ROWS),
        {"test": "tset"},
        "test='tset': .*has the splits 'train', 'val'",
    ),
    "a split of a list": (
        ROWS,
        {"prompt": "question", "split": "train"},
        "split='train': .*has no splits; leave it out",
    ),
    "a test split of a list": (ROWS, {"prompt": "question", "test": "val"}, "test='val': .* has no splits"),
    "no split to train on": (splits(a=ROWS, b=ROWS), {}, r"has the splits 'a', 'b'; .* give split=\.\.\."),
    "the same split twice": (splits(train=ROWS), {"test": "train", "prompt": "question"}, "is the split to train on"),
    "a configuration": (ROWS, {"config": "main"}, "config='main' is only for hub data sets"),
    "a test and a size": (ROWS, {"test": ROWS, "test_size": 0.2}, "are both given; keep one"),
    "a size of one": (ROWS, {"test_size": 1.0}, "test_size is 1.0; give a share"),
    "a size below zero": (ROWS, {"test_size": -1}, "test_size is -1; give a share"),
    "a size that is none": (ROWS, {"test_size": True}, "test_size is True; give a share"),
    "a name that is none": (ROWS, {"name": 3}, "name is 3; give a text"),
    "a column that is none": (ROWS, {"prompt": 3}, "prompt is 3; give the name of a column"),
    "a column named twice": (ROWS, {"prompt": "a", "columns": {"prompt": "b"}}, "name the same column twice; keep one"),
    "no function": (ROWS, {"prompt": "question", "reward": 3}, "reward=3 is not a function"),
    "a class": (ROWS, {"prompt": "question", "reward": dict}, "reward=the class dict is not a function"),
    "no functions": (ROWS, {"prompt": "question", "reward": []}, r"reward=\[\] holds no function"),
    "an unknown name": (
        ROWS,
        {"prompt": "question", "reward": "mine"},
        "reward='mine' is not defined in a file of --import",
    ),
    "a strange argument": (
        ROWS,
        {"prompt": "question", "reward": named("r", lambda response, golt: 0)},
        r"reward r has the argument 'golt', which is not a column of the data \(did you mean 'gold'\?\)",
    ),
    "an argument by place": (ROWS, {"prompt": "question", "reward": by_place}, "takes 'response' by position only"),
    "a response not read": (ROWS, {"prompt": "question", "reward": unread}, "reward unread does not read the response"),
    "too many weights": (
        ROWS,
        {"prompt": "question", "reward": shorter, "weights": [1, 2]},
        "has 2 entries for 1 reward functions",
    ),
    "a weight that is none": (
        ROWS,
        {"prompt": "question", "reward": shorter, "weights": ["a"]},
        "is 'a'; give a finite",
    ),
    "an endless weight": (
        ROWS,
        {"prompt": "question", "reward": shorter, "weights": [math.inf]},
        "is inf; give a finite",
    ),
    "weights of nothing": (ROWS, {"prompt": "question", "weights": [1]}, "weights=.* without reward functions"),
    "a threshold": (ROWS, {"prompt": "question", "reward": shorter, "correct_at": "1"}, "correct_at is '1'"),
    "turns with a reward": (
        ROWS,
        {"prompt": "question", "reward": shorter, "per_turn": True},
        "per_turn makes prompts",
    ),
}


@pytest.mark.parametrize(
    ("given", "named", "words"),
    [
        ((ROWS,), {"reward_funcs": shorter}, r"lb\.task has no argument 'reward_funcs' \(did you mean 'reward'\?\)"),
        ((ROWS,), {"rewards": shorter}, r"'rewards' \(did you mean 'reward'\?\)"),
        ((ROWS,), {"prompt_column": "question"}, r"'prompt_column' \(did you mean 'prompt'\?\)"),
        ((ROWS,), {"eval_dataset": ROWS}, r"'eval_dataset' \(did you mean 'test'\?\)"),
        ((), {"train_dataset": ROWS}, r"'train_dataset' \(did you mean 'dataset'\?\)"),
        ((ROWS, shorter), {}, r"the function shorter by position; .*lb\.task\(dataset, reward=shorter\)"),
        ((ROWS, "question"), {}, r"'question' by position; .*lb\.task\(dataset, prompt='question'\)"),
        ((), {}, r"lb\.task got no data; give it first"),
    ],
)
def test_unknown_arguments_get_the_nearest_one(given: tuple[Any, ...], named: dict[str, Any], words: str) -> None:
    with pytest.raises(LimbeckError, match=words):
        lb.task(*given, **named)


def test_the_arguments_of_a_task_are_those_of_its_signature() -> None:
    assert list(inspect.signature(lb.task).parameters)[:3] == ["dataset", "reward", "weights"]


@pytest.mark.parametrize("method", ["kdrl", lb.methods.kdrl, lb.methods.kdrl()])
def test_arguments_of_a_method_are_given_to_the_method(method: Any) -> None:
    with pytest.raises(LimbeckError, match=r"no argument 'coef'; .*lb\.objective\(lb\.methods\.kdrl\(coef=1\.0\)\)"):
        lb.objective(method, coef=1.0)


def test_a_misspelt_method_gets_the_nearest_name() -> None:
    with pytest.raises(AttributeError, match=r"no method 'kdlr' \(did you mean 'kdrl'\?\)"):
        getattr(lb.methods, "kdlr")  # noqa: B009


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case: str) -> None:
    data, options, words = BAD[case]
    with pytest.raises(LimbeckError, match=words) as e:
        lb.task(data, **options)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("ending", "content", "words"),
    [
        ("parquet", b"PAR0", "is not Parquet"),
        ("csv", b'a,b\n"1', "cannot be read as CSV"),
        ("csv", b"", "cannot be read as CSV"),
        ("csv", b"prompt,prompt\na,b\n", "has two columns named 'prompt'"),
        ("csv", b"prompt\n", "holds no records"),
        ("jsonl", b"", "holds no records"),
    ],
)
def test_files_that_cannot_be_read(ending: str, content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    file.write_bytes(content)
    with pytest.raises(LimbeckError, match=words) as e:
        lb.task(str(file))
    assert "\n" not in str(e.value)
    with pytest.raises(LimbeckError, match="does not exist; check the path"):
        lb.task(str(tmp_path / f"none.{ending}"))


# ---------------------------------------------------------------- the hub


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without network, with two configurations of ``owner/sums`` in the cache."""
    monkeypatch.setattr(sources, "reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for config in ("easy", "hard"):
        rows = {"train": ROWS[:30], "validation": ROWS[30:]}
        files = {}
        for split, part in rows.items():
            files[split] = str(tmp_path / f"{config}-{split}.jsonl")
            Path(files[split]).write_text("\n".join(map(json.dumps, part)))
        builder = datasets.load_dataset_builder("json", data_files=files, cache_dir=str(tmp_path / "own"))
        builder.download_and_prepare()
        there = tmp_path / "cache" / "owner___sums" / config / "0.0.0" / "abc"
        shutil.copytree(builder.cache_dir, there)
        for file in there.glob("json-*"):
            file.rename(file.with_name(file.name.replace("json-", "sums-")))
        about = json.loads((there / "dataset_info.json").read_text())
        text = json.dumps({**about, "config_name": config, "dataset_name": "sums"})
        (there / "dataset_info.json").write_text(text)


def test_a_data_set_of_the_hub_is_read_from_the_cache(cached: None) -> None:
    began = time.monotonic()
    task = load_task("owner/sums", config="easy", prompt="question", answer="gold", test="validation")
    assert (task.name, len(task.train), len(task.test)) == ("sums", 30, 10)
    part = load_task("owner/sums", config="hard", prompt="question", split="train[:5]", test_size=0)
    assert len(part.train) == 5
    for options, words in (
        ({"config": "odd"}, "with config='odd': .*easy.*hard"),
        ({}, "with config=None: .*easy.*hard"),
        ({"config": "easy", "split": "trian"}, "split='trian': owner/sums has the splits 'train', 'validation'"),
    ):
        with pytest.raises(LimbeckError, match=words):
            load_task("owner/sums", prompt="question", **options)
    with pytest.raises(LimbeckError, match="'owner/other' is neither on this disk nor in the local cache"):
        load_task("owner/other")
    assert time.monotonic() - began < 20  # the hub's client would have retried for most of a minute each time


# ---------------------------------------------------------------- files of the user's own


OWN = """
import limbeck as lb

ROWS = [{"question": f"q{i}", "gold": i} for i in range(30)]
ready = lb.task(ROWS, prompt="question", name="ready")


def mine(seed, size=30):
    return lb.task(ROWS[:size], prompt="question", reward=short, name=f"mine-{seed}")


def short(response, gold):
    return 1 / (1 + len(response) + int(gold))


def nothing():
    return 3


def corridor():
    return ready


def breaks():
    return json.loads("{")


def lacks():
    import json

    return json.loads("{")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(own_files, "_RUN", {})
    monkeypatch.setattr(own_files, "_MODULES", {})
    file = tmp_path / "own.py"
    file.write_text(OWN)
    own_files.run_file(file)
    return file


def test_tasks_of_an_imported_file_have_its_names(own: Path) -> None:
    assert load_task("ready").name == "ready"
    task = load_task("mine", seed=3, size=20)
    assert (task.name, len(task.train) + len(task.test)) == ("mine-3", 20)
    assert judge_response(task, task.train[0], "").reward <= 1
    for name, options, words in (
        ("mine", {"siez": 3}, r"option 'siez' is not one of task 'mine' \(did you mean 'size'\?\)"),
        ("ready", {"size": 3}, "was given with a Task object"),
        ("nothing", {}, "is a function that returned 3; have it return lb.task"),
        ("breaks", {}, r"'breaks' cannot be made \(line 25 of own\.py: NameError: name 'json' is not defined\)"),
        ("lacks", {}, r"'lacks' cannot be made \(line 31 of own\.py: JSONDecodeError: .*; correct its function"),
        ("breaks", {"size": 3}, "option 'size' is not one of task 'breaks'"),
        ("mine", {"seed": 1, "size": "a"}, r"'mine' cannot be made \(line 9 of own\.py: TypeError"),
        ("corridor", {}, "is both a task of Limbeck and a name in your file"),
        ("mien", {}, r"task 'mien' is unknown \(did you mean 'mine'\?\)"),
    ):
        with pytest.raises(LimbeckError, match=words):
            load_task(name, **options)


def test_rewards_of_an_imported_file_serve_a_data_file(own: Path, tmp_path: Path) -> None:
    file = make("parquet", tmp_path)
    with pytest.raises(
        LimbeckError, match=r"reward='shrt' is not defined in a file of --import \(did you mean 'short'\?\)"
    ):
        load_task(file, prompt="question", reward="shrt")
    task = load_task(file, prompt="question", reward="short", answer="gold", columns={"hint": "level"})
    assert task.serves == {"reward"}


def test_the_command_line_names_data_columns_and_rewards(own: Path, tmp_path: Path) -> None:
    pairs = ["prompt=question", "reward=['short', 'short']", "weights=[1, 0.5]", "test_size=4", "columns={hint='gold'}"]
    given = parse_settings([f"task_options.{pair}" for pair in pairs])
    config = configure("grpo", {**given, "task": make("csv", tmp_path)})
    again = RunConfig(**json.loads(config.model_dump_json()))  # as a run's folder records it
    for one in (config, again):
        task = prepare_tasks(one, build_method(one))["task"]
        assert (len(task.test), task.serves) == (4, {"reward"})
        prompt = next(p for p in task.train if p.messages[0]["content"] == "What is 4 + 4?")
        assert judge_response(task, prompt, "ab").reward == pytest.approx(1.5 / 11)


def test_a_name_in_two_files_must_be_one_thing(own: Path) -> None:
    other = own.with_name("other.py")
    other.write_text("short = 3\nfrom limbeck import task as lbt\n")
    own_files.run_file(other)
    with pytest.raises(LimbeckError, match=r"'short' means different things in .*own\.py and .*other\.py"):
        own_files.imported_value("short")


# ---------------------------------------------------------------- a whole run


def test_distil_with_data_and_reward_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads: set[str] = set()

    async def tidy(response: str, gold: str) -> float | None:
        threads.add(threading.current_thread().name)
        return None if response.count("1") % 2 else float(len(response) % 3)

    rows = [{"question": f"{i}+{i}=", "gold": str(2 * i)} for i in range(10, 22)]
    task = lb.task(datasets.Dataset.from_list(rows), reward=[tidy, shorter], weights=[1, 0.5], prompt="question")
    single = lb.task(rows, reward=tidy, prompt="question", test_size=2, name="tidy")
    settings: dict[str, Any] = {"steps": 2, "prompts": 4, "group": 4, "max_tokens": 6, "cpu": True, "eval_size": 4}
    for number, one in enumerate((task, single)):
        result = lb.distill("grpo", "embedded", task=one, out=tmp_path / str(number), warmup=0, **settings)
        assert result.steps == 2
    assert threads == {"limbeck-rewards"}
    metrics = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["verifier_failed"] for row in metrics) > 0
    assert all(math.isfinite(row["reward"]) for row in metrics)
    told = capsys.readouterr().err
    assert told.count("not at all") == 1
    assert "reward tidy returned None" in " ".join(told.split())
    assert "'tidy' holds out 2 problems" in " ".join(told.split())
    assert "test_size=0.3" in told
    record = json.loads((tmp_path / "0" / "run.json").read_text())
    assert Path(__file__).name in record["inputs"]["code"]


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (Verdict(1.0, "no"), "gave correct='no'"),  # type: ignore[arg-type]
        (Verdict(1.0, None), "gave correct=None"),  # type: ignore[arg-type]
        (Verdict(1.0, False, 3), "gave feedback 3"),  # type: ignore[arg-type]
    ],
)
def test_a_verdict_of_a_reward_is_checked_like_one_of_a_task(verdict: Verdict, says: str) -> None:
    task = lb.task([{"question": "q"}] * 4, prompt="question", reward=lambda response: verdict)
    with pytest.raises(LimbeckError, match=says):
        task.verify(task.train[0], "a")
