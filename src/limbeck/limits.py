"""Limits on time and memory for foreign code that runs in this process: verifiers and templates."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

VERIFY_SECONDS = 60.0
"""For one verdict, unless a run says otherwise."""

RENDER_SECONDS = 10.0
"""For rendering one template; what models read is rendered in milliseconds."""

RENDER_MB = 1024
"""MiB that rendering one template may take besides what the process holds."""

# A signal that programs leave alone: math-verify uses SIGALRM, and schedulers send SIGUSR1. Windows has none.
_SIGNAL: int | None = getattr(signal, "SIGVTALRM", None) if hasattr(signal, "pthread_kill") else None
_AGAIN = 1.0


class Unrenderable(ValueError):
    """A template needs more time, memory or text than any prompt does."""


class OutOfTime(BaseException):
    """Foreign code took longer than it may. No ``Exception``, so that a bare ``except Exception`` does not keep it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"took longer than {seconds:g} s")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns, if it returns in time.

    In the main thread the call is interrupted, also in the middle of a system call; elsewhere, and on systems without
    signals, it is left behind in a thread of its own.

    Raises:
        OutOfTime: it took longer.
    """
    if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
        return _aside(seconds, call)
    running, me = threading.Event(), threading.get_ident()
    done = threading.Event()

    def stop(*_: object) -> None:
        if running.is_set():
            raise OutOfTime(seconds)

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):  # again and again, should the code catch everything
            signal.pthread_kill(me, _SIGNAL)
            wait = _AGAIN

    before = signal.signal(_SIGNAL, stop)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        running.set()
        return call()
    finally:
        running.clear()
        done.set()
        watcher.join()
        signal.signal(_SIGNAL, before if before is not None else signal.SIG_DFL)


def within_processor_time(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns, if it computes no longer than so many seconds of the processor's time.

    For code that computes and never waits: a timer of the system interrupts it, which costs microseconds where a
    watching thread costs milliseconds.

    Raises:
        OutOfTime: it took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return within(seconds, call)
    running = True

    def stop(*_: object) -> None:
        if running:
            raise OutOfTime(seconds)

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN)  # again and again, should the code catch everything
        return call()
    finally:
        running = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before if before is not None else signal.SIG_DFL)


def _aside(seconds: float, call: Callable[[], T]) -> T:
    box: list[Any] = []

    def go() -> None:
        try:
            box.extend((True, call()))
        except BaseException as e:
            box.extend((False, e))

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(seconds)
    if len(box) < 2:
        raise OutOfTime(seconds)
    if not box[0]:
        raise box[1]
    value: T = box[1]
    return value


def rendered(call: Callable[[], str], longest: int, seconds: float = RENDER_SECONDS, mb: int = RENDER_MB) -> str:
    """The text of a template, rendered by ``call`` within limits on time and memory.

    Raises:
        Unrenderable: it takes too long, too much memory, or writes more than ``longest`` characters. What the template
            itself raises is passed on.
    """
    with _memory(mb):
        try:
            text = within_processor_time(seconds, call)
        except OutOfTime as e:
            raise Unrenderable(f"it {e}") from None
        except MemoryError:
            raise Unrenderable(f"it takes more than {mb:,} MiB of memory") from None
    if len(text) > longest:
        raise Unrenderable(f"it writes {len(text):,} characters, more than any model reads ({longest:,})")
    return text


@contextlib.contextmanager
def _memory(mb: int) -> Iterator[None]:
    """Bound what this process may still allocate, where the system can say how much it holds (Linux)."""
    try:
        import resource

        with open("/proc/self/statm") as f:
            held = int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = held + mb * 2**20
        bounded = soft == resource.RLIM_INFINITY or wanted < soft
        if bounded:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        if bounded:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
