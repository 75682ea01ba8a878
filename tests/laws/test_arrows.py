"""The direction of imports, read from the source, and the size of files.

Every import counts: at the top of a file, inside a function, and under ``TYPE_CHECKING``. Folders and single modules at
the top of the package are *rooms*, and ``FLOORS`` orders them in layers. A file imports only from its own room and from
lower layers, and no import cycle exists, neither between two files nor through several.
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
    {"json_files", "limits", "terminal", "embedded", "online", "processes", "user_files"},
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
"""The folders and modules at the top of the package, lowest layer first. None imports another one of its layer."""

CORE = {"errors", "lazy_torch", "types", "math", "kernels", "axes", "space", "loss", "functional", "methods"}
"""The definition of methods and the computation of their losses; imports nothing from tasks, engine or reports."""


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
    """Modules of the package that a file imports, at its top or anywhere else."""
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
    """The names of one import cycle in the order of the imports; empty if there is no cycle."""
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
    """Each folder of ``engine``, such as ``engine/rollout``, and each file beside them counts as one node."""

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
    """A chain of imports has no cycle; the cycle is found after an arrow back is added."""
    line = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset[str]()}
    assert circle(line) == []
    assert circle({**line, "c": frozenset({"a"})}) == ["a", "b", "c"]


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_imports_go_down(path: Path) -> None:
    """A file imports only from its own room and from lower layers."""
    own = room(module(path))
    height = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    below = {name for name, n in height.items() if n < height[own]} | {own}
    assert {room(n) for n in imports(path)} <= below


def test_every_room_has_a_floor() -> None:
    """A new folder must be added to ``FLOORS``."""
    assert {room(name) for name in MODULES} == {name for floor in FLOORS for name in floor}


def test_engine_and_methods_never_meet() -> None:
    """The engine must run every method by the same code, so it cannot import one."""
    assert not any(room(n) == "methods" for f in FILES if room(module(f)) == "engine" for n in imports(f))


def test_the_core_knows_nothing_of_what_runs_it() -> None:
    """No module of ``CORE`` imports tasks, evaluation, report, engine or the command line."""
    assert {
        (module(f), n) for f in FILES if room(module(f)) in CORE for n in imports(f) if room(n) not in CORE
    } == set()


def test_axes_vanish_in_one_file_of_the_vocabulary() -> None:
    """``levels`` is the only file of ``axes`` that scatters over units."""
    scattering = ("index_add", "scatter_reduce", "bincount")
    found = {f.name for f in FILES if room(module(f)) == "axes" and any(word in f.read_text() for word in scattering)}
    assert found == {"levels.py"}


def test_every_folder_has_a_map() -> None:
    """The docstring of each ``__init__.py`` has at least three lines, which describe the files of the folder."""
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
"""Files that may be longer than 400 lines, with the largest allowed number of lines."""


def test_files_stay_short() -> None:
    """At most 400 lines, or the number in ``LONG``; a file that has become shorter is removed from it."""
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in FILES}
    assert {name: n for name, n in lines.items() if n > LONG.get(name, 400)} == {}
    assert {name for name in LONG if lines.get(name, 0) <= 400} == set()
