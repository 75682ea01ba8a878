"""``--import FILE.py``: a method of the user's own, in every command that takes a method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_engine import Notes, Run

from limbeck import user_files as own_files
from limbeck.engine.config import configure
from limbeck.errors import LimbeckError
from limbeck.space.registry import REGISTRY
from limbeck.user_files import refuse_unnamed

MINE = '''
import limbeck as lb
from limbeck.axes import log_ratio, reinforce, sample, student, teacher
from beside import WIDTH


@lb.method(paper="", title="Mine", confidence="low")
def my_method(coef: float = 2.0, group: int = WIDTH) -> lb.Method:
    """The teacher's log-ratio, times a number.

    Args:
        coef: the number; 2 (ours).
        group: rollouts a prompt; 3 (ours).
    """
    return lb.Method(sample(student, group, check=False), coef * lb.Term(log_ratio(teacher), reinforce))
'''


@pytest.fixture
def mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file that registers a method, in a process that has not run it."""
    (folder / "code").mkdir()
    (folder / "code" / "beside.py").write_text("WIDTH = 3\n")
    (folder / "code" / "mine.py").write_text(MINE)
    monkeypatch.setattr(own_files, "_RUN", {})
    yield "code/mine.py"
    REGISTRY.pop("my_method", None)


def test_every_command_takes_a_file_of_methods(limbeck_: Run, mine: str) -> None:
    assert "Mine" in limbeck_("explain", "my_method", "--import", mine).output
    assert "my_method" in limbeck_(f"--import={mine}", "methods").output
    assert limbeck_("diff", "--import", mine, "my_method", "opd").exit_code == 0


def test_the_command_of_explain_names_the_file(limbeck_: Run, mine: str) -> None:
    shown = " ".join(limbeck_("explain", "my_method", "--import", mine).output.split())
    assert f"limbeck train my_method --import {mine} --student STUDENT" in shown


def test_a_run_records_the_files_that_it_imported(limbeck_: Run, notes: Notes, mine: str) -> None:
    words = ("train", "my_method", "--import", mine, "--teacher", "org/big", "--set", "coef=3.0", "--out", "o")
    result = limbeck_(*words)
    assert result.exit_code == 0, result.stderr
    assert notes.config.imports == (str(Path(mine).resolve()),)
    assert notes.config.arguments == {"coef": 3.0}
    assert notes.calls[0][2]["command"] == "limbeck " + " ".join(words)


def test_a_settings_file_may_name_files_to_import(limbeck_: Run, notes: Notes, folder: Path, mine: str) -> None:
    (folder / "run.toml").write_text(f'method = "my_method"\nimports = ["{mine}"]\nteacher = "org/big"\n')
    result = limbeck_("train", "--config", "run.toml")
    assert result.exit_code == 0, result.stderr
    assert notes.config.imports == (str(Path(mine).resolve()),)


def test_python_code_may_name_files_to_import(mine: str) -> None:
    config = configure("my_method", {"imports": [mine], "teacher": "org/big"})
    assert config.recipe(**config.arguments).name == "my_method"
    assert config.imports == (str(Path(mine).resolve()),)


def test_a_record_alone_runs_no_code(folder: Path, mine: str) -> None:
    """Code that a run's folder names runs only if the user names it again."""
    file = str(Path(mine).resolve())
    with pytest.raises(LimbeckError, match=r"runs only if you name it again; add --import .*mine\.py\.$"):
        refuse_unnamed(folder / "o", (file,))
    own_files.run_file(mine)
    refuse_unnamed(folder / "o", (file,))


def test_a_stopped_run_says_how_to_continue(limbeck_: Run, notes: Notes, folder: Path, mine: str) -> None:
    (folder / "o" / "checkpoints" / "step-000001").mkdir(parents=True)
    (folder / "o" / "run.json").write_text("{}")
    notes.trouble = KeyboardInterrupt()
    words = ("train", "my_method", "--import", mine, "--teacher", "org/big", "--out", "o", "--overwrite")
    assert f"limbeck train --resume o --import {mine}" in limbeck_(*words).stderr


def test_an_unknown_method_says_how_to_bring_ones_own(limbeck_: Run, folder: Path) -> None:
    assert "--import FILE.py" in limbeck_("train", "my_method").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("there is no such Python file",)),
        ("import nothing_of_that_name", ("line 1", "ModuleNotFoundError", "nothing_of_that_name")),
        ("x = 1\nx +\n", ("line 2", "SyntaxError")),
        ("def f():\n    raise SystemExit(3)\n\n\nf()\n", ("line 2", "SystemExit")),
        (MINE.replace("my_method", "kdrl"), ("kdrl", "registered already")),
    ],
)
def test_a_file_that_fails_is_one_sentence(
    limbeck_: Run, folder: Path, mine: str, text: str | None, words: tuple[str, ...]
) -> None:
    bad = folder / "code" / "bad.py"
    if text is not None:
        bad.write_text(text)
    result = limbeck_("methods", "--import", str(bad))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    for word in ("--import", *words):
        assert word in line, line


def test_a_method_that_raises_is_one_sentence_with_its_line(limbeck_: Run, folder: Path, mine: str) -> None:
    Path(mine).write_text(MINE.replace("    return lb", "    if coef > 5:\n        coef = none\n    return lb"))
    result = limbeck_("explain", "my_method", "--set", "coef=9.0", "--import", mine)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("limbeck: line 16 of mine.py raises NameError (name 'none' is not defined); correct it")


def test_an_option_without_a_file_is_refused(limbeck_: Run) -> None:
    assert "--import needs a file" in limbeck_("methods", "--import").stderr
