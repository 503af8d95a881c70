"""`morphkv serve` and `morphkv rpc-server`: programs of the package, llama-server with MorphKV on."""

import os
from typing import Annotated

import typer

from ..programs import rpc_server_command, server_command
from .options import DEMO, model_path

# All behind MODEL is llama-server's, its --help too; so is all behind rpc-server ggml-rpc-server's.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

RPC_CONTEXT_SETTINGS = {**CONTEXT_SETTINGS, "help_option_names": []}


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
    command = server_command(model_path(model), context.args)
    os.execv(command[0], command)


def rpc_server(context: typer.Context) -> None:
    """Lend this machine's devices to models elsewhere: ggml-rpc-server, whose flags follow (-H, -p, -d, -t, -c)."""
    command = rpc_server_command(context.args)
    os.execv(command[0], command)
