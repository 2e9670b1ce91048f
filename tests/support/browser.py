"""A real Chromium without a window, driven over its DevTools pipe: no client library, no port."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

MISSING = "chromium is not installed (apt-get install chromium)"

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-pipe", "--disable-background-networking", "--disable-component-update"),
)


class Tab:
    """One page. `problems` are its errors and warnings, `requests` the addresses that it asked for."""

    def __init__(self, send, receive):
        self._send, self._receive, self._number = send, receive, 0
        self._session = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a method of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send(message)
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {told['message']}")
            self._session and self._send(
                {
                    "id": 0,
                    "method": "Page.handleJavaScriptDialog",
                    "params": {"accept": True},
                    "sessionId": self._session,
                }
            )
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def js(self, expression):
        """The value of an expression; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, path: Path, timeout=60.0):
        """Open a page of align and wait until it is drawn; the seconds from its navigation on, by its own clock."""
        assert "errorText" not in self.call("Page.navigate", url=path.resolve().as_uri()), path
        self.until("document.documentElement?.dataset.drawn", timeout)
        return self.js("performance.now()") / 1000

    def cpu_seconds(self):
        """Processor time of the process that shows the page, since it began."""
        self.call("Performance.enable")
        found = self.call("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in found if metric["name"] == "ProcessTime")

    def until(self, condition, timeout=30.0):
        end = time.monotonic() + timeout
        while not self.js(condition):
            assert time.monotonic() < end, f"{condition}: not within {timeout} s; {self.problems}"
            time.sleep(0.02)

    def does(self, action):
        """Run what changes the page, and wait until it is drawn anew."""
        drawn = int(self.js("document.documentElement.dataset.drawn"))
        self.js(action)
        self.until(f"Number(document.documentElement.dataset.drawn) > {drawn}")

    def key(self, key):
        """Press a key as a person would."""
        drawn = int(self.js("document.documentElement.dataset.drawn"))
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                **({"text": key} if len(key) == 1 and kind == "keyDown" else {}),
            )
        self.until(f"Number(document.documentElement.dataset.drawn) > {drawn}")

    def screenshot(self, path: Path, width=1400, height=1000):
        import base64

        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(folder: Path, timeout=60.0):
    """A tab of a browser whose profile is in this folder; it ends with the block."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    flags = [*FLAGS, f"--user-data-dir={folder}"]
    with open(folder.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *flags], pass_fds=(theirs_in, theirs_out), stdout=log, stderr=log
        )
    os.close(theirs_in)
    os.close(theirs_out)
    buffer = bytearray()

    def send(message):
        os.write(ours_out, json.dumps(message).encode() + b"\0")

    def receive():
        end = time.monotonic() + timeout
        while b"\0" not in buffer:
            ready, _, _ = select.select([ours_in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"chromium said nothing for {timeout} s"
            read = os.read(ours_in, 1 << 20)
            assert read, folder.with_suffix(".log").read_text(errors="replace")
            buffer.extend(read)
        message, _, rest = bytes(buffer).partition(b"\0")
        buffer[:] = rest
        return json.loads(message)

    try:
        yield Tab(send, receive)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.terminate()
        process.wait(30)
