"""``limbeck sample``: what is chosen, what is refused, what is shown; and once for real with the embedded models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stub_engine import Run

import limbeck.engine.responses
from limbeck import embedded
from limbeck.cli.show_responses import heading, print_responses, summary
from limbeck.errors import LimbeckError
from limbeck.terminal import screen
from limbeck.types import Prompt

CONFIG = {"student": "embedded", "teacher": "embedded", "task": "two_digit_sums", "max_tokens": 24, "seed": 3}


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of the engine, which answers every prompt with a text that contains terminal escapes."""
    calls: list[tuple[Any, ...]] = []

    def write(subjects: Any, task: Any, prompts: Any, config: Any, **how: Any) -> list[list[dict[str, Any]]]:
        calls.append((subjects, task, prompts, config, how))
        limbeck.engine.responses.refuse_temperature(how["temperature"], how["samples"])
        return [
            [
                answer(s.label, p.id, k, f"<think>hm</think> \x1b[31m{s.label}")
                for p in prompts
                for k in range(how["samples"])
            ]
            for s in subjects
        ]

    monkeypatch.setattr(limbeck.engine.responses, "write_responses", write)
    return calls


def answer(model: str, prompt: str, sample: int, text: str, **own: Any) -> dict[str, Any]:
    row = {"model": model, "prompt": prompt, "sample": sample, "response": text, "length": 7, "ended": True}
    return {**row, "reward": 1.0, "correct": True, "feedback": None, **own}


@pytest.fixture
def run(folder: Path) -> Path:
    """A finished run with a student and a checkpoint."""
    out = folder / "runs" / "r"
    (out / "student").mkdir(parents=True)
    (out / "student" / "config.json").write_text("{}")
    (out / "checkpoints" / "step-000050").mkdir(parents=True)
    record(out, finished="2026-01-02T10:09:10+00:00")
    return out


