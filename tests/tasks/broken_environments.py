"""Environments that misbehave on demand, for the tests of the guard. Imported by worker processes too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any


class World:
    """Counts its actions; some actions hang, crash or use up memory."""

    def __init__(self, first: int = 0, log: str | None = None) -> None:
        self.count, self.log = first, log

    def step(self, text: str) -> Any:
        self.count += 1
        if self.log:
            with open(self.log, "a") as f:
                f.write(f"{text}\n")
        disaster = getattr(self, f"do_{text}", None)
        reward = disaster() if disaster else 0.5
        return SimpleNamespace(text=f"{self.count} {os.getpid()}", reward=reward, done=text == "end")

    def do_hang(self) -> float:
        time.sleep(600)
        return 0.0

    def do_spin(self) -> float:
        while True:
            pass

    def do_power(self) -> float:
        return float(len(str(9**9**9)))

    def do_crash(self) -> float:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0.0

    def do_exit(self) -> float:
        os._exit(3)

    def do_leave(self) -> float:
        sys.exit(3)

    def do_raise(self) -> float:
        raise KeyError("no such door")

    def do_bomb(self) -> float:
        return float(len(bytearray(8 * 2**30)))

    def do_nan(self) -> float:
        return float("nan")

    def do_hash(self) -> float:
        return float(hash("a") % 2**32)

    def do_print(self) -> float:
        print("{}", flush=True)
        os.write(1, b'{"number": 0}\n')
        return 0.25

    def do_read(self) -> float:
        return float(len(sys.stdin.read()))

    def do_child(self) -> float:
        child = subprocess.Popen(["sleep", "600"])
        with open(str(self.log) + ".pid", "w") as f:
            f.write(str(child.pid))
        return self.do_hang()

    def close(self) -> None:
        if self.log:
            with open(self.log, "a") as f:
                f.write("closed\n")


class Chatter(World):
    """Its observations are too long."""

    def step(self, text: str) -> Any:
        return {"text": "x" * int(text)}


def slow_start() -> World:
    """Fails to open."""
    time.sleep(600)
    return World()


class Environ:
    """Returns the environment variables of its process."""

    def step(self, text: str) -> dict[str, str]:
        import os

        return {"text": " ".join(sorted(os.environ))}

    def close(self) -> None:
        """Nothing to give back."""
