"""RPC servers: devices of other machines and processes that layers can live on (llama.cpp's ggml-rpc-server)."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

ENDPOINT = re.compile(r"(?P<host>[^\s:,]+):(?P<port>\d+)")
CONNECT_SECONDS = 5


def answering_servers(servers: str | Sequence[str]) -> str:
    """`servers`, one or several, as llama.cpp names them: "HOST:PORT,HOST:PORT".

    Raises ValueError for another form, ConnectionError where nobody answers: ggml would end the process.
    """
    names = [servers] if isinstance(servers, str) else servers
    names = [name.strip() for text in names for name in text.split(",")]
    for name in names:
        match = ENDPOINT.fullmatch(name)
        if not match or not 0 < int(match["port"]) < 2**16:
            raise ValueError(f"an RPC server must be HOST:PORT, several separated by commas, got {name!r}")
    if not names:
        raise ValueError("there must be an RPC server at least, got none")
    for name in names:
        host, port = name.split(":")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"no RPC server answers at {name}: {error}") from error
    return ",".join(names)
