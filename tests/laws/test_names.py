"""Names and words of the package: one meaning each, found where the documentation says, and nothing from outside."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest

import limbeck

ROOT = Path(limbeck.__file__).parent
REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted(ROOT.rglob("*.py"))
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

COMMANDS = {"diff", "explain", "evaluate", "main", "pipeline", "train"}
"""Functions of ``cli`` that are called as the function they call, because a command and its function are one thing."""

TWICE = {"sd_zero"}
"""SD-Zero is a method (its second phase) and a pipeline (both phases); each is found in a namespace of its own."""


def definitions(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> dict[str, list[str]]:
    """Files by the name of what they define at the top of the file."""
    found = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, kind):
                found[node.name].append(str(path.relative_to(ROOT)))  # type: ignore[attr-defined]
    return found


def test_a_class_name_has_one_meaning() -> None:
    """A reader who has met a class knows it wherever its name appears; a leading underscore makes no other name."""
    found = defaultdict(list)
    for name, files in definitions(ast.ClassDef).items():
        found[name.lstrip("_")] += files
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_a_public_function_name_has_one_meaning() -> None:
    """Commands are called as what they run."""
    found = definitions((ast.FunctionDef, ast.AsyncFunctionDef))
    twice = {}
    for name, files in found.items():
        inner = [f for f in files if not (name in COMMANDS and f.startswith("cli/"))]
        if len(inner) > 1 and not name.startswith("_") and name not in TWICE:
            twice[name] = inner
    assert twice == {}


def resolves(dotted: str) -> bool:
    """Whether a dotted name can be imported, or found by attribute in what can be."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for name in parts[n:]:
            if not hasattr(thing, name):
                return name in getattr(thing, "__annotations__", {})
            thing = getattr(thing, name)
        return True
    return False


def named_in(path: Path) -> set[str]:
    """Names such as ``limbeck.axes.levels`` and ``lb.objective`` in a file."""
    text = path.read_text()
    full = re.findall(r"(?<![\w./-])limbeck(?:\.[a-z_A-Z]\w*)+", text)
    short = re.findall(r"(?<![\w./-])lb(?:\.[a-z_A-Z]\w*)+", text)
    names = {*full, *(f"limbeck{name.removeprefix('lb')}" for name in short)}
    return {n for n in names if not n.endswith((".json", ".py", ".toml"))}


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_every_dotted_name_resolves(path: Path) -> None:
    """In the documentation, in docstrings and in messages."""
    assert {name for name in named_in(path) if not resolves(name)} == set()


ABSENT = re.compile(
    r"\b(?:SPACE|DESIGN|HOUSE|PROSE|FIELD|PEERS|ASSETS|STYLE|EXTENSIBILITY|PERFORMANCE)(?:\.md|\s+(?:section|§|\d))"
    r"|\bcards?\s+[A-Z]?\d|\bPart\s+[IVX]+\b|\bshared/(?:methods|golden)"
)
"""References to documents with which the project began, and which are not in the repository."""


def texts() -> list[Path]:
    """Everything that people read, besides this file."""
    folders = ("src", "tests", "docs", "scripts", "benchmarks")
    inner = [p for folder in folders for end in ("py", "md") for p in (REPOSITORY / folder).rglob(f"*.{end}")]
    return sorted({*inner, *REPOSITORY.glob("*.md")} - {Path(__file__)})


def test_nothing_refers_to_a_document_that_is_not_here() -> None:
    """Papers and public code are all that a reader can look up."""
    found = {}
    for path in texts():
        lines = [n for n, line in enumerate(path.read_text().splitlines(), 1) if ABSENT.search(line)]
        if lines:
            found[str(path.relative_to(REPOSITORY))] = lines
    assert found == {}


OPENINGS = ("What ", "Whoever ", "Whatever ", "Who ", "Whose ", "Nobody ", "Everybody ", "Where ")


def test_docstrings_open_with_what_a_thing_is_or_does() -> None:
    """Not with a riddle."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if text.startswith(OPENINGS):
                    found.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert found == []
