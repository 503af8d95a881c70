"""`morphkv serve`: the packaged llama-server with MorphKV on."""

import os
import sys
from typing import Annotated

import typer

from . import bridge
from .options import DEMO, model_path

# All behind MODEL is llama-server's, its --help too.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def server_command(model: str, flags: list[str]) -> list[str]:
    """Raises FileNotFoundError for a model that is no file, and where the package was built without its programs."""
    program = bridge.PACKAGE_DIR / "bin" / ("llama-server.exe" if sys.platform == "win32" else "llama-server")
    if not program.is_file():
        raise FileNotFoundError(
            f"{program} is missing: morphkv_cpp was built with MORPHKV_BUILD_TOOLS=OFF; install it with the tools"
        )
    return [str(program), "--model", str(model_path(model)), "--morphkv", *flags]


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
    """Serve MODEL to OpenAI-compatible clients: llama-server with MorphKV on. FLAGS are llama-server's own."""
    command = server_command(model, context.args)
    os.execv(command[0], command)
