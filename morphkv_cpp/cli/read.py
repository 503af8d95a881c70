"""`morphkv read`: a text that is read once, into a file that any chat of the model attaches."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import Llama, MorphKV
from ..cache.archive import CACHE_TYPES
from .gpu_layers import fitted
from .options import Model, llama_options, morphkv_options, with_options
from .show import Json, find_model, mebibytes, print_json, remark, remark_gpu_layers


@with_options(morphkv=morphkv_options, llama=fitted(llama_options))
def read(
    model: Model,
    text: Annotated[Path, typer.Argument(help="a text file, UTF-8", metavar="TEXT")],
    morphkv: MorphKV,
    llama: dict[str, Any],
    into: Annotated[
        Path, typer.Option("--into", "-o", metavar="FILE", help="write it here; an older file is replaced at the end")
    ],
    archive_type: Annotated[
        str | None,
        typer.Option(
            "--archive-type",
            metavar="TYPE",
            help=f"data type of K and V in FILE: {', '.join(CACHE_TYPES)} (default: q8_0 where the model allows it)",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read TEXT with MODEL once and for all: `morphkv chat MODEL --attach FILE` then answers from it at once.

    So do generate, `morphkv serve`, and Llama(archive=[FILE]). FILE is for this MODEL alone. Memory does not grow with
    the text.
    """
    with Llama(find_model(model), morphkv=morphkv, **llama) as llm:
        remark_gpu_layers(llm)
        found = llm.read(text, into=into, type=archive_type)  # type: ignore[arg-type]
    if as_json:
        print_json(found)
        return
    print(found.path)
    remark(
        f"{found.n_tokens:,} tokens, {mebibytes(found.n_bytes)}, read in {found.seconds:.1f} s "
        f"({found.n_tokens / found.seconds:.0f} tokens/s)"
    )
