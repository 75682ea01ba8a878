"""The direction of imports (DESIGN section 3), read from the source, and the size of files.

``types, math <- axes <- method <- registry <- methods``; ``registry <- engine <- cli``; ``kernels -> math`` and types
only; ``methods`` and ``engine`` never import each other. ``errors`` is everybody's.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import limbeck

ROOT = Path(limbeck.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
CORE = {
    "types",
    "math",
    "kernels",
    "axes",
    "method",
    "refusals",
    "registry",
    "batch",
    "objective",
    "explain",
    "plain",
    "plain_rows",
    "plain_labels",
    "plain_memory",
    "arguments",
    "carriers",
    "finite",
    "methods",
}
MAY = {
    "errors": set(),
    "types": set(),
    "math": set(),
    "kernels": {"math", "types"},
    "axes": {"math", "types"},
    "refusals": {"axes"},
    "method": {"axes", "refusals"},
    "registry": {"method"},
    "explain": {"axes", "method", "registry"},
    "batch": {"axes", "kernels", "math", "types"},
    "objective": {"axes", "batch", "kernels", "math", "method", "refusals", "types"},
    "arguments": {"axes", "method", "types"},
    "carriers": {"arguments", "axes", "method", "refusals", "types"},
    "finite": {"axes", "math", "method", "objective", "types"},
    "plain_rows": {"arguments", "axes", "finite", "objective", "types"},
    "plain_labels": {"arguments"},
    "plain_memory": {"axes"},
    "plain": {
        "arguments",
        "axes",
        "carriers",
        "finite",
        "math",
        "method",
        "objective",
        "plain_labels",
        "plain_memory",
        "plain_rows",
        "registry",
        "types",
    },
    "methods": {"axes", "math", "method", "registry"},
}
"""What each part of the core may import at the top of a file, besides itself and ``errors``."""
LAZY = {("method", "explain"), ("registry", "methods")}
"""Imports inside a function: printing a method, and filling the registry by name."""


def part(path: Path) -> str:
    """``axes`` for ``axes/expression.py``, ``method`` for ``method.py``."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, lazy: bool | None = None) -> set[str]:
    """Parts of the package that a file imports; at its top, inside functions, or both (None); not for types alone."""
    tree = ast.parse(path.read_text())
    typing = {
        n for f in ast.walk(tree) if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.unparse(f.test) for n in f.body
    }
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    package = ["limbeck", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(tree):
        if node in typing or (lazy is not None and (node in inner) != lazy):
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{a.name}" for a in node.names] if module == "limbeck" else [module]
        found |= {n.split(".")[1] for n in names if n.startswith("limbeck.")}
    return found


CORE_FILES = [f for f in FILES if part(f) in MAY]


@pytest.mark.parametrize("path", CORE_FILES, ids=[str(f.relative_to(ROOT)) for f in CORE_FILES])
def test_the_core_imports_along_the_arrows(path: Path) -> None:
    """DESIGN section 3."""
    own = part(path)
    assert imports(path, lazy=False) <= MAY[own] | {own, "errors"}
    extra = {(own, name) for name in imports(path, lazy=True) - MAY[own] - {own, "errors"}}
    assert extra <= LAZY


def test_the_core_knows_nothing_of_what_runs_it() -> None:
    """DESIGN section 3: engine, tasks, evaluation, report and the command line build on it."""
    assert set(MAY) >= CORE
    outer = {part(f) for f in FILES} - set(MAY) - {"__init__"}
    assert {(part(f), name) for f in CORE_FILES for name in imports(f) & outer} == set()


def test_engine_and_methods_never_meet() -> None:
    """DESIGN section 3: an engine that knew a method would be one trainer a method."""
    engine = [f for f in FILES if part(f) == "engine"]
    methods = [f for f in FILES if part(f) == "methods"]
    assert engine
    assert methods
    assert not any("methods" in imports(f) for f in engine)
    assert not any("engine" in imports(f) for f in methods)
    assert not any("cli" in imports(f) for f in engine)


def test_axes_vanish_in_two_files_only() -> None:
    """DESIGN section 3: ``levels`` and ``reduction`` are the only files of ``axes`` that scatter over units."""
    scattering = ("index_add", "scatter_reduce", "bincount")
    found = {f.name for f in FILES if part(f) == "axes" and any(word in f.read_text() for word in scattering)}
    assert found == {"levels.py"}


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
