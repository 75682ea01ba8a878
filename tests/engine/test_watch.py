"""A run that cannot learn says so: at the start, while it goes on, in its metrics, and in its last sentence."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_runs import Parity, Shelf, dies, go, jsonl, lines, same, tensors

from limbeck.axes import group_advantage, on, reinforce, sample, score, student
from limbeck.axes.preference import contrast
from limbeck.axes.reduction import group_mean
from limbeck.engine import configure, distill, resume
from limbeck.engine.console import StepLines, newest_numbers
from limbeck.engine.loop import Loop
from limbeck.engine.run import train
from limbeck.engine.watch import FAULTS, Watch
from limbeck.errors import LimbeckError
from limbeck.space.group_size import refuse_lone
from limbeck.space.method import Method
from limbeck.space.term import Term


def told(shelf: Shelf, method: str, out: Path, **own: Any) -> str:
    """What a run prints into a file."""
    config = configure(method, shelf.settings(method, **own))
    file = io.StringIO()
    train(config, out, console=Console(file=file, width=80, highlight=False))
    return file.getvalue()


@pytest.fixture
def never_right(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "never.jsonl", [{"prompt": f"say {w}", "answer": "xyzzyx"} for w in "abcdefgh" * 3])


@pytest.mark.parametrize("eval_size", [0, 2])
def test_the_progress_bar_ends_with_the_numbers_of_the_last_step(shelf: Shelf, tmp_path: Path, eval_size: int) -> None:
    """The evaluation after the last step is over, so the line that stays on the terminal does not name it."""
    file = io.StringIO()
    config = configure("sft", shelf.settings("sft", steps=2, eval_size=eval_size))
    train(config, tmp_path / "run", console=Console(file=file, width=120, highlight=False, force_terminal=True))
    last = [line for line in re.split(r"[\r\n]", file.getvalue()) if "2/2" in line][-1]
    assert "loss " in last
    assert "evaluating" not in last


def test_the_numbers_of_a_step_have_the_names_of_the_tables() -> None:
    numbers = newest_numbers({"loss": 0.5, "accuracy": 0.25, "entropy": 1.0, "kl_reverse": 2.0})
    assert numbers == "loss 0.500 · accuracy 0.250 · KL 2.000 · entropy 1.000"


def test_a_run_without_any_signal_says_so_at_once_again_with_a_count_and_at_the_end(
    shelf: Shelf, tmp_path: Path, never_right: Path
) -> None:
    out = tmp_path / "run"
    text = told(shelf, "dr_grpo", out, task=str(never_right), steps=10, eval_size=3, warmup=0)
    rows = lines(out / "metrics.jsonl")
    assert all(row["groups_with_signal"] == 0 and row["grad_norm"] == 0 for row in rows)
    assert text.count("note: step 0: the gradient is exactly zero") == 1
    assert text.count("note: step 0: all responses of each prompt got the same reward") == 1
    assert text.count("in 10 of 10 steps the rewards were equal in every group; take more responses a prompt") == 1
    last = text.strip().splitlines()[-1]
    assert last.startswith("The student has not learnt anything: in all 10 steps the gradient was exactly zero")
    assert "easier tasks" in last
    run = json.loads((out / "run.json").read_text())
    warned = {w["what"]: w for w in run["warnings"]}
    assert warned["zero_gradient"]["steps"] == 10
    assert warned["no_signal"]["first_step"] == 0
    assert any("the student solves none of 3 held-out problems" in s for s in run["notices"])
    assert any("max_tokens=2 tokens" in s for s in run["notices"]), "the answers have six"
    assert run["teacher_accuracy"]["accuracy"] == 0
    assert run["teacher_accuracy"]["n"] == 3
    assert any("the teacher solves none of 3" in s for s in run["notices"])
    assert run["terms"] == {"1": "clip(0.2, 0.2) of centre_group(sum_sequence(reward))"}


def test_a_student_that_equals_its_teacher_is_told_so(shelf: Shelf, tmp_path: Path) -> None:
    twin = shutil.copytree(shelf.student, tmp_path / "twin")  # by its name it is another model
    text = told(shelf, "opd_full", tmp_path / "run", teacher=str(twin))
    assert "note: step 0: the student equals its teacher" in text
    assert "name another teacher" in text.strip().splitlines()[-1]


def test_responses_that_are_all_cut_or_never_end_are_counted_and_said(shelf: Shelf, tmp_path: Path) -> None:
    text = told(shelf, "opd", tmp_path / "run", max_tokens=1, steps=2)
    for row in lines(tmp_path / "run" / "metrics.jsonl"):
        assert row["truncated"] + row["ended"] == 1
    if "step 0: every response was cut" in text:
        assert "no response ended" not in text.partition("every response was cut")[0]


def test_a_resumed_run_knows_what_was_seen_before_it_stopped(
    shelf: Shelf, tmp_path: Path, never_right: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {"task": str(never_right), "steps": 4, "save_every": 1}
    straight = go(shelf, "dr_grpo", tmp_path / "straight", **own)
    heal = dies(monkeypatch, 2)
    with pytest.raises(BaseException):  # noqa: B017
        go(shelf, "dr_grpo", tmp_path / "stopped", **own)
    heal()
    file = io.StringIO()
    resumed = resume(tmp_path / "stopped", console=Console(file=file, width=80))
    assert "note: step" not in file.getvalue(), "it was said before"
    runs = [json.loads((r.out / "run.json").read_text()) for r in (straight, resumed)]
    assert runs[0]["warnings"] == runs[1]["warnings"]
    assert runs[0]["warnings"][0]["steps"] == 4
    assert runs[0]["notices"] == runs[1]["notices"]
    assert lines(straight.out / "metrics.jsonl") == lines(resumed.out / "metrics.jsonl")


def test_a_watch_is_silent_about_a_run_that_learns() -> None:
    watch = Watch(rewards=True)
    good = {"grad_norm": 0.1, "groups_with_signal": 0.5, "truncated": 0.2, "ended": 0.8, "kl_reverse": 0.3}
    assert [watch.after({"step": i, **good}) for i in range(40)] == [[]] * 40
    assert watch.last == ""
    assert watch.warnings == []
    assert len(watch.after({"step": 40, **good, "groups_with_signal": 0.0})) == 1
    assert watch.last == "", "one step of many is no word at the end"
    assert Watch(rewards=False).after({"step": 0, "groups_with_signal": 0.0}) == [], "nobody compares rewards"


def test_every_fault_names_a_remedy() -> None:
    assert all("; " in fault.sentence for fault in FAULTS)


@pytest.mark.parametrize("micro", [16384, 12])
def test_each_terms_gradient_is_measured_and_the_run_is_the_same_to_the_last_bit(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    own: dict[str, Any] = {"steps": 3, "eval_every": 2, "micro_tokens": micro, "task": Parity()}
    measured = go(shelf, "kdrl", tmp_path / "measured", **own)
    monkeypatch.setattr(Loop, "_evaluates", lambda *_: False)
    plain = go(shelf, "kdrl", tmp_path / "plain", **own)
    assert same(*(tensors(r.student / "model.safetensors") for r in (measured, plain)))
    rows, bare = (lines(r.out / "metrics.jsonl") for r in (measured, plain))
    extra = [{k for k in row if k.endswith(("/grad_norm", "gradient_share"))} for row in rows]
    assert [len(keys) for keys in extra] == [4, 4, 0]
    assert [{k: v for k, v in row.items() if k not in keys} for row, keys in zip(rows, extra, strict=True)] == bare
    for row in rows[:2]:
        assert row["term/1/gradient_share"] + row["term/2/gradient_share"] == pytest.approx(1)
    on_policy = rows[0]
    assert abs(on_policy["term/1/loss"]) < 1e-6
    assert on_policy["term/1/gradient_share"] > 0.01


def test_a_terms_gradient_is_the_same_however_the_batch_is_cut(shelf: Shelf, tmp_path: Path) -> None:
    whole, cut = (
        lines(go(shelf, "kdrl", tmp_path / str(t), steps=1, task=Parity(), micro_tokens=t).out / "metrics.jsonl")[0]
        for t in (16384, 12)
    )
    for key in ("term/1/grad_norm", "term/2/grad_norm"):
        assert whole[key] == pytest.approx(cut[key], rel=1e-5)


LONE = {
    "standardised": lambda: Term(group_advantage(), reinforce),
    "less its mean": lambda: Term(score - score.mean, reinforce),
    "leave one out": lambda: Term(score - (score.over("group", "sum") - score) / 7.0, reinforce),
    "within a sum": lambda: Term(1.0 + 0.5 * group_advantage(scale=False), reinforce),
    "in a weight": lambda: Term(score, reinforce, weight=abs(group_advantage())),
    "a preference": lambda: Term(score, contrast()),
}


@pytest.mark.parametrize("name", LONE)
def test_what_compares_responses_of_a_prompt_is_refused_with_one_response(name: str) -> None:
    with pytest.raises(LimbeckError, match=r"compares the responses of one prompt.*take 2 or more"):
        refuse_lone(Method(sample(student), LONE[name](), group_mean))
    refuse_lone(Method(sample(student, 2), LONE[name](), group_mean))


def test_what_compares_nothing_may_have_one_response() -> None:
    refuse_lone(Method(sample(student), Term(score, reinforce)))
    refuse_lone(Method({"a": sample(student, 4), "b": sample(student)}, Term(group_advantage(), reinforce, on("a"))))
    with pytest.raises(LimbeckError, match="one prompt"):
        refuse_lone(
            Method({"a": sample(student, 4), "b": sample(student)}, Term(group_advantage(), reinforce, on("b")))
        )


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "dapo", "gspo", "kdrl"])
def test_group_relative_methods_with_a_group_of_one_are_refused_before_a_model_is_loaded(
    method: str, tmp_path: Path
) -> None:
    with pytest.raises(LimbeckError, match="one prompt"):
        distill(
            method,
            out=tmp_path / "run",
            group=1,
            task="two_digit_sums",
            student="nowhere",
            teacher="nowhere",
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_a_log_of_a_short_run_names_every_stage_the_first_and_the_last_step(shelf: Shelf, tmp_path: Path) -> None:
    text = told(shelf, "opd", tmp_path / "run", steps=3)
    rows = text.splitlines()
    assert "loading models" in rows
    assert "evaluating before training" in rows
    assert "evaluating after 3 steps" in rows
    (first,) = [row for row in rows if row.startswith("opd 1/3 ")]
    assert "loss " in first
    assert "tokens/s" in first
    assert first.endswith(" left")
    (last,) = [row for row in rows if row.startswith("opd 3/3 ")]
    assert "loss " in last
    assert "tokens/s" in last


def test_a_log_has_a_line_for_each_slow_step_and_few_for_quick_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("limbeck.engine.console.time.monotonic", lambda: clock[0])

    def run(seconds: float, steps: int) -> list[str]:
        clock[0], file = 0.0, io.StringIO()
        log = StepLines(Console(file=file, width=40), "[/b]grpo", 0, steps)
        for done in range(1, steps + 1):
            clock[0] += seconds
            log.step(done, {"loss": 0.5, "reward": 0.25, "seconds": seconds, "tokens_written": 50}, done == steps)
        return file.getvalue().splitlines()

    assert run(20.0, 4)[0] == "[/b]grpo 1/4 loss 0.500 · reward 0.250 · 2 tokens/s · 1:00 left"
    assert len(run(20.0, 4)) == 4
    assert len(run(0.1, 100)) == 3
    assert len(run(2.0, 18_000)) < 700, "ten hours: about one a minute"


def test_the_embedded_pair_with_foreign_texts_is_told_so(tmp_path: Path) -> None:
    task = jsonl(tmp_path / "t.jsonl", [{"prompt": f"Wie heißt {i}?", "answer": "x"} for i in range(8)])
    own: dict[str, Any] = {"student": "embedded", "teacher": "embedded", "task": str(task), "steps": 1, "prompts": 2}
    result = distill("opd", out=tmp_path / "run", quiet=True, max_tokens=4, eval_size=0, cpu=True, **own)
    notices = json.loads((result.out / "run.json").read_text())["notices"]
    (said,) = [s for s in notices if "embedded" in s]
    assert "signs that their tokenizer does not know" in said
    assert "--student and --teacher" in said
    assert "learnt only from prompts that begin with 'State the final answer" in said


def test_the_teachers_accuracy_moves_no_random_number(shelf: Shelf, tmp_path: Path) -> None:
    one, none = (go(shelf, "opd", tmp_path / str(n), eval_size=n, steps=2) for n in (2, 0))
    assert torch.equal(*(tensors(r.student / "model.safetensors")["model.norm.weight"] for r in (one, none)))
