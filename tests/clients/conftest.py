"""A server with a tiny model, for clients that are other projects' packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.server_process import ServerProcess, program

FLAGS = ["--morphkv", "--morphkv-capacity", 512, "--morphkv-keep-system", "--morphkv-archive", "auto", "--jinja"]


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory) -> Iterator[Callable[..., ServerProcess]]:
    if not program("llama-server").is_file():
        pytest.skip("the package was built without llama-server")
    folder = tmp_path_factory.mktemp("servers")
    started: list[ServerProcess] = []

    def start(model, *flags) -> ServerProcess:
        started.append(ServerProcess(model, *FLAGS, *flags, log=folder / f"{len(started)}.log"))
        return started[-1].start()

    yield start
    for server in started:
        server.http.close()
        if server.is_alive():
            server.stop()


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama) -> ServerProcess:
    return start_shared(tiny_llama(), "-np", 2, "--slots", "--metrics")
