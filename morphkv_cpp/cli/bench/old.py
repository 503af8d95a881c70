"""`morphkv bench MODEL --constant` and the like, as it was: for one version more."""

from typing import Annotated, Any

import typer

from ... import MorphKV
from ...bench.suite import Sizes
from ...deprecation import warn_old
from ..options import Model, llama_options, morphkv_options, with_options
from . import archive as archive_file
from . import growth, stream
from .archive import bench_archive
from .decode import bench_decode
from .growth import bench_growth
from .server import bench_server
from .stream import bench_stream


@with_options(morphkv=morphkv_options, llama=llama_options)
def bench_old(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    constant: Annotated[bool, typer.Option("--constant")] = False,
    soak: Annotated[bool, typer.Option("--soak")] = False,
    streaming: Annotated[bool, typer.Option("--streaming")] = False,
    server: Annotated[bool, typer.Option("--server")] = False,
    archive: Annotated[bool, typer.Option("--archive")] = False,
    tokens: Annotated[int | None, typer.Option("--tokens", "-n")] = None,
    depth: Annotated[int, typer.Option("--depth")] = Sizes.n_deep,
    prompt: Annotated[int, typer.Option("--prompt", "-p")] = Sizes.n_prompt,
    rounds: Annotated[int, typer.Option("--rounds", "-r")] = Sizes.n_rounds,
    require: Annotated[list[str] | None, typer.Option("--require")] = None,
) -> None:
    """As it was, options that a run does not heed included."""
    if constant + streaming + server + archive > 1:
        raise ValueError("--constant, --streaming, --server and --archive are different runs: give one of them")
    if constant:
        say("growth", " --constant")
        bench_growth(model, morphkv, llama, soak, growth.N_TOKENS if tokens is None else tokens, require)
    elif streaming:
        say("stream", " --streaming")
        bench_stream(model, morphkv, llama, stream.N_TOKENS if tokens is None else tokens, require)
    elif server:
        say("server", " --server")
        bench_server(model, morphkv, llama, rounds, require)
    elif archive:
        say("archive", " --archive")
        bench_archive(model, morphkv, llama, archive_file.N_TOKENS if tokens is None else tokens, require)
    else:
        say("decode", "")
        bench_decode(model, morphkv, llama, depth, prompt, rounds, require)


def say(command: str, flag: str) -> None:
    warn_old(f"`morphkv bench MODEL{flag}` is now `morphkv bench {command} MODEL`")
