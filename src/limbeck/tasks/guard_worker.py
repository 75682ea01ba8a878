"""The script that runs in a guarded worker, started by ``guard.py``. It needs only the standard library.

It does not import Limbeck, because PyTorch takes seconds to import and more address space than the worker's limit. It
exchanges one JSON object on each line over its own file descriptors; what the environment prints or reads is
discarded.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO


def observation(seen: Any, longest: int) -> dict[str, Any]:
    """The fields of an observation, from a mapping or an object with attributes."""
    given = seen if isinstance(seen, Mapping) else vars(seen)
    text, feedback = str(given["text"]), given.get("feedback")
    if len(text) + len(feedback or "") > longest:
        raise ValueError(f"an observation is longer than {longest} characters")
    return {
        "text": text,
        "done": bool(given.get("done", False)),
        "reward": float(given.get("reward", 0.0)),
        "correct": bool(given.get("correct", False)),
        "feedback": None if feedback is None else str(feedback),
        "role": str(given.get("role", "user")),
    }


def load_factory(module: str, name: str, file: str | None) -> Callable[..., Any]:
    """Import the factory from a file, or from a module by name."""
    if file is None:
        found: Any = importlib.import_module(module)
    else:
        spec = importlib.util.spec_from_file_location(module, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is not a Python file")
        found = importlib.util.module_from_spec(spec)
        sys.modules[module] = found
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    factory: Callable[..., Any] = found
    return factory


def limit_memory(megabytes: int | None) -> None:
    """Limit the address space (not on Windows; macOS accepts the limit and ignores it)."""
    if megabytes is None or os.name != "posix":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = megabytes * 2**20
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


class Server:
    """Answers requests until its input ends.

    Args:
        asked, answers: streams of requests and answers.
    """

    def __init__(self, asked: TextIO, answers: TextIO) -> None:
        self.asked, self.answers = asked, answers
        self.episodes: dict[int, Any] = {}
        self.factory: Callable[..., Any] = dict
        self.longest = 0

    def serve(self) -> None:
        """Answer every request; after an exception, which is also sent, the parent ends this process."""
        for line in self.asked:
            request = json.loads(line)
            # If the parent does not end this process in time, it ends itself, even while the environment hangs.
            with contextlib.suppress(RuntimeError, MemoryError):
                faulthandler.dump_traceback_later(request["seconds"] + 5, exit=True, file=sys.stderr)
            try:
                answer = {"value": getattr(self, "do_" + request["do"])(**request["with"])}
            except BaseException as error:
                answer = {"error": f"{type(error).__name__}: {error}".removesuffix(": ")[:500]}
            faulthandler.cancel_dump_traceback_later()
            self.answers.write(json.dumps({**answer, "number": request["number"]}) + "\n")
            self.answers.flush()

    def do_load(self, path: list[str], factory: dict[str, Any], memory_mb: int | None, longest: int) -> None:
        """Set the parent's import path and the limits, and import the factory."""
        sys.path[:] = path
        self.longest = longest
        limit_memory(memory_mb)
        self.factory = load_factory(**factory)

    def do_open(self, episode: int, arguments: dict[str, Any]) -> None:
        """Start an episode."""
        self.episodes[episode] = self.factory(**arguments)

    def do_step(self, episode: int, text: str) -> dict[str, Any]:
        """Take one action."""
        return observation(self.episodes[episode].step(text), self.longest)

    def do_close(self, episode: int) -> None:
        """Close an episode."""
        self.episodes.pop(episode).close()


def main() -> None:
    """Move the streams away from descriptors 0 and 1, then answer requests."""
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    Server(asked, answers).serve()
    # Threads or exit handlers of the environment must not keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    main()
