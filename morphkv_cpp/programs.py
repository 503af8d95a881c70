"""The programs of the package: llama-server, with MorphKV on, and ggml-rpc-server."""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import bridge, portable

# What `morphkv serve` sets, and the variables by which a user says otherwise: to llama-server a flag counts more.
SERVED = {
    ("--morphkv-keep-system",): ("LLAMA_ARG_MORPHKV_KEEP_SYSTEM", "LLAMA_ARG_NO_MORPHKV_KEEP_SYSTEM"),
    ("--morphkv-archive", "auto"): ("LLAMA_ARG_MORPHKV_ARCHIVE", "LLAMA_ARG_NO_MORPHKV_ARCHIVE"),
}

# llama-server's name of an option that our other commands have
SERVER_OPTIONS = {
    f"--{name}": f"--morphkv-{name}"
    for name in (
        "attach",
        "capacity",
        "window",
        "interval",
        "prompt-room",
        "votes",
        "fusion",
        "policy",
        "protect",
        "decay",
        "rope-limit",
        "layers",
        "archive",
        "archive-type",
        "archive-max",
        "recall",
        "recall-share",
        "keep-system",
        "state-dir",
        "state-max",
    )
} | {"--no-keep-system": "--no-morphkv-keep-system", "--no-archive": "--no-morphkv-archive"}

# options of our other commands that it does not have, and why
NOT_SERVED = {
    "--policy-seed": "its seed is 0",
    **dict.fromkeys(("--recall-redo", "--recall-votes", "--recall-distance"), "its recalls have the default"),
    "--archive-max-bytes": "say --archive-max, in MiB",
}


def program(name: str, option: str) -> str:
    """Raises FileNotFoundError where the package was built without its programs; option: what leaves this one out."""
    path = bridge.PACKAGE_DIR / "bin" / portable.program_file(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: morphkv_cpp was built with {option}; install it with the tools")
    return str(path)


def server_command(model_path: str | os.PathLike[str], flags: Sequence[str]) -> list[str]:
    """llama-server with MorphKV on, system prompts kept, and an archive, unless flags or the environment say otherwise.

    Raises FileNotFoundError where the package was built without its programs.
    """
    command = program("llama-server", "MORPHKV_BUILD_TOOLS=OFF")
    own = ["--morphkv"]
    for option, variables in SERVED.items():
        if not any(name in os.environ for name in variables):
            own += option
    return [command, "--model", os.fspath(model_path), *own, *server_flags(flags)]


def server_flags(flags: Sequence[str]) -> list[str]:
    """The flags with MorphKV's options as llama-server calls them; all others, --keep and --seed too, are its own.

    Raises ValueError for an option of other commands that llama-server does not have.
    """
    full: list[str] = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        if name in NOT_SERVED:
            raise ValueError(f"llama-server has no {name}: {NOT_SERVED[name]}")
        if name in SERVER_OPTIONS:
            full += [SERVER_OPTIONS[name], *([value] if equals else [])]
        else:
            full.append(flag)
    return full


def rpc_server_command(flags: Sequence[str]) -> list[str]:
    return [program("ggml-rpc-server", "MORPHKV_BUILD_TOOLS=OFF or GGML_RPC=OFF"), *flags]
