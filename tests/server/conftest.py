"""Servers that end with the test, or the module, that started them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.server_process import ServerProcess, program


def _servers(folder: Path) -> Iterator[Callable[..., ServerProcess]]:
    if not program("llama-server").is_file():
        pytest.skip("the package was built without llama-server")
    with ExitStack() as stack:

        def start(model: Path, *flags: object, **options) -> ServerProcess:
            server = ServerProcess(model, *flags, log=folder / f"{len(list(folder.iterdir()))}.log", **options)

            def end() -> None:
                if server.process is not None and server.is_alive():
                    server.stop()

            stack.callback(server.http.close)
            stack.callback(end)
            return server.start()

        yield start


@pytest.fixture
def start_server(tmp_path_factory):
    """Factory: start_server(model, *flags) -> ServerProcess."""
    yield from _servers(tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory):
    """The same for servers that a module's tests share."""
    yield from _servers(tmp_path_factory.mktemp("servers"))
