"""Run environments in worker processes with limits on time, memory and output.

A hang, a crash, excessive memory, an exception or a reward that is not finite ends only the episode it happens in, with
:class:`~limbeck.tasks.base.EpisodeDied`. The worker is killed and replaced. Other episodes in it continue: because they
are deterministic functions of their actions, they are replayed in another worker at their next step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from ..errors import LimbeckError
from .base import EpisodeDied, Observation, refuse_if_over

_SCRIPT = Path(__file__).with_name("guard_worker.py")
# A fixed hash seed, because the order of sets must be the same in a replay; and one thread, because the threads of
# linear algebra libraries take up address space.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Variables that foreign code may need to start and to import packages; others (tokens, keys, proxies with passwords)
# are not passed on.
_PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TEMP", "TMP", "TZ", "LANG", "LANGUAGE", "TERM"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("XDG_CACHE_HOME", "XDG_DATA_HOME", "SYSTEMROOT", "SYSTEMDRIVE", "COMSPEC", "PATHEXT", "WINDIR", "USERPROFILE"),
    *("APPDATA", "LOCALAPPDATA", "JAVA_HOME"),
)
# Episodes after which a worker is replaced, so that memory which an environment leaks is freed (ours).
_RETIRE_AFTER = 1000
# How often an episode is replayed after its worker ended between two requests (ours).
_REVIVALS = 3


@dataclass(frozen=True)
class Limits:
    """Limits of a worker and of the environments in it; all defaults are ours.

    Attributes:
        step_s: seconds for one step, and for one close.
        start_s: seconds for starting a worker, and for opening an episode.
        memory_mb: MiB of address space of a worker with all episodes in it; None for no limit. Enforced on Linux.
        output_chars: of one observation.
        episodes: open at the same time in one worker.
    """

    step_s: float = 30.0
    start_s: float = 120.0
    memory_mb: int | None = 4096
    output_chars: int = 100_000
    episodes: int = 16

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "memory_mb" and value is None:
                continue
            kind = (int, float) if f.name.endswith("_s") else (int,)
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
                raise LimbeckError(
                    f"limit {f.name} is {value!r}; give a{'' if len(kind) == 2 else ' whole'} number above 0."
                )


class Pool:
    """Worker processes for one kind of environment, started when needed and reused.

    The workers end when the pool is garbage-collected, and at the latest with this process.

    Args:
        factory: called in the worker with the keyword arguments of :meth:`open`; returns an object with ``step(text)``
            and ``close()``, whose observations are mappings or objects with the fields of
            :class:`~limbeck.tasks.base.Observation` (``text`` is enough). A function of a module, or a text
            ``"module:function"`` or ``"file.py:function"``; a file is loaded on its own, without its package.
        limits: of every worker.

    Attributes:
        limits: may be changed; the new limits apply to later workers and steps.

    Raises:
        LimbeckError: another process cannot import the factory.
    """

    def __init__(self, factory: Callable[..., Any] | str, limits: Limits | None = None) -> None:
        self._factory = _locate(factory)
        self.limits = limits or Limits()
        self._numbers = itertools.count()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _kill, self._workers)

    def open(self, **arguments: Any) -> Guarded:
        """Start an episode.

        Args:
            **arguments: of the factory; values that JSON can hold.

        Raises:
            EpisodeDied: the environment did not start.
            LimbeckError: the factory cannot be imported.
        """
        return Guarded(self, next(self._numbers), arguments)

    def close(self) -> None:
        """End all workers. Open episodes are replayed in new workers if they are stepped again."""
        _kill(self._workers)

    def place(self, episode: int) -> _Worker:
        """A worker with room for an episode; the episode is registered in it."""
        with self._lock:
            self._workers[:] = [worker for worker in self._workers if worker.useful()]
            for worker in self._workers:
                if len(worker.episodes) < self.limits.episodes and worker.had < _RETIRE_AFTER:
                    break
            else:
                worker = _Worker(self._factory, self.limits)
                self._workers.append(worker)
            worker.episodes.add(episode)
            worker.had += 1
            return worker


class Guarded:
    """One episode in a worker, created by :meth:`Pool.open`."""

    def __init__(self, pool: Pool, number: int, arguments: Mapping[str, Any]) -> None:
        self._pool, self._number, self._arguments = pool, number, arguments
        self._actions: list[str] = []
        self._over = False
        self._worker: _Worker | None = None
        self._survive(self._enter)

    def step(self, text: str) -> Observation:
        """Take an action.

        Raises:
            EpisodeDied: it took too long, crashed, raised, wrote too much or gave a reward that is not finite.
        """
        refuse_if_over(self._over)
        observation = self._survive(lambda: self._act(text))
        self._actions.append(text)
        self._over = observation.done
        return observation

    def close(self) -> None:
        """Close the episode in its worker."""
        worker, self._worker, self._over = self._worker, None, True
        if worker is not None:
            with contextlib.suppress(EpisodeDied, _Gone):
                worker.ask("close", self._pool.limits.step_s, episode=self._number)
            worker.leave(self._number)

    def _survive(self, do: Callable[[], Any]) -> Any:
        """Run ``do``; if the worker has ended before the request, replay the episode in another one first."""
        try:
            for _ in range(_REVIVALS):
                try:
                    if self._worker is None or not self._worker.alive():
                        self._enter()
                    return do()
                except _Gone:
                    continue
            raise EpisodeDied(f"its worker ended by itself {_REVIVALS} times")
        except BaseException:
            self._over = True
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.leave(self._number)
            raise

    def _enter(self) -> None:
        """Open the episode in a worker and repeat the actions so far."""
        if self._worker is not None and self._worker.alive():
            return
        self._worker = self._pool.place(self._number)
        limits = self._pool.limits
        self._worker.ask("open", limits.start_s, episode=self._number, arguments=self._arguments)
        for action in self._actions:
            self._act(action)

    def _act(self, text: str) -> Observation:
        assert self._worker is not None
        return self._worker.ask("step", self._pool.limits.step_s, _observation, episode=self._number, text=text)


class _Gone(Exception):
    """The worker had ended before the request."""


class _Worker:
    """A worker process with its pipes; it handles one request at a time."""

    def __init__(self, factory: Mapping[str, Any], limits: Limits) -> None:
        self.episodes: set[int] = set()
        self.had = 0
        self._killed = False
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Its own session, so that Ctrl-C in the terminal reaches only the run, which then ends its workers.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-s", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_needed(os.environ),
            start_new_session=True,
        )
        assert self.process.stdout is not None
        # A character takes at most six bytes in JSON; 10,000 is for the other fields.
        longest = 12 * limits.output_chars + 10_000
        self._reader = threading.Thread(target=_read, args=(self.process.stdout, longest, self._answers), daemon=True)
        self._reader.start()
        path = [entry or os.getcwd() for entry in sys.path]
        given: dict[str, Any] = {
            "path": path,
            "factory": dict(factory),
            "memory_mb": limits.memory_mb,
            "longest": limits.output_chars,
        }
        try:
            self.ask("load", limits.start_s, **given)
        except EpisodeDied as error:
            if not error.reason.startswith("raised "):
                raise EpisodeDied(f"its worker did not start: {error.reason}") from None
            raise LimbeckError(
                f"environment {factory['name']!r} of {factory['file'] or factory['module']} {error.reason} "
                "while it was imported; see that it imports in a fresh Python."
            ) from None
        except _Gone:
            raise EpisodeDied("its worker did not start") from None

    def ask(self, do: str, seconds: float, read: Callable[[Any], Any] = lambda value: value, **given: Any) -> Any:
        """Send a request and wait for the answer; any error ends the worker.

        Raises:
            EpisodeDied: with the reason.
            _Gone: the worker had already ended.
        """
        with self._lock:
            if not self.alive():
                self.kill()
                raise _Gone
            try:
                return read(self._exchange(do, seconds, given))
            except BaseException:  # also on Ctrl-C, after which a late answer would be read as that of the next request
                self.kill()
                raise

    def _exchange(self, do: str, seconds: float, given: Mapping[str, Any]) -> Any:
        number = next(self._numbers)
        request = json.dumps({"number": number, "do": do, "seconds": seconds, "with": given})
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request.encode() + b"\n")
            self.process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except OSError:
            line = None
        except queue.Empty:
            raise EpisodeDied(f"{_NOUNS[do]} took longer than {seconds:g} s") from None
        if line is None:
            raise EpisodeDied(f"{_NOUNS[do]} {self._end()}")
        try:
            answer = json.loads(line)
            right = answer["number"] == number
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise EpisodeDied(f"{_NOUNS[do]} wrote too much, or disturbed the channel of its worker")
        if "error" in answer:
            raise EpisodeDied(f"raised {answer['error']}")
        return answer["value"]

    def _end(self) -> str:
        """A clause that says how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=5)
            return f"crashed its worker ({_signal_name(-code)})" if code < 0 else f"ended its worker (exit {code})"
        return "closed the channel of its worker"

    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    def useful(self) -> bool:
        """Whether to keep the worker; one that has had its number of episodes and has none open is ended."""
        if self.alive() and (self.episodes or self.had < _RETIRE_AFTER):
            return True
        self.kill()
        return False

    def leave(self, episode: int) -> None:
        """Remove an episode."""
        self.episodes.discard(episode)

    def kill(self) -> None:
        """End the process and its children, and wait for it, so that no zombie remains."""
        if self._killed:  # its process id may have been reused by now
            return
        self._killed = True
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=1)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None and not (pipe is self.process.stdout and self._reader.is_alive()):
                    pipe.close()


