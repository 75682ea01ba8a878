"""Seed known bugs in a copy of the library, one at a time, and check that the tests named for each of them fail.

``.venv/bin/python scripts/mutate.py``                   run all (about twenty minutes on one core)
``.venv/bin/python scripts/mutate.py --only "sdpo|tip"`` those whose name matches a regular expression
``.venv/bin/python scripts/mutate.py --list``            print names and tests, and run nothing

The bugs are listed in ``mutations.toml``: a segment of source text, its replacement, and the tests of which at least
one must fail. Files are not named: the text must occur exactly once in ``src/limbeck``, so modules can be moved, and
text that no longer exists is reported. ``src`` itself is never changed. To add a bug, append it to that file and run it
with ``--only``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600.0
"""Seconds for the tests of one mutation (ours); a mutated library whose tests do not end counts as caught."""

CAUGHT, SURVIVED, GONE = "caught", "SURVIVED", "no longer applies"
NO_BASELINE, NO_RUN = "the tests fail without it", "the tests cannot run with it"


@dataclass(frozen=True)
class Mutation:
    """A bug to seed.

    Attributes:
        name: the method or part, a colon, and what is wrong.
        old: source text that occurs exactly once.
        new: its replacement.
        tests: files below ``tests/`` (or ``file::test``) of which at least one test must fail.
    """

    name: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}  ({', '.join(self.tests)})"


@dataclass(frozen=True)
class Outcome:
    """The result of a mutation; ``where`` is the file with its text, relative to the folder that was copied."""

    name: str
    status: str
    where: str
    tests: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{self.status:10} {self.name}  ({self.where or 'nowhere'}, {self.seconds} s)"


def load(path: Path = ROOT / "scripts" / "mutations.toml") -> tuple[Mutation, ...]:
    """The mutations of a file."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    return tuple(Mutation(row["name"], row["old"], row["new"], tuple(row["tests"])) for row in rows)


def places(source: Path, text: str) -> list[Path]:
    """Files below ``source`` that hold ``text``, each once for every time that it occurs there."""
    return [p for p in sorted(source.rglob("*.py")) for _ in range(p.read_text(encoding="utf-8").count(text))]


class Runner:
    """Applies mutations to a copy of ``source`` and runs tests against that copy.

    Args:
        source: folder that holds the package (``src``).
        tests: folder that the tests of a mutation are relative to.
        copy: an empty folder for the copy.
    """

    def __init__(self, source: Path, tests: Path, copy: Path):
        self.tests, self.copy = tests, copy / "src"
        shutil.copytree(source, self.copy, ignore=shutil.ignore_patterns("__pycache__"))
        self._pass: dict[tuple[str, ...], bool] = {}

    def try_out(self, mutation: Mutation) -> Outcome:
        """Seed one bug, run its tests and take the bug out again."""
        start, found = time.monotonic(), places(self.copy, mutation.old)
        if len(found) != 1:
            return self._outcome(mutation, f"{GONE} (found {len(found)} times)", "", start)
        (file,) = found
        where = str(file.relative_to(self.copy))
        if mutation.tests not in self._pass:
            self._pass[mutation.tests] = self._run(mutation.tests) == 0
        if not self._pass[mutation.tests]:
            return self._outcome(mutation, NO_BASELINE, where, start)
        text = file.read_text(encoding="utf-8")
        try:
            file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
            status = {0: SURVIVED, 1: CAUGHT}.get(self._run(mutation.tests), NO_RUN)
        finally:
            file.write_text(text, encoding="utf-8")
        return self._outcome(mutation, status, where, start)

    def _outcome(self, mutation: Mutation, status: str, where: str, start: float) -> Outcome:
        return Outcome(mutation.name, status, where, mutation.tests, round(time.monotonic() - start, 1))

    def _run(self, tests: Sequence[str]) -> int:
        """Exit status of pytest. Without byte code: of two changes in one second, Python would not see the second."""
        own = {"PYTHONPATH": str(self.copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        try:
            return subprocess.run(
                [*command, *(str(self.tests / t) for t in tests)],
                cwd=self.tests.parent,
                env=os.environ | own,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT,
            ).returncode
        except subprocess.TimeoutExpired:
            return 1


def outcomes(mutations: Sequence[Mutation], source: Path, tests: Path) -> Iterator[Outcome]:
    """Try out each mutation, in order."""
    with tempfile.TemporaryDirectory(prefix="limbeck-mutate-") as folder:
        runner = Runner(source, tests, Path(folder))
        for mutation in mutations:
            yield runner.try_out(mutation)


def main(
    arguments: Sequence[str] | None = None,
    mutations: Sequence[Mutation] | None = None,
    source: Path = ROOT / "src",
    tests: Path = ROOT / "tests",
) -> int:
    """Exit status 0 if every chosen mutation was caught, 1 if not, 2 if the arguments are wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", default="", help="regular expression that names must match")
    parser.add_argument("--list", action="store_true", help="print the mutations and run nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of lines")
    given = parser.parse_args(arguments)
    known = load() if mutations is None else mutations
    try:
        chosen = [m for m in known if re.search(given.only, m.name, re.IGNORECASE)]
    except re.error as e:
        parser.error(f"--only {given.only!r} is not a regular expression ({e}); quote special characters with \\.")
    if not chosen:
        parser.error(f"no mutation's name matches {given.only!r}; --list prints all of them.")
    done: list[Mutation | Outcome] = []
    missed = 0
    for item in chosen if given.list else outcomes(chosen, source, tests):
        done.append(item)
        missed += isinstance(item, Outcome) and item.status != CAUGHT
        if not given.json:
            print(item, flush=True)
    if given.json:
        print(json.dumps([asdict(item) for item in done], indent=2))
    elif not given.list:
        print(f"{len(done) - missed} of {len(done)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
