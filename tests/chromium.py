"""Drive Debian's Chromium without a window, over a pipe: what a page says after its scripts ran, and how it looks.

with open_page(path) as page:
    page.evaluate("document.title")
    page.screenshot(Path("page.png"))
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
    "--window-size=900,900",
    # Whatever a page asks of the network fails.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

PATIENCE = 60
"""Seconds."""


class Page:
    """A tab: the DevTools protocol, one JSON message after another, each ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.out, self.back = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self.count, self.session, self.rest = 0, None, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": arguments}
        if self.session is not None:
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], PATIENCE)
            data = os.read(self.back.fileno(), 2**16) if ready else b""
            assert data, "the browser ended" if ready else "the browser doesn't answer"
            self.rest += data
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def evaluate(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def errors(self) -> list[str]:
        """What scripts and the loader complained about."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Every address that the page asked for."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]


def _high(pipe: tuple[int, int]) -> list[int]:
    """The same pipe with numbers that nobody means."""
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in pipe]
    for end in pipe:
        os.close(end)
    return ends


@contextmanager
def open_page(path: Path) -> Iterator[Page]:
    """A page from the disk; skips where there is no Chromium."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Debian's chromium is not installed (apt-get install chromium)")
    (in_read, in_write), (out_read, out_write) = _high(os.pipe()), _high(os.pipe())
    with TemporaryDirectory() as profile:
        # The browser reads messages from its file 3 and writes to its file 4.
        script = f'exec 3<&{in_read} 4>&{out_write}; exec "$@"'
        command = ["bash", "-c", script, "bash", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, pass_fds=(in_read, out_write), stderr=subprocess.DEVNULL)
        os.close(in_read)
        os.close(out_write)
        page = Page(in_write, out_read)
        try:
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.call("Page.navigate", url=path.resolve().as_uri())
            page.evaluate(
                "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
            )
            yield page
        finally:
            page.out.close()
            page.back.close()
            process.terminate()
            process.wait(10)
