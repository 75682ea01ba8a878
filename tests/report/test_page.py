"""The page: what it says, that it needs nothing else, that nothing from a run can act in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fake_run
import pytest
from page_tags import EVIL, Tags

from limbeck.errors import LimbeckError
from limbeck.report import RunData, load_run, page, render_report, write_report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(fake_run.whole(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


def words(text: str) -> str:
    """The visible text with single spaces."""
    return " ".join(Tags(text).text.split())


def test_the_headline_says_what_happened(whole: str) -> None:
    text = words(whole)
    assert "rose from 12.5% (95% interval 9.0 to 17.1) to 62.5% (95% interval 56.4 to 68.2) on 256 problems" in text
    assert "The change is +50.0 points (95% interval +42.4 to +56.7)." in text
    assert "120 steps, 9 min 10 s, 240,000 tokens written, 252,000 tokens read." in text
    assert "has not finished" not in text


def test_every_section_is_there(whole: str) -> None:
    text = words(whole)
    for title in ("What was run", "Curves", "Sample rollouts", "Time and tokens", "How the numbers were computed"):
        assert title in text
    for fact in (
        fake_run.RUN["command"],
        "arXiv:2506.02208",
        "torch 2.13.0",
        "1,234,567 parameters",
        '"betas"',
        "abc1234",
    ):
        assert fact in text
    for chart in ("Accuracy", "Reward", "KL between student and teacher", "Entropy", "Length", "Loss by term", "Coeff"):
        assert chart in text
    assert Tags(whole).names.count("article") == 10
    assert "write5 5 min 00 s 55% 240,000 800" in text  # 300 of 550 s; 5 is the note


def test_the_page_needs_nothing_else(whole: str) -> None:
    tags = Tags(whole)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(tags.names)
    assert tags.names.count("script") == 1
    for name, value in tags.attributes:
        assert name != "src"
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", whole)
    assert "default-src 'none'" in whole


def test_ids_are_unique_and_references_resolve(whole: str) -> None:
    attributes = Tags(whole).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in attributes if name == "href"} | set(re.findall(r"url\(#([^)]+)\)", whole))
    assert used <= set(ids)


def test_charts_follow_the_theme(whole: str) -> None:
    assert "currentColor" in whole
    assert "var(--line-0)" in whole
    assert "#010203" not in whole
    for svg in re.findall(r"<svg.*?</svg>", whole, flags=re.S):
        assert "#000000" not in svg
        assert "aria-label" in svg


def test_nothing_from_a_run_can_act(tmp_path: Path) -> None:
    run = {
        **fake_run.RUN,
        **dict.fromkeys(("title", "formula", "command", "student", "task", "paper", "git", "seed"), EVIL),
    }
    run["config"], run["versions"], run["machine"] = {EVIL: EVIL}, {EVIL: EVIL}, {"cpu": EVIL, "gpu": EVIL}
    sample = {"prompt": EVIL, "response": EVIL, "answer": EVIL, "tokens": [EVIL, '" onclick="z'], "kl": [1.0, 2.0]}
    metrics = [{"step": i, f"coef/{EVIL}": i, f"term/{EVIL}/loss": i, "term/2/loss": 1} for i in range(3)]
    data = load_run(fake_run.write(tmp_path, run, metrics, [], [sample]))
    tags = Tags(render_report(data))
    assert tags.names.count("script") == 1
    assert "img" not in tags.names
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert EVIL in tags.text


@pytest.mark.parametrize("missing", ["metrics", "evaluations", "samples"])
def test_a_missing_file_becomes_a_sentence(tmp_path: Path, missing: str) -> None:
    folder = fake_run.whole(tmp_path, steps=5)
    (folder / f"{missing}.jsonl").unlink()
    text = words(write_report(folder).read_text(encoding="utf-8"))
    sentences = {
        "metrics": "No times were recorded.",
        "evaluations": "No held-out evaluation was recorded",
        "samples": "No sample rollouts were recorded",
    }
    for name, sentence in sentences.items():
        assert (sentence in text) == (name == missing)


def test_an_empty_run_renders() -> None:
    text = words(render_report(RunData(run={})))
    for sentence in ("has not finished", "No step was recorded", "The command was not recorded", "Teacher none"):
        assert sentence in text


def test_a_killed_run_renders_and_says_so(tmp_path: Path) -> None:
    run = {**fake_run.RUN, "finished": None}
    folder = fake_run.write(tmp_path, run, fake_run.metrics(9), fake_run.evaluations(8)[:3])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    text = words(write_report(folder).read_text(encoding="utf-8"))
    assert "9 steps were recorded" in text
    assert "1 line of its records could not be read" in text
    assert "by the last evaluation, at step 4." in text


def test_one_evaluation_is_not_compared() -> None:
    text = words(render_report(RunData(run={}, evaluations=({"step": 0, "accuracy": 0.5, "n": 10},))))
    assert "before training was 50.0%" in text
    assert "no second evaluation" in text


def test_a_change_that_may_be_chance_is_called_so() -> None:
    evaluations = ({"step": 0, "accuracy": 0.5, "n": 10}, {"step": 9, "accuracy": 0.6, "n": 10})
    assert "That interval contains zero" in words(render_report(RunData(run={}, evaluations=evaluations)))


def test_nan_everywhere_renders() -> None:
    nan = float("nan")
    row: dict[str, Any] = dict.fromkeys(("loss", "reward", "accuracy", "kl_reverse", "entropy", "seconds", "n"), nan)
    sample = {"tokens": ["a"], "kl": [nan], "entropy": [None], "student_logp": [nan], "reward": nan}
    data = RunData(run={}, metrics=({"step": 1, **row},), evaluations=({"step": 0, **row},), samples=(sample,))
    assert "nan" not in words(render_report(data)).lower()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    data = load_run(fake_run.whole(tmp_path, steps=5))
    assert render_report(data) == render_report(data)


def test_half_a_character_does_not_prevent_the_report(tmp_path: Path) -> None:
    folder = fake_run.write(
        tmp_path, samples=[{"prompt": "\ud83d\x00", "tokens": ["\ud83d", "\x1b"], "kl": [1.0, 0.0]}]
    )
    written = write_report(folder).read_bytes()
    written.decode("utf-8")
    assert b"\x00" not in written
    assert b"\x1b" not in written


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    data = load_run(fake_run.write(tmp_path, metrics=[{"step": i, "loss": i % 7} for i in range(20_000)]))
    assert len(render_report(data)) < 100_000


def test_a_failure_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_run.whole(tmp_path, steps=2)
    before = sorted(folder.iterdir())
    real = Path.write_bytes

    def tear(path: Path, content: bytes) -> int:
        real(path, content[:100])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", tear)
        with pytest.raises(OSError, match="disk full"):
            write_report(folder)
    assert sorted(folder.iterdir()) == before
    report = write_report(folder)
    old = report.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(page, "render_report", lambda data: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_report(folder)
    assert report.read_bytes() == old
    assert sorted(folder.iterdir()) == sorted([*before, report])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
