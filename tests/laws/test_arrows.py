"""The direction of imports, read from the source, and the size of files.

Every import counts: at the top of a file, inside a function, and under ``TYPE_CHECKING``. Rooms lie on floors; a file
imports from its own room and from lower floors only, and no two files import each other, directly or around a circle.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import limbeck

ROOT = Path(limbeck.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS: tuple[set[str], ...] = (
    {"errors", "lazy_torch"},
    {"types"},
    {"limits", "terminal", "embedded", "online", "user_files"},
    {"math"},
    {"kernels"},
    {"axes"},
    {"space"},
    {"loss", "methods", "tasks", "evaluate"},
    {"functional", "report"},
    {"engine"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
"""The rooms at the top of the package, from the ground up. A room never imports one of its own floor."""

CORE = {"errors", "lazy_torch", "types", "math", "kernels", "axes", "space", "loss", "functional", "methods"}
"""What a method is and how its loss is computed. It uses nothing of what runs it."""


def module(path: Path) -> str:
    """``limbeck.axes.levels`` for ``axes/levels.py``; a package for its ``__init__``."""
    parts = ("limbeck", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(f): f for f in FILES}


def room(name: str) -> str:
    """``axes`` for ``limbeck.axes.levels``."""
    return (*name.split("."), "__init__")[1]


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of the package that a file imports, wherever the statement stands."""
    package = ["limbeck", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            inside = {f"{name}.{a.name}" for a in node.names} & set(MODULES)
            names = {a.name for a in node.names if f"{name}.{a.name}" not in MODULES}
            found |= inside | ({name} if names and name in MODULES else set())
    return frozenset(found - {module(path)})


def circle(arrows: dict[str, frozenset[str]]) -> list[str]:
    """Names that lie on some circle, in the order in which one is walked; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        for other in sorted(arrows.get(name, ())):
            if found := walk(other, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def test_no_file_lies_on_a_circle() -> None:
    """Counting imports inside functions and those for type checkers."""
    assert circle({name: imports(path) for name, path in MODULES.items()}) == []


def test_no_folder_of_the_engine_lies_on_a_circle() -> None:
    """``engine/rollout`` and its neighbours are rooms of their own; a file beside them is one too."""

    def place(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[2:3])

    arrows: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name.startswith("limbeck.engine."):
            inner = {place(n) for n in imports(path) if n.startswith("limbeck.engine.")}
            arrows.setdefault(place(name), set()).update(inner - {place(name)})
    assert circle({k: frozenset(v) for k, v in arrows.items()}) == []


def test_the_circle_finder_finds_circles() -> None:
    """A line has none, and a detour is found."""
    line = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset[str]()}
    assert circle(line) == []
    assert circle({**line, "c": frozenset({"a"})}) == ["a", "b", "c"]


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_imports_go_down(path: Path) -> None:
    """From a room to lower floors."""
    own = room(module(path))
    height = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    below = {name for name, n in height.items() if n < height[own]} | {own}
    assert {room(n) for n in imports(path)} <= below


def test_every_room_has_a_floor() -> None:
    """A new folder says where it stands."""
    assert {room(name) for name in MODULES} == {name for floor in FLOORS for name in floor}


def test_engine_and_methods_never_meet() -> None:
    """An engine that knew a method would be one trainer a method."""
    assert not any(room(n) == "methods" for f in FILES if room(module(f)) == "engine" for n in imports(f))


def test_the_core_knows_nothing_of_what_runs_it() -> None:
    """Tasks, evaluation, report, engine and the command line build on it."""
    assert {
        (module(f), n) for f in FILES if room(module(f)) in CORE for n in imports(f) if room(n) not in CORE
    } == set()


def test_axes_vanish_in_one_file_of_the_vocabulary() -> None:
    """``levels`` is the only file of ``axes`` that scatters over units."""
    scattering = ("index_add", "scatter_reduce", "bincount")
    found = {f.name for f in FILES if room(module(f)) == "axes" and any(word in f.read_text() for word in scattering)}
    assert found == {"levels.py"}


def test_every_folder_has_a_map() -> None:
    """The docstring at the door says what lives there."""
    short = {}
    for f in FILES:
        if f.name == "__init__.py":
            text = ast.get_docstring(ast.parse(f.read_text())) or ""
            short[str(f.relative_to(ROOT))] = len(text.splitlines())
    assert {name: n for name, n in short.items() if n < 3} == {}


LONG = {
    "axes/expression.py": 600,
    "math/divergence.py": 500,
}
"""Files that are longer than the habit, and how long they may grow."""


def test_files_stay_short() -> None:
    """400 lines is the habit."""
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in FILES}
    assert {name: n for name, n in lines.items() if n > LONG.get(name, 400)} == {}
    assert {name for name in LONG if lines.get(name, 0) <= 400} == set()
