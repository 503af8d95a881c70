"""llama-server as its users meet it: a process on a loopback port, and HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from morphkv_cpp.bridge import PACKAGE_DIR

SUFFIX = ".exe" if sys.platform == "win32" else ""
START_SECONDS = 120

# 128 + 64 tokens in 256 cells: a few dozen tokens make an eviction
TIGHT = ["--morphkv", "--morphkv-capacity", "128", "--morphkv-window", "16", "--morphkv-interval", "16"]
TIGHT += ["--morphkv-prompt-room", "64"]


def some_tokens(n: int, seed: int = 0) -> list[int]:
    """Ids of the tiny model: <s>, then letters."""
    return [1] + [260 + (i * i + 7 * i + seed * 13) % 50 for i in range(n - 1)]


def program(name: str) -> Path:
    """A program of the installed package."""
    return PACKAGE_DIR / "bin" / f"{name}{SUFFIX}"


def run_program(name: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Runs one to its end; what it printed is in stdout, in order."""
    return subprocess.run(
        [program(name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        text=True,
        errors="replace",
        timeout=START_SECONDS,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _limit_files(n_bytes: int) -> Callable[[], None]:
    """For a child: no file of its grows beyond n_bytes, as on a full disk."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


class ServerProcess:
    """Runs until stop(), or kill(), which is kill -9. `log` is the file that it writes to.

    `start` again gives a new process with the same flags. file_bytes: the largest file that it may write.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        *flags: object,
        log: Path,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        file_bytes: int | None = None,
    ):
        self.env = {**os.environ, **(env or {})}
        self.preexec = _limit_files(file_bytes) if file_bytes else None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.command = command or [str(program("llama-server")), "--model", str(model)]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port), "-t", "1", "--no-warmup", *map(str, flags)]
        # the server closes connections that were idle, as may happen just when httpx uses one again
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.url, timeout=120, limits=limits)
        self.process: subprocess.Popen | None = None

    def start(self) -> ServerProcess:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                env=self.env,
                preexec_fn=self.preexec,
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"llama-server ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if self.http.get("/health").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"llama-server did not answer in {START_SECONDS} s:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def count_logged(self, words: str) -> int:
        """How often it has logged them lately, once it has: a thread of its own writes its log."""
        end = time.monotonic() + 60
        while words not in self.tail() and time.monotonic() < end:
            time.sleep(0.02)
        return self.tail().count(words)

    def stop(self) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(path, json=body)

    def complete(self, prompt: str | list[int], n_tokens: int, **more: Any) -> dict[str, Any]:
        """A greedy completion of exactly n_tokens tokens; the response's JSON."""
        body = {
            "prompt": prompt,
            "n_predict": n_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_tokens": True,
            **more,
        }
        answer = self.post("/completion", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, messages: list[dict[str, Any]], n_tokens: int, **more: Any) -> dict[str, Any]:
        """A greedy answer of at most n_tokens tokens; the response's JSON."""
        body = {"messages": messages, "max_tokens": n_tokens, "temperature": 0, **more}
        answer = self.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def slot(self, i: int = 0) -> dict[str, Any]:
        return self.get("/slots")[i]

    def slot_action(self, i: int, action: str, **body: Any) -> httpx.Response:
        return self.post(f"/slots/{i}?action={action}", body)

    def metrics(self) -> dict[str, float]:
        """Values of /metrics by name; each has its HELP and TYPE, which is asserted."""
        answer = self.http.get("/metrics")
        answer.raise_for_status()
        values: dict[str, float] = {}
        told: dict[str, set[str]] = {}
        for line in answer.text.splitlines():
            if line.startswith("# "):
                _, kind, name = line.split()[:3]
                told.setdefault(name, set()).add(kind)
            elif "{" not in line:
                name, value = line.split()
                assert told.get(name) == {"HELP", "TYPE"}, name
                values[name] = float(value)
        return values

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        """The data of server-sent events, until [DONE] or the end; closing the iterator closes the connection."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield line[len("data: ") :]
