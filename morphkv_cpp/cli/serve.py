"""`morphkv serve` and `morphkv rpc-server`: programs of the package, llama-server with MorphKV on."""

import os
import sys
from typing import Annotated

import typer

from .. import bridge
from .options import DEMO, model_path

# All behind MODEL is llama-server's, its --help too; so is all behind rpc-server ggml-rpc-server's.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

KEEP_SYSTEM_VARIABLES = ("LLAMA_ARG_MORPHKV_KEEP_SYSTEM", "LLAMA_ARG_NO_MORPHKV_KEEP_SYSTEM")

RPC_CONTEXT_SETTINGS = {**CONTEXT_SETTINGS, "help_option_names": []}


def program(name: str, option: str) -> str:
    """Raises FileNotFoundError where the package was built without its programs; option: what leaves this one out."""
    path = bridge.PACKAGE_DIR / "bin" / (f"{name}.exe" if sys.platform == "win32" else name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: morphkv_cpp was built with {option}; install it with the tools")
    return str(path)


def server_command(model: str, flags: list[str]) -> list[str]:
    """llama-server with MorphKV on and system prompts kept, unless the flags or the environment say otherwise.

    Raises FileNotFoundError for a model that is no file, and where the package was built without its programs.
    """
    command = program("llama-server", "MORPHKV_BUILD_TOOLS=OFF")
    own = ["--morphkv", "--morphkv-keep-system"]
    if any(name in os.environ for name in KEEP_SYSTEM_VARIABLES):
        own.pop()  # to llama-server a flag counts more than they do
    return [command, "--model", str(model_path(model)), *own, *flags]


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help=f"model path to load (GGUF), or '{DEMO}': the demo model; then any flags of llama-server, which "
            "--help behind MODEL lists",
            metavar="MODEL [FLAGS]...",
        ),
    ],
) -> None:
    """Serve MODEL to OpenAI-compatible clients: llama-server with MorphKV on. FLAGS are llama-server's own.

    System prompts are never evicted, unless --no-morphkv-keep-system is among the flags.
    """
    command = server_command(model, context.args)
    os.execv(command[0], command)


def rpc_server(context: typer.Context) -> None:
    """Lend this machine's devices to models elsewhere: ggml-rpc-server, whose flags follow (-H, -p, -d, -t, -c)."""
    command = [program("ggml-rpc-server", "MORPHKV_BUILD_TOOLS=OFF or GGML_RPC=OFF"), *context.args]
    os.execv(command[0], command)
