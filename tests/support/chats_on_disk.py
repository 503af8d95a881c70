"""A server that writes its chats to --morphkv-state-dir: answers that are on disk, and servers that end in between."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import httpx

from .server_process import ServerProcess


def written(server: ServerProcess, name: str = "written") -> int:
    """How many chats were written, or `name`d otherwise, since it started; it needs --metrics."""
    return int(server.metrics()[f"llamacpp:morphkv_chats_{name}_total"])


def wait_for(server: ServerProcess, n: int, name: str = "written") -> None:
    end = time.monotonic() + 60
    while written(server, name) < n:
        assert time.monotonic() < end
        time.sleep(0.02)


def go_on(server: ServerProcess, text: list[int], n: int = 30, **more: Any) -> tuple[list[int], dict[str, Any]]:
    """The text with its answer of n tokens, once it is on disk, and the answer's timings."""
    before = written(server)
    done = server.complete(text, n, **more)
    wait_for(server, before + 1)
    return text + done["tokens"], done["timings"]


def restart(server: ServerProcess) -> None:
    server.kill()
    server.start()


def kill_while_it_answers(server: ServerProcess, question: list[int]) -> None:
    body = {"prompt": question, "n_predict": 10_000, "ignore_eos": True, "temperature": 0}
    with contextlib.suppress(httpx.TransportError):
        for i, _ in enumerate(server.stream("/completion", body)):
            if i == 5:
                server.process.kill()
    server.process.wait()
