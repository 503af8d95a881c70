"""RPC servers as their users run them: processes on loopback ports, one thread each."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from support.server_process import START_SECONDS, free_port, program

RPC_SERVER = program("ggml-rpc-server")


class RpcServer:
    """Listens when it is made, until stop(). It serves one process at a time. `log` is the file that it writes to."""

    def __init__(self, log: Path, command: Sequence[str] = (str(RPC_SERVER),)):
        self.port = free_port()
        self.name = f"127.0.0.1:{self.port}"
        self.log = log
        with log.open("ab") as out:
            arguments = [*command, "-H", "127.0.0.1", "-p", str(self.port), "-t", "1"]
            self.process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, cwd=log.parent)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{RPC_SERVER} ended:\n{log.read_text(errors='replace')}") from None
                time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"{RPC_SERVER} did not listen in {START_SECONDS} s")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
