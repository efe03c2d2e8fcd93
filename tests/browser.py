"""Headless Chromium in tests, by the DevTools protocol over a pipe: one browser, a new tab for every look at a page."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

FOUND = next((found for name in NAMES if os.name == "posix" and (found := shutil.which(name))), None)
"""Path of a Chromium, or None (where descriptors cannot be passed on, too)."""

PATIENCE = 60.0
"""Seconds to wait for an answer."""

FIXED = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)


_START = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]  # out of the way of 3 and 4
os.dup2(high[0], 3), os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Seen(NamedTuple):
    """What a script found in a page, what the console said, and what was asked for beyond the page itself."""

    value: Any
    console: list[str]
    requests: list[str]


class Browser:
    """A Chromium that runs until the context is left."""

    def __init__(self, profile: Path) -> None:
        """Start it; messages end with a zero byte, on descriptor 3 to it and 4 from it."""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [str(FOUND), *FIXED, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._in), os.close(self._out)

    def look(self, page: Path, script: str, *, width: int, scheme: str = "light", medium: str = "") -> Seen:
        """Open a page and let a script look at it.

        Args:
            page: the file.
            script: an expression in JavaScript, whose value is plain.
            width: of the window, in pixels.
            scheme: ``light`` or ``dark``, as the reader prefers.
            medium: ``print``, or nothing for a screen.
        """
        tab = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable", session)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", session, **metrics)
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setEmulatedMedia", session, media=medium, features=preferred)
        self._events.clear()
        self._ask("Page.navigate", session, url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        found = self._ask("Runtime.evaluate", session, expression=script, returnByValue=True)
        self._ask("Target.closeTarget", targetId=tab)
        assert "exceptionDetails" not in found, found
        return Seen(found["result"].get("value"), self._console(), self._requests(page))

    def _console(self) -> list[str]:
        said = []
        for event in self._events:
            if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                said.append(json.dumps(event["params"]))
        return said

    def _requests(self, page: Path) -> list[str]:
        asked = [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if url != page.as_uri() and not url.startswith("data:")]

    def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        """The next message; events are kept."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(until - time.monotonic(), 0))
            read = os.read(self._in, 1 << 16) if ready else b""
            assert read, "Chromium does not answer"
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message
