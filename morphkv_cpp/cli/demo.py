"""`morphkv demo`: writes a long text, compares with stock llama.cpp at its length, then asks about what is gone."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import llama_cpp
import typer
from rich.console import Group
from rich.text import Text

from .. import Llama, MorphKV, bridge
from .demo_text import N_RATED, PROMPT, Kept, Written, ask_about_facts, kept_by_layer, open_demo, replay_end, write_long
from .options import DEMO, llama_options, morphkv_options, with_options
from .show import StatusLine, find_model, mebibytes, print_table, remark

N_TAIL_CHARS = 400  # of the text, shown above the status line
N_PROMPT_MAX = 1024  # tokens of the demo's prompt, by any tokenizer
N_STATS = 16  # tokens from one look at the cache to the next


@with_options({"capacity": 512, "prompt_room": 0}, morphkv=morphkv_options, llama=llama_options)
def demo(
    morphkv: MorphKV,
    llama: dict[str, Any],
    tokens: Annotated[int, typer.Option("--tokens", "-n", metavar="N", help="number of tokens to write")] = 3000,
    seed: Annotated[int, typer.Option("--seed", "-s", metavar="SEED", help="RNG seed of the text")] = 1,
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="model path to load (GGUF)")] = DEMO,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="write the text to FILE as well")
    ] = None,
) -> None:
    """Write a long text in a cache of constant size, compare with stock llama.cpp, and ask about facts of long ago."""
    if tokens < 2:
        raise ValueError(f"--tokens must be at least 2, got {tokens}")
    path = find_model(model)
    llm = open_demo(path, N_PROMPT_MAX + tokens, morphkv, **llama)
    try:
        written, text = _write(llm, tokens, seed)
        if out is not None:
            out.write_text(PROMPT + text, encoding="utf-8")
        stats, rate, n_bytes = llm.cache_stats(), written.rate(), bridge.kv_bytes(llm.ctx)
        state_bytes = llama_cpp.llama_state_get_size(llm.ctx)
        n_text = len(written.prompt) + len(written.tokens)
        n_layer = llama_cpp.llama_model_n_layer(llm.model)
        kept = kept_by_layer((llm.retained(i) for i in range(n_layer)), n_text, morphkv.keep)
    finally:
        llm.close()

    stock = open_demo(path, n_text, None, **llama)
    try:
        with StatusLine() as status:
            stock_rate = _replay(stock, written, seed, status)
        stock_bytes = bridge.kv_bytes(stock.ctx)
        stock_state = llama_cpp.llama_state_get_size(stock.ctx)
    finally:
        stock.close()

    n_last = min(N_RATED, tokens - 1)
    print_table(
        f"{n_text} tokens, capacity {morphkv.capacity}",
        ("", "MorphKV", "stock llama.cpp", "ratio"),
        [
            ("KV cache (K and V)", mebibytes(n_bytes), mebibytes(stock_bytes), f"{n_bytes / stock_bytes:.2f}"),
            ("beside K and V", mebibytes(stats.extra_bytes), "0.0 MiB", ""),
            ("saved state", mebibytes(state_bytes), mebibytes(stock_state), f"{state_bytes / stock_state:.2f}"),
            ("cells in use", str(stats.n_used), str(n_text - 1), f"{stats.n_used / (n_text - 1):.2f}"),
            (f"tok/s over the last {n_last}", f"{rate:.1f}", f"{stock_rate:.1f}", f"{rate / stock_rate:.2f}"),
            ("evictions", str(stats.n_evictions), "", ""),
            ("time of an eviction", f"{stats.evict_ms / max(stats.n_evictions, 1):.1f} ms", "", ""),
        ],
    )
    print_kept(kept, morphkv.keep)
    _ask(path, morphkv, written.tokens, llama)


def _ask(path: Path, morphkv: MorphKV, text: list[int], llama: dict[str, Any]) -> None:
    """The second act: facts, then the text that was written, then questions."""
    remark("now with an archive: a few facts, the text above, and questions about the facts ...")
    answers = ask_about_facts(path, morphkv, text, **llama)
    n_tokens, stats = answers.n_tokens, answers.stats
    print_table(
        f"Stated at the start, asked {n_tokens} tokens later",
        ("", "with recall", "without"),
        [(fact.line, answers.recalled[i], answers.without[i]) for i, fact in enumerate(answers.facts)],
        n_text=3,
    )
    print(
        f"The archive has {stats.n_archived} tokens in {mebibytes(stats.archive_bytes)} of the host's memory; "
        f"{stats.n_recalls} recalls for the last question took {stats.recall_ms:.0f} ms."
    )


def _write(llm: Llama, n_tokens: int, seed: int) -> tuple[Written, str]:
    pieces: list[str] = []
    with StatusLine() as status:
        line = ""

        def show(piece: str, written: Written) -> None:
            nonlocal line
            pieces.append(piece)
            n = len(written.tokens)
            if n % N_STATS == 0 or n == n_tokens:
                stats = llm.cache_stats()
                line = (
                    f"{n} of {n_tokens} tokens, {written.rate(100):.1f} tok/s, "
                    f"{stats.n_used} of {stats.n_limit} cells in use, {stats.n_evictions} evictions"
                )
            # a token adds a few characters at most: the end of the text is in its last pieces
            tail = "".join(pieces[-N_TAIL_CHARS:])[-N_TAIL_CHARS:]
            status(line, Group(Text("... " + " ".join(tail.split()), style="dim"), Text(line, style="bold")))

        written = write_long(llm, n_tokens, seed, show)
    remark(line)
    return written, "".join(pieces)


def _replay(llm: Llama, written: Written, seed: int, status: Callable[[str], None]) -> float:
    status("stock llama.cpp: reading all but the last tokens ...")
    n = 0

    def show(token: int) -> None:
        nonlocal n
        n += 1
        status(f"stock llama.cpp: {n} of the last {N_RATED} tokens again")

    return replay_end(llm, written, seed, show).rate()


def print_kept(rows: list[tuple[str, Kept]], n_protected: int) -> None:
    """Where in the text the kept tokens come from, those that are protected left out."""
    if all(kept.oldest < 0 for _, kept in rows):
        print("Nothing was evicted: the text fits into the capacity.")
        return
    print_table(
        "What was kept, older than the window",
        ("", "1st quarter", "2nd", "3rd", "4th", "oldest", "heads per token"),
        [
            (name, *(f"{share:.0%}" for share in kept.shares), str(kept.oldest), f"{kept.n_heads:.2f}")
            for name, kept in rows
            if kept.oldest >= 0
        ],
    )
    print(f"Shares are of the text's quarters, the oldest first; the first {n_protected} tokens are kept anyway.")
