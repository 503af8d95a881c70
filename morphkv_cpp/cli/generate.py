"""`morphkv generate`: streams a text to standard output, one line of statistics to standard error."""

import sys
import time
from typing import Annotated, Any

import typer

from .. import Archive, Llama, MorphKV, bridge
from ..text.pieces import TokenText
from ..text.tokens import end_tokens
from ..text.write import BanTokens, write
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
from .show import find_model, mebibytes, remark


@with_options(morphkv=morphkv_options, archive=archive_options, llama=llama_options, sampling=sampling_options)
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
    try:
        _stream(llm, prompt, predict, ignore_eos, sampling)
    finally:
        llm.close()


def _stream(llm: Llama, prompt: str, n_predict: int, ignore_eos: bool, sampling: dict[str, Any]) -> None:
    llm.set_seed(sampling.pop("seed"))
    tokens = llm.tokenize(prompt.encode(), special=True)
    text = TokenText(llm._piece)
    processors = [BanTokens(end_tokens(llm))] if ignore_eos else []
    times = [time.perf_counter()]
    is_stopped = False
    try:
        with noted_interrupts() as check_interrupt:
            for token in write(llm, tokens, n_predict, processors, **sampling):
                print(text(token), end="", flush=True)
                times.append(time.perf_counter())
                check_interrupt()
    except KeyboardInterrupt:
        # what was written is on the screen, and its statistics are of use
        is_stopped = True
    print(flush=True)
    remark(statistics(llm, len(tokens), times))
    if is_stopped:
        raise typer.Exit(130)


def statistics(llm: Llama, n_prompt: int, times: list[float]) -> str:
    """One line. times: the start, then one for each token written; the first token's time is the prompt's."""
    n_written = len(times) - 1
    parts = [f"{n_prompt} prompt tokens"]
    if n_written:
        parts[0] += f" in {times[1] - times[0]:.2f} s"
    rate = f" at {(n_written - 1) / (times[-1] - times[1]):.1f} tok/s" if n_written > 1 else ""
    parts.append(f"{n_written} written{rate}")
    if n_prompt + n_written >= llm.n_ctx():
        parts.append(f"stopped: n_ctx={llm.n_ctx()} is full")
    n_trained = llm._model.n_ctx_train()
    if n_prompt + n_written > n_trained:
        parts.append(f"past the {n_trained} tokens of the trained context, where quality ends")
    parts.append(f"K+V {mebibytes(bridge.kv_bytes(llm.ctx))}")
    if llm.morphkv is not None:
        stats = llm.cache_stats()
        parts.append(f"{stats.n_used} of {stats.n_limit} cells in use")
        parts.append(f"{stats.n_evictions} evictions, {stats.evict_ms / max(stats.n_evictions, 1):.1f} ms each")
        if llm.archive is not None:
            parts.append(f"{stats.n_archived} tokens archived in {mebibytes(stats.archive_bytes)}")
            parts.append(f"{stats.n_recalls} recalls in {stats.recall_ms:.0f} ms")
    return "; ".join(parts)
