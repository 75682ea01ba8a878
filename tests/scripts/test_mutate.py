"""The seeded bugs still apply, and the runner tells a caught bug from one that survives."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = "def twice(x):\n    return 2 * x\n\n\ndef shout(x):\n    return x.upper()\n"
TEST = "from toy import twice\n\n\ndef test_twice():\n    assert twice(3) == 6\n"
TESTS = ("test_toy.py",)


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Path, Path]:
    """A package of two functions, of which one is tested, and its tests."""
    for name, text in (("src/toy.py", SOURCE), ("tests/test_toy.py", TEST)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path / "src", tmp_path / "tests"


def test_every_seeded_bug_still_applies_exactly_once(mutate: ModuleType, root: Path) -> None:
    """The changed text is valid Python, so that tests fail because of the bug and not of its syntax."""
    sources = {p: p.read_text(encoding="utf-8") for p in sorted((root / "src" / "limbeck").rglob("*.py"))}
    wrong = {}
    for mutation in mutate.load():
        found = [p for p, text in sources.items() for _ in range(text.count(mutation.old))]
        if len(found) == 1 and mutation.old != mutation.new:
            ast.parse(sources[found[0]].replace(mutation.old, mutation.new))
        else:
            wrong[mutation.name] = [str(p) for p in found]
    assert wrong == {}


def test_every_seeded_bug_names_tests_that_exist(mutate: ModuleType, root: Path) -> None:
    mutations = mutate.load()
    assert len(mutations) >= 30
    assert len({m.name for m in mutations}) == len(mutations)
    for mutation in mutations:
        assert mutation.tests
        for test in mutation.tests:
            file, _, function = test.partition("::")
            assert f"def {function}" in (root / "tests" / file).read_text(encoding="utf-8"), test


def test_the_runner_tells_caught_bugs_from_survivors(
    mutate: ModuleType, toy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, tests = toy
    mutations = [
        mutate.Mutation("twice: three times", "2 * x", "3 * x", TESTS),
        mutate.Mutation("shout: whispers", "x.upper()", "x.lower()", TESTS),
        mutate.Mutation("gone", "4 * x", "5 * x", TESTS),
        mutate.Mutation("ambiguous", "return", "yield", TESTS),
        mutate.Mutation("nonsense", "def twice(x):", "def twice(x:", TESTS),
        mutate.Mutation("no such test", "x.upper()", "x.lower()", ("test_toy.py::test_absent",)),
    ]
    assert mutate.main(["--json"], mutations, source, tests) == 1
    printed = json.loads(capsys.readouterr().out)
    assert {t["name"]: t["status"] for t in printed} == {
        "twice: three times": "caught",
        "shout: whispers": "SURVIVED",
        "gone": "no longer applies (found 0 times)",
        "ambiguous": "no longer applies (found 2 times)",
        "nonsense": "the tests cannot run with it",
        "no such test": "the tests fail without it",
    }
    assert printed[0]["where"] == "toy.py"
    assert (source / "toy.py").read_text() == SOURCE
    assert mutate.main(["--only", "^twice"], mutations, source, tests) == 0
    assert "1 of 1 caught" in capsys.readouterr().out


def test_the_list_runs_nothing_and_a_pattern_must_match(
    mutate: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "outcomes", None)
    assert mutate.main(["--list", "--only", "SDPO"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all("sdpo" in line and "equal/test_privileged.py" in line for line in lines)
    for pattern, said in (("no bug has this name", "no mutation's name matches"), ("(", "is not a regular expression")):
        with pytest.raises(SystemExit) as stop:
            mutate.main(["--only", pattern])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
