"""A headless Chromium driven over a pipe: what a reader sees of a page, at any width and in both colour schemes.

The protocol is Chromium's own (DevTools, JSON between NUL bytes), so that nothing but the browser has to be installed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --allow-file-access-from-files"
)
WIDTHS = (390, 768, 1280)
SCHEMES = ("light", "dark")
TIMEOUT = 60.0

MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")


class Browser:
    """One page of a running browser."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, from_: int) -> None:
        self.process, self.to, self.from_ = process, to, from_
        self.held = b""
        self.last = 0
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda m: m.get("id") == self.last)
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        return answer["result"]

    def show(self, path: Path, width: int, scheme: str = "light") -> None:
        """Open a file at a width in a colour scheme, and wait until it is drawn."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._wait(lambda m: m.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, as JSON."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def faults(self) -> list[str]:
        """What cannot be read on the page as it is shown: what is cut, too small or too pale."""
        return self.evaluate(MEASURE)

    def screenshot(self, path: Path, full: bool = True) -> Path:
        """The page as a PNG, for people to look at."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _wait(self, wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while True:
            while b"\0" in self.held:
                line, _, self.held = self.held.partition(b"\0")
                message = json.loads(line)
                if wanted(message):
                    return message
            ready, _, _ = select.select([self.from_], [], [], max(0.0, deadline - time.monotonic()))
            read = os.read(self.from_, 1 << 16) if ready else b""
            assert read, f"the browser gave no answer in {TIMEOUT:.0f} s (status {self.process.poll()})"
            self.held += read


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """A browser that ends with the block. Without one installed a test fails in CI, and is skipped elsewhere."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        sentence = "no Chromium is installed, so that nobody looks at the pages (on Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    (its_in, to), (from_, its_out) = os.pipe(), os.pipe()
    # The browser reads from 3 and writes to 4; numbers from 10 on cannot be overwritten on the way there.
    low = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (its_in, its_out)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS.split(), f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{low[0]} 4>&{low[1]}', "bash", *command],
            pass_fds=low,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (its_in, its_out, *low):
            os.close(fd)
        try:
            yield Browser(process, to, from_)
        finally:
            os.close(to)
            os.close(from_)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
