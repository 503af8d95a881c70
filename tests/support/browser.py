"""Chromium, by the protocol of its driver (WebDriver), and its own behind that: Debian's packages, no other library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from .server_process import free_port

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C's name of a reference
WAIT_SECONDS = 60
WIDE, NARROW = (1280, 900), (390, 844)
TRACED = "devtools.timeline,disabled-by-default-devtools.timeline,v8"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def why_no_browser() -> str:
    if not any(map(shutil.which, NAMES)) or not shutil.which("chromedriver"):
        return "no Chromium with its driver (Debian: chromium chromium-driver)"
    return ""


class BrowserError(Exception):
    pass


class Browser:
    """One window. `requests` and `trace` tell what has happened since they were asked last."""

    def __init__(self, folder: Path):
        self.folder = folder
        port = free_port()
        self._log = (folder / "chromedriver.log").open("wb")
        # what the browser writes elsewhere goes to the folder as well
        env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=self._log, stderr=subprocess.STDOUT, env=env
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90, trust_env=False)
        self._session = ""
        self._events: list[dict[str, Any]] = []
        try:
            self._open(folder)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                if self._http.get("/status").json()["value"]["ready"]:
                    break
            except httpx.TransportError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)
        size = ",".join(map(str, WIDE))
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += [f"--window-size={size}", f"--user-data-dir={folder / 'profile'}", "--disable-background-networking"]
        # no name is looked up: whoever asked another host would get an error, and be in `requests`
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-proxy-server"]
        options = {
            "binary": next(filter(None, map(shutil.which, NAMES))),
            "args": flags,
            "perfLoggingPrefs": {"enableNetwork": True, "traceCategories": TRACED},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def close(self) -> None:
        try:
            if self._session:
                self._call("DELETE", f"/session/{self._session}")
        finally:
            self._http.close()
            self._driver.terminate()
            self._driver.wait(timeout=30)
            self._log.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._http.request(method, path, json=body if method == "POST" else None)
        value = answer.json()["value"]
        if answer.status_code != 200:
            raise BrowserError(f"{value['error']}: {value['message']}")
        return value

    def _in_session(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", f"/session/{self._session}{path}", body)

    def open(self, url: str) -> None:
        self._in_session("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns, which may be a promise."""
        return self._in_session("/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **params: Any) -> Any:
        return self._in_session("/goog/cdp/execute", {"cmd": command, "params": params})

    def find(self, css: str) -> str:
        return self._in_session("/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css: str) -> None:
        self._in_session(f"/element/{self.find(css)}/click", {})

    def press(self, css: str, keys: str) -> None:
        self._in_session(f"/element/{self.find(css)}/value", {"text": keys})

    def text(self, css: str) -> str:
        return self.run("const e = document.querySelector(arguments[0]); return e ? e.textContent : ''", css)

    def wait(self, script: str, *arguments: Any, seconds: float = WAIT_SECONDS) -> Any:
        """Until the script returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} stays {value!r}")
            time.sleep(0.1)
        return value

    def look_as(self, size: tuple[int, int] = WIDE, dark: bool = False) -> None:
        width, height = size
        is_mobile = size == NARROW
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_mobile
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"/session/{self._session}/screenshot")))

    def errors(self) -> list[str]:
        """Of the console since the last call."""
        entries = self._in_session("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def _new_events(self) -> None:
        for entry in self._in_session("/se/log", {"type": "performance"}):
            self._events.append(json.loads(entry["message"])["message"])

    def _take(self, method: str) -> Iterator[dict[str, Any]]:
        self._new_events()
        found = [event["params"] for event in self._events if event["method"] == method]
        self._events = [event for event in self._events if event["method"] != method]
        yield from found

    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self._take("Network.requestWillBeSent")]

    def trace(self) -> list[dict[str, Any]]:
        return list(self._take("Tracing.dataCollected"))


def with_browser(folder: Path) -> Iterator[Browser]:
    """For a fixture."""
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()
