"""A small client of headless Chromium: the DevTools protocol over a pipe, with nothing but the standard library.

Messages are JSON ended by a NUL byte; Chromium reads them from file descriptor 3 and writes to 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
LIMIT = 60.0
"""Seconds that Chromium may take to answer."""
KEYS = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35}


class Page:
    """One tab."""

    def __init__(self, receiving: int, sending: int) -> None:
        self._receiving, self._sending = receiving, sending
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result. Raises RuntimeError where Chromium refuses it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._sending, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receiving], [], [], LIMIT)
            more = os.read(self._receiving, 1 << 20) if ready else b""
            if not more:
                raise RuntimeError("Chromium does not answer")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file, and return when it is loaded with all its pictures."""
        self.visit(path.resolve().as_uri() + fragment)

    def visit(self, address: str) -> None:
        """Open an address, and return when it is loaded with all its pictures."""
        # The same address with another fragment would load nothing.
        self.call("Page.navigate", url="about:blank")
        answer = self.call("Page.navigate", url=address)
        assert "errorText" not in answer, answer
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, awaited. Raises RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression of JavaScript is true."""
        end = time.monotonic() + LIMIT
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press a key, as a user does."""
        text = {"text": "\r"} if key == "Enter" else {}
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def size(self, width: int, height: int) -> None:
        """Give the window a size in CSS pixels; below 600 it is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def prefer(self, scheme: str) -> None:
        """Prefer the colour scheme `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def script(self, *, enabled: bool) -> None:
        """Allow or forbid the pages' JavaScript; `evaluate` goes on working."""
        self.call("Emulation.setScriptExecutionDisabled", value=not enabled)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def chromium() -> Iterator[Page]:
    """Start headless Chromium and give one page; skip the test where there is none."""
    if PROGRAM is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    to_read, to_send = os.pipe()
    answers, to_answer = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]

        def move() -> None:
            """In the new process: the pipes get the numbers that Chromium expects."""
            spare = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (to_read, to_answer)]
            for number, descriptor in zip((3, 4), spare, strict=True):
                os.dup2(descriptor, number)

        process = subprocess.Popen(
            [PROGRAM, *options, f"--user-data-dir={profile}"],
            preexec_fn=move,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_answer)
        try:
            page = Page(answers, to_send)
            yield page
        finally:
            process.terminate()
            process.wait(LIMIT)
            os.close(to_send)
            os.close(answers)
