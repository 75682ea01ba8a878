"""``limbeck compare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stub_engine import Run

from report import fake_run


@pytest.fixture
def pair(folder: Path) -> tuple[str, str]:
    """Two runs on the same data with stored verdicts."""
    for name, right in (("a", 5), ("b", 8)):
        record = {**fake_run.RUN, "inputs": {"data": {"task": {"digest": "d", "test": 10}}}}
        rows = [
            {"step": step, "accuracy": k / 10, "n": 10, "correct": [1] * k + [0] * (10 - k)}
            for step, k in ((0, 2), (9, right))
        ]
        fake_run.write(folder / "runs" / name, record, fake_run.metrics(9), rows)
    return "runs/a", "runs/b"


def test_runs_stand_side_by_side(limbeck_: Run, pair: tuple[str, str]) -> None:
    result = limbeck_("compare", *pair)
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "a b" in lines
    assert "accuracy after 50.0% [23.7, 76.3] 80.0% [49.0, 94.3]" in lines
    assert any(line.startswith("b minus a: +30.0 [") and "paired by 10 problems" in line for line in lines)


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_no_row_is_broken_in_a_narrow_terminal(limbeck_: Run, pair: tuple[str, str], columns: str) -> None:
    shown = limbeck_("compare", *pair, COLUMNS=columns).stdout
    assert shown.count("accuracy before") == (2 if columns == "60" else 1)
    for text in ("20.0% [5.7, 51.0]", "80.0% [49.0, 94.3]"):
        assert text in shown


def test_json_holds_the_numbers(limbeck_: Run, pair: tuple[str, str]) -> None:
    printed = json.loads(limbeck_("compare", *pair, "--json", "--metric", "accuracy", "--sort").stdout)
    assert [run["label"] for run in printed["runs"]] == ["b", "a"]
    (difference,) = printed["differences"]
    assert (difference["first"], difference["second"], difference["paired_by"]) == ("a", "b", "problem")
    assert difference["interval"]["mean"] == pytest.approx(0.3)
    assert printed["runs"][0]["final"]["accuracy"] == 0.8


def test_the_page_replaces_only_a_page(limbeck_: Run, pair: tuple[str, str], folder: Path) -> None:
    for _ in range(2):
        assert limbeck_("compare", *pair, "--out", "c.html").exit_code == 0
    assert (folder / "c.html").stat().st_size > 10_000
    (folder / "mine.html").write_text("<p>mine</p>")
    refused = limbeck_("compare", *pair, "--out", "mine.html")
    assert (refused.exit_code, (folder / "mine.html").read_text()) == (2, "<p>mine</p>")
    assert "--out mine.html: the file exists and is not an earlier comparison" in refused.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("runs/a",), "compare needs at least two runs, and only runs/a was named; name another."),
        (("runs/a", "runs/a/"), "runs/a was named twice; name every run once."),
        (("runs/a", "runs/x"), "runs/x: there is no such folder; name the folder of a run."),
        (
            ("runs/a", "runs"),
            "'runs' is not a run folder (it has no run.json); name the folder of a run.",
        ),
        (("runs/a", "runs/b", "--out", "c.pdf"), "--out c.pdf: the page is HTML; give a name that ends with .html."),
        (
            ("runs/a", "runs/b", "--metric", "los"),
            "--metric los: there is no such metric (did you mean 'loss'?); give one of accuracy, kl_reverse, "
            "kl_forward, reward, entropy, length, perplexity, loss, tokens_written, seconds.",
        ),
    ],
)
def test_a_mistake_is_one_sentence(limbeck_: Run, pair: tuple[str, str], words: tuple[str, ...], sentence: str) -> None:
    result = limbeck_("compare", *words)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"limbeck: {sentence}\n")


def test_names_that_act_are_harmless(limbeck_: Run, pair: tuple[str, str], folder: Path) -> None:
    fake_run.write(folder / "runs" / "b", {**fake_run.RUN, "task": "\x1b[31mred", "title": "[bold]x"})
    shown = limbeck_("compare", *pair).stdout
    assert "\x1b" not in shown
    assert "[bold]x" in shown
