"""A real headless Chromium, driven by its own protocol over a pipe: what a page shows, logs and requests."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str | None:
    """The path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """An open tab. ``events``: everything that the browser reported about it, in order."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer, self._number, self._session, self._target = b"", 0, "", ""
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result. Raise RuntimeError if the browser refuses it."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 2**16)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(
        self, page: Path | str, *, dark: bool = False, width: int = 900, height: int = 1400, mobile: bool = False
    ) -> None:
        """Load the file or address ``page`` in a new tab, in place of the one before, and wait until it is shown."""
        old, self._session = self._target, ""
        self._target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        if old:
            self.ask("Target.closeTarget", targetId=old)
        self._session = self.ask("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'", "the page did not load")

    def wait_for(self, script: str, otherwise: str, *, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true. Raise RuntimeError with the message ``otherwise`` if it stays false."""
        end = time.monotonic() + seconds
        while not self.value(script):
            if time.monotonic() > end:
                raise RuntimeError(otherwise)
            time.sleep(0.05)

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression in the page, or of the promise that it gives. Raise RuntimeError if it throws."""
        reply = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(str(reply["exceptionDetails"]))
        return reply["result"].get("value")

    def choose(self, selector: str, *paths: Path) -> None:
        """Choose files in the file input that ``selector`` finds."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def press(self, key: str, *, text: str = "") -> None:
        """Press and release a key of the keyboard, such as Tab."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39}
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        box = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": box["width"], "height": box["height"], "scale": 1}
        return base64.b64decode(self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])

    def reported(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of all events called ``methods``."""
        return [event["params"] for event in self.events if event.get("method") in methods]


@contextmanager
def browsing() -> Iterator[Page]:
    """Start Chromium with an empty profile and yield a page."""
    path = chromium()
    assert path is not None
    ours, theirs = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The protocol is spoken on descriptors 3 and 4.
        script = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        # An address that is not secure, as a page on a plain http host has.
        words += ["--host-resolver-rules=MAP page.test 127.0.0.1"]
        words += [f"--user-data-dir={profile}", "--no-first-run", "about:blank"]
        process = subprocess.Popen(
            ["bash", "-c", script, "chromium", path, *words], pass_fds=(ours[0], theirs[1]), stderr=subprocess.DEVNULL
        )
        os.close(ours[0])
        os.close(theirs[1])
        try:
            yield Page(ours[1], theirs[0])
        finally:
            process.terminate()
            process.wait(timeout=60)
            os.close(ours[1])
            os.close(theirs[0])