def record(out: Path, **own: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").write_text(json.dumps({"config": CONFIG, "inputs": {"chat_template": "CHAT"}, **own}))


def test_a_run_answers_its_own_held_out_problems(limbeck_: Run, asked: list[Any], run: Path) -> None:
    result = limbeck_("sample", "runs/r")
    assert result.exit_code == 0, result.stderr
    ((subjects, task, prompts, config, how),) = asked
    (subject,) = subjects
    assert (subject.spec, subject.checkpoint, subject.chat) == ("runs/r/student", None, "CHAT")
    assert (task.name, len(prompts), config.max_tokens, config.seed) == ("two_digit_sums", 5, 24, 0)
    assert list(prompts) == [task.test[i] for i in range(5)]
    assert (how["samples"], how["temperature"], how["device"]) == (1, 1.0, None)
    assert "runs/r, final student" in result.stdout
    assert "answer: " in result.stdout


def test_the_problems_are_those_of_the_runs_seed(limbeck_: Run, asked: list[Any], run: Path) -> None:
    from limbeck.tasks import load_task

    limbeck_("sample", "runs/r", "--seed", "9")
    assert list(asked[0][2]) == [load_task("two_digit_sums", seed=3).test[i] for i in range(5)]
    assert asked[0][3].seed == 9


def test_without_a_final_student_the_newest_checkpoint_writes(limbeck_: Run, asked: list[Any], run: Path) -> None:
    record(run, finished=None)
    (run / "checkpoints" / "step-000100").mkdir()
    shown = limbeck_("sample", "runs/r", "--prompt", "x").stdout
    assert "runs/r, checkpoint of step 100" in shown
    (subject,) = asked[0][0]
    assert (subject.spec, subject.checkpoint) == (str(embedded.path("student")), Path("runs/r/checkpoints/step-000100"))


def test_two_models_of_a_run(limbeck_: Run, asked: list[Any], run: Path) -> None:
    limbeck_("sample", "runs/r", "--before", "--prompt", "x")
    limbeck_("sample", "runs/r", "--teacher", "--prompt", "x")
    specs = [[s.spec for s in call[0]] for call in asked]
    student, teacher = (str(embedded.path(role)) for role in ("student", "teacher"))
    assert specs == [["runs/r/student", student], ["runs/r/student", teacher]]
    assert [s.chat for s in asked[1][0]] == ["CHAT", "CHAT"]


def test_everything_that_is_typed_arrives(limbeck_: Run, asked: list[Any]) -> None:
    words = "--samples 3 --temperature 0.5 --max-tokens 9 --seed 4 --device cpu --set generate_batch=2"
    result = limbeck_("sample", "embedded", "--prompt", "one", "--prompt", "two", *words.split())
    assert result.exit_code == 0, result.stderr
    _, task, prompts, config, how = asked[0]
    assert [p.messages for p in prompts] == [({"role": "user", "content": text},) for text in ("one", "two")]
    assert (task.serves, config.max_tokens, config.seed, config.generate_batch) == (frozenset(), 9, 4, 2)
    assert (how["samples"], how["temperature"], how["device"]) == (3, 0.5, "cpu")


def test_json_and_a_file(limbeck_: Run, asked: list[Any], run: Path, folder: Path) -> None:
    result = limbeck_("sample", "runs/r", "embedded", "--prompt", "x", "--samples", "2", "--json", "--out", "o.jsonl")
    printed = json.loads(result.stdout)
    assert [m["label"] for m in printed["models"]] == ["runs/r, final student", "embedded"]
    lines = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert lines == printed["responses"]
    assert len(lines) == 4
    assert lines[0]["messages"] == [{"role": "user", "content": "x"}]
    again = limbeck_("sample", "embedded", "--prompt", "x", "--out", "o.jsonl")
    assert "--out o.jsonl: it already exists; name a new file." in again.stderr


MISTAKES = [
    (
        ("runs/x", "--prompt", "x"),
        "runs/x: there is no such folder; give a run's folder, a model's folder, or a hub name.",
    ),
    (
        ("runs", "--prompt", "x"),
        "runs: the folder holds neither a run (run.json) nor a model (config.json); it holds runs, for instance "
        "runs/r.",
    ),
    (
        ("embedded",),
        "there is no prompt and no task; give --prompt TEXT, or --task NAME for held-out problems of a task.",
    ),
    (("embedded", "--prompt", " "), "--prompt number 1 is empty; give a text."),
    (
        ("embedded", "--task", "two_digit_sum"),
        "task 'two_digit_sum' is unknown (did you mean 'two_digit_sums'?); give a name of available_tasks(), a file "
        "(.jsonl, .parquet, .csv), a data set folder, OWNER/NAME of the hub, or a task in a file of --import.",
    ),
    (("embedded", "--task", "x.jsonl"), "--task x.jsonl: there is no such file; check the path."),
    (
        ("embedded", "--task", "x", "--prompt", "x"),
        "--task x selects held-out problems and cannot be combined with --prompt; leave one out.",
    ),
    (
        ("embedded", "--prompt", "x", "--n", "3"),
        "--n 3 selects held-out problems and cannot be combined with --prompt; leave one out.",
    ),
    (("a", "b", "c"), "sample shows one or two models, and 3 were named; leave some out."),
    (
        ("runs/r", "embedded", "--before"),
        "sample shows at most two models; give a second one, or --before, or --teacher, not more.",
    ),
    (
        ("embedded", "--teacher", "--prompt", "x"),
        "--teacher: embedded is a model, not the folder of a run; name a run, or a second model.",
    ),
    (("embedded", "embedded", "--prompt", "x"), "embedded was named twice; name two models, or one."),
    (
        ("embedded", "--prompt", "x", "--set", "lr=1"),
        "--set lr: sampling has no such setting; it accepts template, chat_template_kwargs, remote_code, "
        "skip_overlong, verify_seconds, episode_turns, generate_batch and task_options.",
    ),
    (
        ("embedded", "--prompt", "x", "--max-tokens", "0"),
        "max_tokens=0: input should be greater than or equal to 1; max_tokens is limit of a response, in tokens.",
    ),
    (
        ("embedded", "--prompt", "x", "--samples", "2", "--temperature", "0"),
        "--samples 2 at --temperature 0 would write the same response 2 times; give --samples 1, or a temperature "
        "above 0.",
    ),
    (
        ("embedded", "--prompt", "x", "--temperature", "nan"),
        "--temperature is nan; give a finite number between 0 and 100.",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence(
    limbeck_: Run, asked: list[Any], run: Path, words: tuple[str, ...], sentence: str
) -> None:
    result = limbeck_("sample", *words)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"limbeck: {sentence}\n")


def test_a_run_without_a_student_yet(limbeck_: Run, asked: list[Any], folder: Path) -> None:
    record(folder / "new", finished=None)
    printed = limbeck_("sample", "new").stderr
    assert printed.startswith(
        "limbeck: new: the run has no student yet, because it has written no checkpoint; wait for one"
    )
    (folder / "new" / "run.json").write_text("{")
    assert "new: its run.json is damaged" in limbeck_("sample", "new").stderr


def test_a_run_without_a_teacher_or_with_a_student_in_memory(limbeck_: Run, asked: list[Any], run: Path) -> None:
    inputs = {"models": {"student": {"by": "tensors", "digest": "d"}}}
    record(run, finished="yes", config={**CONFIG, "teacher": None}, inputs=inputs)
    assert "--teacher: the run runs/r has no teacher" in limbeck_("sample", "runs/r", "--teacher").stderr
    assert "its first weights were not saved" in limbeck_("sample", "runs/r", "--before").stderr


def test_a_task_that_cannot_be_read_again(limbeck_: Run, asked: list[Any], run: Path) -> None:
    record(run, finished="yes", config={**CONFIG, "task": "gone.jsonl"})
    printed = limbeck_("sample", "runs/r").stderr
    assert printed.startswith(
        "limbeck: the task of runs/r, final student cannot be loaded again (--task gone.jsonl: there is"
    )
    assert printed.count("\n") == 1


def test_a_task_made_in_python_is_asked_for(limbeck_: Run, asked: list[Any], run: Path) -> None:
    record(run, finished="yes", config={**CONFIG, "task": "mine"})
    assert limbeck_("sample", "runs/r").stderr == (
        "limbeck: the task 'mine' of runs/r, final student was made in Python; add --import FILE.py that defines it as "
        "mine, or give --task, or --prompt TEXT.\n"
    )


def test_data_that_has_changed_is_said(limbeck_: Run, asked: list[Any], run: Path) -> None:
    record(run, finished="yes", inputs={"data": {"task": {"digest": "another"}}})
    assert "the data of 'two_digit_sums' has changed since the run" in limbeck_("sample", "runs/r").stdout


# ---------------------------------------------------------------- the terminal


def shown(width: int, labels: list[str], written: list[list[dict[str, Any]]]) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    prompts = [Prompt("p", ({"role": "user", "content": "7 * 8?"},), {"answer": "56"})]
    print_responses(screen(console), labels, prompts, written)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_wide_terminals_have_columns_and_narrow_ones_do_not() -> None:
    written = [[answer("x", "p", 0, "first")], [answer("y", "p", 0, "second", correct=False, reward=0.0, ended=False)]]
    wide, narrow = (shown(width, ["x", "y"], written) for width in (120, 80))
    heads = ("A  correct, reward 1, 7 tokens, ended by itself", "B  wrong, reward 0, 7 tokens, cut at the limit")
    assert any(heads[0] in line and heads[1] in line for line in wide)
    assert any("first" in line and "second" in line for line in wide)
    assert [line for line in narrow if line in (*heads, "first", "second")] == [heads[0], "first", heads[1], "second"]
    assert narrow[:6] == ["A  x", "B  y", "", "[1 of 1]", "user: 7 * 8?", "answer: 56"]


def test_control_characters_are_harmless_and_tags_stay(limbeck_: Run, asked: list[Any]) -> None:
    text = limbeck_("sample", "embedded", "--prompt", "[red]x\x1b[2J").stdout
    assert "\x1b" not in text
    assert "user: [red]x\\x1b[2J" in text
    assert "<think>hm</think> \\x1b[31membedded" in text


def test_turns_of_an_episode_and_what_is_not_judged() -> None:
    turns = [{"role": "assistant", "content": "left"}, {"role": "user", "content": "a wall"}]
    lines = shown(80, ["x"], [[answer("x", "p", 0, "left", turns=turns)]])
    assert lines[lines.index("> left") + 1] == "< a wall"
    odd = answer("x", "p", 0, "t", reward=None, correct=None, feedback="not judged: it took longer than 1 s", length=1)
    assert heading(odd) == "not judged: it took longer than 1 s, 1 token, ended by itself"
    assert summary([odd]) == "1 response, 1.0 tokens on average, 0 cut at the limit"
    assert summary([]) == "no response"


# ---------------------------------------------------------------- for real


def test_a_real_run_is_sampled_before_after_and_from_its_checkpoint(limbeck_: Run, folder: Path) -> None:
    import limbeck as lb

    settings = {"steps": 1, "prompts": 2, "max_tokens": 24, "eval_size": 4, "lr": 0.02, "warmup": 0}
    lb.distill("sft", student="embedded", teacher="embedded", task="two_digit_sums", out="r", quiet=True, **settings)
    words = ("--n", "3", "--temperature", "0", "--json", "--device", "cpu")
    printed = json.loads(limbeck_("sample", "r", "--before", *words).stdout)
    after, before = printed["responses"][:3], printed["responses"][3:]
    assert [r["model"] for r in (after[0], before[0])] == ["r, final student", "r before training (embedded)"]
    evaluations = [json.loads(line) for line in Path("r/evaluations.jsonl").read_text().splitlines()]
    for rows, evaluation in ((before, evaluations[0]), (after, evaluations[-1])):
        assert [int(r["correct"]) for r in rows] == evaluation["correct"][:3]
        assert all(r["length"] <= 24 and r["ended"] in (True, False) for r in rows)
    samples = [json.loads(line) for line in Path("r/samples.jsonl").read_text().splitlines()]
    ended = [s["response"] for s in samples[:3]]
    assert [r["response"] for r in after] == ended
    assert [r["response"] for r in before] != ended, "a step at this rate moves the student"
    run = json.loads(Path("r/run.json").read_text())
    Path("r/run.json").write_text(json.dumps({**run, "finished": None}))
    stopped = json.loads(limbeck_("sample", "r", *words).stdout)
    assert stopped["models"][0]["label"] == "r, checkpoint of step 1"
    assert [r["response"] for r in stopped["responses"]] == ended


def test_engine_limits(folder: Path) -> None:
    with pytest.raises(LimbeckError, match="PyTorch finds no such device"):
        limbeck.engine.responses.device_named("cuda:99")
    with pytest.raises(LimbeckError, match="is more responses than can be held at once"):
        limbeck.engine.evaluate("embedded", samples=10**6)
    with pytest.raises(LimbeckError, match="--samples is 0; give a whole number of at least 1"):
        limbeck.engine.evaluate("embedded", samples=0)


def test_a_single_held_out_problem_is_one_problem(limbeck_: Run, asked: list[Any], folder: Path) -> None:
    rows = [json.dumps({"prompt": f"{i} + 1 = ?", "answer": str(i + 1)}) for i in range(4)]
    (folder / "few.jsonl").write_text("\n".join(rows))
    words = ("sample", "embedded", "--task", "few.jsonl", "--set", "task_options.test_size=1")
    assert "has only 1 held-out problem." in limbeck_(*words).output
