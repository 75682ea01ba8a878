"""A verifier that raises, hangs or returns something odd: the response is not judged, or one sentence ends the run."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import Shelf, distill

from limbeck import LimbeckError, limits
from limbeck.tasks import DatasetTask, Retry, Verdict
from limbeck.tasks.base import Unjudged, judge_response

WRONG = {
    "a number": 1.0,
    "true": True,
    "a tuple": (1.0, True),
    "a text": "right",
    "reward as text": Verdict("1", True),  # type: ignore[arg-type]
    "no correct": Verdict(1.0, None),  # type: ignore[arg-type]
    "correct as number": Verdict(1.0, 1),
    "nan": Verdict(float("nan"), False),
    "inf": Verdict(float("inf"), True),
    "huge": Verdict(10**400, True),
    "feedback as number": Verdict(1.0, True, 3),  # type: ignore[arg-type]
}


class Saying(DatasetTask):
    """Says what ``say`` gives for each call."""

    say: Any = None
    calls = 0

    def verify(self, prompt: Any, text: str) -> Any:
        self.calls += 1
        return self.say(self.calls)


@pytest.fixture
def task(shelf: Shelf) -> Saying:
    return Saying(str(shelf.verified))


@pytest.mark.parametrize("said", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_verdict_is_one_sentence_with_the_prompt(task: Saying, said: object) -> None:
    task.say = lambda _: said
    with pytest.raises(LimbeckError, match=r"the verifier of .* gave .* to a response to prompt .*Verdict\(reward"):
        judge_response(task, task.train[0], "7")


@pytest.mark.parametrize("said", [None, Verdict(None, False)])  # type: ignore[arg-type]
def test_none_says_that_a_response_is_not_judged(task: Saying, said: object) -> None:
    task.say = lambda _: said
    with pytest.raises(Unjudged, match="None"):
        judge_response(task, task.train[0], "7")


def test_numbers_of_numpy_are_a_verdict(task: Saying) -> None:
    task.say = lambda _: Verdict(np.float32(0.5), np.bool_(True))  # type: ignore[arg-type]
    assert judge_response(task, task.train[0], "7") == Verdict(0.5, True)


def _stubborn(_: int) -> Verdict:
    while True:
        with contextlib.suppress(Exception):  # what a careless verifier does
            time.sleep(30)


@pytest.mark.parametrize("aside", [False, True])
def test_a_verifier_that_hangs_is_left_after_its_time(task: Saying, aside: bool) -> None:
    task.say = _stubborn
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            judge_response(task, task.train[0], "7", 0.2)
        except Unjudged as e:
            caught.append(e)

    start = time.monotonic()
    if aside:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(10)
    else:
        ask()
    assert time.monotonic() - start < 5
    assert "longer than 0.2 s" in str(caught[0])


def test_time_left_over_stops_nothing_later() -> None:
    assert limits.within_seconds(0.05, lambda: 7) == 7
    time.sleep(0.15)


def test_retry_passes_on_that_an_answer_was_not_judged(task: Saying) -> None:
    task.say = lambda _: None
    with pytest.raises(Unjudged):
        Retry(task).open(task.train[0]).step("7")


def go(shelf: Shelf, method: str, out: Path, **own: Any) -> list[dict[str, Any]]:
    """The metrics of a short run with its voice."""
    distill(method, out=out, **shelf.settings(method, **own))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_without_what_was_not_judged_counts_it_and_says_it_once(
    shelf: Shelf, task: Saying, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def flaky(call: int) -> Any:
        if call in (3, 12):
            raise TimeoutError("the sandbox [/b] did not answer")
        return None if call == 5 else Verdict(float(call % 2), bool(call % 2))

    task.say = flaky
    rows = go(shelf, "grpo", out, task=task, group=2, steps=3, eval_size=0)
    assert [r["verifier_failed"] for r in rows] == [2, 1, 0]
    assert all(np.isfinite(r["loss"]) for r in rows)
    said = " ".join(capsys.readouterr().err.split())
    line = flaky.__code__.co_firstlineno + 2
    reason = f"line {line} of test_verifiers.py: TimeoutError: the sandbox [/b] did not answer"
    assert said.count(f"judged 2 responses of step 0 not at all ({reason})") == 1
    assert "of step 1 not at all" not in said


def test_a_step_without_any_verdict_ends_the_run_in_one_sentence(shelf: Shelf, task: Saying, out: Path) -> None:
    task.say = lambda _: None
    with pytest.raises(LimbeckError, match=r"judged no response of step 0 \(8 of them; the first: it returned None\)"):
        go(shelf, "grpo", out, task=task, group=2, eval_size=0)
    with pytest.raises(LimbeckError, match="judged no response of the evaluation"):
        go(shelf, "grpo", out.with_name("second"), task=task, group=2, eval_size=2)


def test_a_method_that_reads_no_verdict_keeps_its_responses(shelf: Shelf, task: Saying, out: Path) -> None:
    task.say = lambda _: None
    (row,) = go(shelf, "opd", out, task=task, eval_size=0, steps=1)
    assert row["verifier_failed"] == 24
    assert np.isfinite(row["loss"])