_NOUNS = {"load": "its start", "open": "its opening", "step": "a step", "close": "its end"}


def _read(stream: IO[bytes], longest: int, answers: queue.SimpleQueue[bytes | None]) -> None:
    """Put lines into the queue until the process ends; a line that is too long is cut, so that it is not valid JSON."""
    with contextlib.suppress(OSError, ValueError):
        while line := stream.readline(longest):
            answers.put(line)
    answers.put(None)


def _observation(value: Mapping[str, Any]) -> Observation:
    observation = Observation(**value)
    if not math.isfinite(observation.reward):
        raise EpisodeDied(f"gave reward {observation.reward}, which is not finite")
    return observation


def _needed(everything: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a worker: those in ``_PASSED``, the locale, and ``_ENVIRONMENT``."""
    named = {k: v for k, v in everything.items() if k.upper() in _PASSED or k.startswith("LC_")}
    return {**named, **_ENVIRONMENT}


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()
    workers.clear()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _locate(factory: Callable[..., Any] | str) -> dict[str, str | None]:
    """The location of the factory for a worker: module, name in it, and the file if it is loaded from a file."""
    if isinstance(factory, str):
        where, _, name = factory.rpartition(":")
        if not where or not name:
            raise LimbeckError(f"factory {factory!r} names no function; write 'module:function' or 'file.py:function'.")
        file = str(Path(where).expanduser().resolve()) if where.endswith(".py") else None
        return {"module": Path(where).stem if file else where, "name": name, "file": file}
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "<")
    file = getattr(sys.modules.get("__main__"), "__file__", None) if module == "__main__" else None
    if not module or "<" in name or (module == "__main__" and file is None):
        raise LimbeckError(f"factory {factory!r} cannot be found by another process; define it at the top of a module.")
    return {"module": "guarded_main" if file else module, "name": name, "file": file}
