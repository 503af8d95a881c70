"""`morphkv serve` and `morphkv rpc-server`: programs of the package, llama-server with MorphKV on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..cache.layer_profiles import chosen_profile, needed_profile
from ..portable import run_in_place
from ..profile import n_keep_all
from ..programs import rpc_server_command, server_command
from .options import MODEL_HELP
from .show import find_model

# Everything after MODEL is llama-server's, its --help too; everything after rpc-server is ggml-rpc-server's.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

RPC_CONTEXT_SETTINGS = {**CONTEXT_SETTINGS, "help_option_names": []}


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help=f"{MODEL_HELP}; then options of MorphKV and any flags of llama-server, which `MODEL --help` lists",
            metavar="MODEL [FLAGS]...",
        ),
    ],
) -> None:
    """Serve MODEL to OpenAI-compatible clients: llama-server with MorphKV on.

    System prompts are kept (--no-keep-system: evicted), what is evicted goes into an archive in memory, in q8_0, of at
    most 2 GiB (--archive {auto,ram,PATH}, --archive-type, --archive-max in MiB, --no-archive), and a GPU is used where
    there is one; one line says what is on. --state-dir PATH keeps chats on disk, up to --state-max MiB: they go on
    when the server is started again.

    MorphKV's other options have the names that they have in the other commands, too: --capacity, --window, --interval,
    --prompt-room, --votes, --fusion, --policy, --protect, --decay, --rope-limit, --layers, --recall and --recall-share.
    All other FLAGS are llama-server's own, --keep, --seed, -c and -n too. Its own names for the same options,
    --morphkv-capacity and so on, work as well.
    """
    path = find_model(model)
    raise typer.Exit(run_in_place(server_command(path, with_profile(context.args, path))))


def with_profile(flags: Sequence[str], model_path: Path) -> list[str]:
    """With what --layers auto and all:N mean for this model: llama-server reads the file of a profile.

    auto is the default without attached files, as in Llama. Raises ValueError where all:N finds no profile.
    """
    words = list(flags)
    is_given = any(f"LLAMA_ARG_MORPHKV_{name}" in os.environ for name in ("LAYERS", "ATTACH"))
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        is_given |= name in ("--layers", "--morphkv-layers", "--attach", "--morphkv-attach")
        if name not in ("--layers", "--morphkv-layers"):
            continue
        if not equals:
            value = "".join(words[i + 1 : i + 2])
        if value == "auto":
            found = chosen_profile(model_path)
            layers = "equal" if found is None else str(found[0])
        elif n_keep_all(value):
            layers = f"{value}:{needed_profile(model_path)[0]}"
        else:
            continue
        words[i if equals else i + 1] = f"{name}={layers}" if equals else layers
    if not is_given and (found := chosen_profile(model_path)) is not None:
        words += ["--layers", str(found[0])]
    return words


def rpc_server(context: typer.Context) -> None:
    """Lend this machine's devices to models elsewhere: ggml-rpc-server, whose flags follow (-H, -p, -d, -t, -c)."""
    raise typer.Exit(run_in_place(rpc_server_command(context.args)))
