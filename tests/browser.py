"""A headless Chromium for tests, driven by chromedriver over the W3C WebDriver protocol.

Invariant: ended with the context that started it; a machine without Chromium and chromedriver skips the tests.
"""

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="Chromium and chromedriver (Debian: chromium, chromium-driver)"
)
KEYS = {
    "ArrowLeft": "\ue012",
    "ArrowRight": "\ue014",
    "End": "\ue010",
    "Home": "\ue011",
    "Enter": "\ue007",
    "Tab": "\ue004",
}
DEADLINE_S = 60


class Browser:
    """One window; `run` returns what a script returns."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, path: Path) -> None:
        """Load a file, and wait until the page says that it is ready."""
        self._post("url", {"url": path.absolute().as_uri()})
        self.wait("return document.documentElement.dataset.ready === 'true'")

    def run(self, script: str, *arguments: Any) -> Any:
        """The JSON value that a function body returns."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any) -> None:
        """Until the function body returns something true; TimeoutError (of the script) after DEADLINE_S."""
        poll = "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);"
        poll += (
            f"const look = () => (function () {{ {script} }}).apply(null, given) ? done(true) : setTimeout(look, 20);"
        )
        self._post("execute/async", {"script": poll + "look();", "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, as a person's keyboard would."""
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def look(self, *, dark: bool = False, width: int = 1280, height: int = 900, media: str = "") -> None:
        """Set the user's colour scheme, the size of the window, and the medium (`print`)."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", {"media": media, "features": scheme})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self._devtools("Page.getLayoutMetrics", {})["cssContentSize"]
            options["clip"] = {**size, "scale": 1}
        return base64.b64decode(self._devtools("Page.captureScreenshot", options)["data"])

    def complaints(self) -> list[str]:
        """What the console says of errors and of refused requests, since the last call."""
        return [entry["message"] for entry in self._post("se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, command: str, body: dict[str, Any]) -> Any:
        return _request(f"{self._session}/{command}", "POST", body)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A started browser."""
    driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = next(line.rpartition(" ")[2].strip(" .\n") for line in driver.stdout if "successfully on port" in line)
        # Without its sandbox it also starts in a container as root; it opens nothing but the tests' own files.
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        chrome = {"goog:chromeOptions": {"args": flags, "binary": CHROMIUM}, "goog:loggingPrefs": {"browser": "ALL"}}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", **chrome}}}
        base = f"http://127.0.0.1:{port}/session"
        session = f"{base}/{_request(base, 'POST', wanted)['sessionId']}"
        _request(f"{session}/timeouts", "POST", {"script": 1000 * DEADLINE_S})
        try:
            yield Browser(session)
        finally:
            _request(session, "DELETE", None)
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close() if driver.stdout else None


def _request(url: str, method: str, body: Any) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=2 * DEADLINE_S) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {json.load(error)['value']['message']}") from None
