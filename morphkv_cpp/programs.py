"""The programs of the package: llama-server, with MorphKV on, and ggml-rpc-server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import bridge

KEEP_SYSTEM_VARIABLES = ("LLAMA_ARG_MORPHKV_KEEP_SYSTEM", "LLAMA_ARG_NO_MORPHKV_KEEP_SYSTEM")


def program(name: str, option: str) -> str:
    """Raises FileNotFoundError where the package was built without its programs; option: what leaves this one out."""
    path = bridge.PACKAGE_DIR / "bin" / (f"{name}.exe" if sys.platform == "win32" else name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: morphkv_cpp was built with {option}; install it with the tools")
    return str(path)


def server_command(model_path: str | os.PathLike[str], flags: Sequence[str]) -> list[str]:
    """llama-server with MorphKV on and system prompts kept, unless the flags or the environment say otherwise.

    Raises FileNotFoundError where the package was built without its programs.
    """
    command = program("llama-server", "MORPHKV_BUILD_TOOLS=OFF")
    own = ["--morphkv", "--morphkv-keep-system"]
    if any(name in os.environ for name in KEEP_SYSTEM_VARIABLES):
        own.pop()  # to llama-server a flag counts more than they do
    return [command, "--model", os.fspath(model_path), *own, *flags]


def rpc_server_command(flags: Sequence[str]) -> list[str]:
    return [program("ggml-rpc-server", "MORPHKV_BUILD_TOOLS=OFF or GGML_RPC=OFF"), *flags]
