"""`morphkv generate`: streams a text to standard output, one line of statistics to standard error; or both as JSON."""

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import Archive, Llama, MorphKV
from ..text.pieces import TokenText
from ..text.tokens import end_tokens
from ..text.write import BanTokens, write
from .generate_stats import Written, written
from .gpu_layers import fitted
from .interrupts import noted_interrupts
from .options import (
    MODEL_PANEL,
    SAMPLING_PANEL,
    Model,
    given_options,
    llama_options,
    morphkv_options,
    sampling_options,
    with_options,
)
from .options_archive import archive_options
from .show import Json, PromptProgress, find_model, plain, print_json, remark, remark_gpu_layers


@with_options(morphkv=morphkv_options, archive=archive_options, llama=fitted(llama_options), sampling=sampling_options)
def generate(
    context: typer.Context,
    model: Model,
    prompt: Annotated[str, typer.Argument(help="prompt to start generation with; - reads it from stdin")],
    morphkv: MorphKV,
    archive: Archive | None,
    llama: dict[str, Any],
    sampling: dict[str, Any],
    predict: Annotated[
        int,
        typer.Option("--predict", "-n", "--n-predict", metavar="N", help="number of tokens to predict (-1 = infinity)"),
    ] = -1,
    stock: Annotated[bool, typer.Option("--stock", help="stock llama.cpp's full cache instead of MorphKV")] = False,
    ctx_size: Annotated[
        int | None,
        typer.Option(
            "--ctx-size",
            "-c",
            metavar="N",
            help="limit of prompt plus answer in tokens (0 = loaded from model; default: no limit, with --stock 0); "
            "costs memory only with --stock",
            show_default=False,
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", "-b", metavar="N", help="maximum batch size", rich_help_panel=MODEL_PANEL),
    ] = 512,
    repeat_last_n: Annotated[
        int,
        typer.Option(
            "--repeat-last-n",
            metavar="N",
            help="last n tokens to consider for penalize",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 64,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos",
            help="ignore end of stream token and continue generating",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a text after PROMPT with MODEL, token by token, in a cache of constant size."""
    if stock and (ignored := given_options(context, morphkv_options, archive_options)):
        raise ValueError(f"--stock has no MorphKV, which {', '.join(ignored)} would set: leave one or the other out")
    if prompt == "-":
        prompt = sys.stdin.read()
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if ctx_size is None and stock:
        ctx_size = 0
    limit: dict[str, Any] = {} if ctx_size is None else {"n_ctx": ctx_size}
    llm = Llama(
        find_model(model),
        morphkv=None if stock else morphkv,
        archive=archive,
        n_batch=batch_size,
        n_ubatch=batch_size,
        last_n_tokens_size=repeat_last_n,
        **limit,
        **llama,
    )
    remark_gpu_layers(llm)
    llm.progress = None if as_json else PromptProgress()
    try:
        found = _stream(llm, prompt, predict, ignore_eos, sampling, ignore if as_json else show)
    finally:
        llm.close()
    if as_json:
        print_json({"model": model, **plain(found)})
    else:
        print(flush=True)
        remark(found.sentence())
    if found.finish_reason == "interrupted":
        raise typer.Exit(130)


def show(piece: str) -> None:
    print(piece, end="", flush=True)


def ignore(_: str) -> None:
    """The whole text comes at the end."""


def _stream(
    llm: Llama, prompt: str, n_predict: int, ignore_eos: bool, sampling: dict[str, Any], on_piece: Callable[[str], None]
) -> Written:
    """Write the text, each piece told as it comes. Ctrl-C ends it: what was written is of use, and its statistics."""
    llm.set_seed(sampling.pop("seed"))
    tokens = llm.tokenize(prompt.encode(), special=True)
    text = TokenText(llm._piece)
    processors = [BanTokens(end_tokens(llm))] if ignore_eos else []
    pieces, times = [], [time.perf_counter()]
    is_interrupted = False
    try:
        with noted_interrupts() as check_interrupt:
            for token in write(llm, tokens, n_predict, processors, **sampling):
                pieces.append(text(token))
                on_piece(pieces[-1])
                times.append(time.perf_counter())
                check_interrupt()
    except KeyboardInterrupt:
        is_interrupted = True
    return written(llm, "".join(pieces), len(tokens), times, n_predict, is_interrupted)
