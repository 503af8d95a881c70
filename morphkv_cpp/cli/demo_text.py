"""The demo: a long text from a cache of constant size, what stock llama.cpp needs for it, and facts of long ago."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import Archive, CacheStats, Llama, MorphKV, bridge
from ..eval import Fact
from ..eval.recall import QUESTION
from ..eval.remember import answer, document_facts
from ..text.pieces import TokenText
from ..text.tokens import end_tokens
from ..text.write import BanTokens, ForceTokens, write

N_RATED = 500  # tokens at the end over which the speed is taken

PROMPT = """The Long Way Round
A novel in many chapters

Chapter One

When Captain Ines Moreau took over the old mail boat Perpetua, she was told three things about it: that the engine was
sound, that the hull was not, and that the mate, a silent man named Tobias Reed, came with the boat and could not be
dismissed. The owner, Mrs. Abernathy, wanted the letters of eleven islands delivered once a fortnight, whatever the
weather. In the hold, behind a locked door, stood a crate that nobody had ever claimed, addressed to a lighthouse which
was not on any chart.

Ines found the key to that door on her first morning, in a tin of tea. She"""

# Loose enough not to loop over thousands of tokens, tight enough for a small model to stay with its story.
SAMPLING = {"temp": 0.8, "top_k": 60, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.08}
N_PENALIZED = 256  # tokens that the repeat penalty looks back over


@dataclass
class Written:
    """One text, and how fast each of its tokens came."""

    prompt: list[int]
    tokens: list[int]
    seconds: list[float]  # (n_tokens,) decode and sample, without the display

    def rate(self, n_last: int = N_RATED) -> float:
        """Tokens a second over the last n_last; the first token is left out, since its time is the prompt's."""
        seconds = self.seconds[1:][-n_last:]
        return len(seconds) / sum(seconds) if seconds else float("nan")


def open_demo(model: Path, n_text: int, morphkv: MorphKV | None, **llama_options: Any) -> Llama:
    """The model with a context for n_text tokens, and no more of it: stock llama.cpp pays for every one."""
    if morphkv is not None:
        n_text = max(n_text, morphkv.capacity + max(morphkv.interval, morphkv.prompt_room))
    return Llama(model, morphkv=morphkv, n_ctx=n_text, last_n_tokens_size=N_PENALIZED, **llama_options)


def write_long(llm: Llama, n_tokens: int, seed: int, on_text: Callable[[str, Written], None]) -> Written:
    """Write n_tokens from the prompt; tokens that would end the text are never drawn."""
    text = TokenText(llm._piece)
    prompt = PROMPT.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")
    written = Written(llm.tokenize(prompt.encode()), [], [])
    _write(llm, written, n_tokens, BanTokens(end_tokens(llm)), seed, lambda token: on_text(text(token), written))
    return written


def replay_end(llm: Llama, written: Written, seed: int, on_token: Callable[[int], None]) -> Written:
    """The last 500 tokens again, drawn by the same sampler: all before them goes in as a prompt, in chunks."""
    n_last = min(N_RATED, len(written.tokens) - 1)
    again = Written(written.prompt + written.tokens[: -n_last - 1], [], [])
    tail = written.tokens[-n_last - 1 :]
    _write(llm, again, len(tail), ForceTokens(tail), seed, on_token)
    return again


def _write(
    llm: Llama,
    written: Written,
    n_tokens: int,
    processor: Callable[..., Any],
    seed: int,
    on_token: Callable[[int], None],
) -> None:
    llm.set_seed(seed)
    tokens = write(llm, written.prompt, n_tokens, [processor], **SAMPLING)
    while True:
        start = time.perf_counter()
        token = next(tokens, None)
        if token is None:
            return
        written.seconds.append(time.perf_counter() - start)
        written.tokens.append(token)
        on_token(token)


@dataclass
class Answers:
    """Answers to questions about facts that were evicted, with and without recall."""

    n_tokens: int  # between the facts and the questions
    facts: list[Fact]
    recalled: list[str]
    without: list[str]
    stats: CacheStats  # after the last question


def ask_about_facts(model: Path, morphkv: MorphKV, text: list[int], n_facts: int = 3, **llama_options: Any) -> Answers:
    """State facts, go on with the text, and ask."""
    archive = Archive()
    llm = Llama(model, morphkv=morphkv, archive=archive, **llama_options)
    try:
        facts = document_facts(0)[:n_facts]
        llm.decode(llm.tokenize("".join(f"{fact.line}\n\n" for fact in facts).encode()))
        for start in range(0, len(text), llm.n_batch):
            llm.decode(text[start : start + llm.n_batch])
        n_held, checkpoint = llm.n_tokens, bridge.checkpoint(llm.ctx)
        answers: dict[Literal["off", "prompt"], list[str]] = {"off": [], "prompt": []}
        for fact in facts:
            question = llm.tokenize(QUESTION.format(subject=fact.subject).encode(), add_bos=False)
            for recall, said in answers.items():
                bridge.set_checkpoint(llm.ctx, checkpoint)
                llm.n_tokens = n_held
                llm.archive = replace(archive, recall=recall)
                said.append(answer(llm, question).strip())
        return Answers(len(text), facts, answers["prompt"], answers["off"], llm.cache_stats())
    finally:
        llm.close()


@dataclass
class Kept:
    """Where the distant tokens of one layer, or of all, come from."""

    shares: npt.NDArray[np.float64]  # (4,) share of kept tokens in each quarter of the text, the oldest first
    oldest: int  # smallest kept position behind the protected first tokens, -1 where there is none
    n_heads: float  # how many of the KV heads looked at keep a token, of those tokens that at least one keeps: the mean


def kept(positions: npt.NDArray[np.int32], n_text: int, n_protected: int) -> Kept:
    """positions: logical ones of any number of heads, -1 where empty, of a text of n_text tokens."""
    flat = positions[positions >= n_protected]
    if flat.size == 0:
        return Kept(np.full(4, np.nan), -1, float("nan"))
    quarter = np.minimum(4 * flat.astype(np.int64) // max(n_text, 1), 3)
    shares = np.bincount(quarter, minlength=4) / flat.size
    return Kept(shares, int(flat.min()), flat.size / np.unique(flat).size)


def kept_by_layer(layers: Iterable[npt.NDArray[np.int32]], n_text: int, n_protected: int) -> list[tuple[str, Kept]]:
    """Five layers from the first to the last, then all together. layers: positions, which layers may have more of."""
    layers = list(layers)
    shown = sorted({round(i * (len(layers) - 1) / 4) for i in range(5)})
    rows = [(f"layer {i}", kept(layers[i], n_text, n_protected)) for i in shown]
    all_kept = np.concatenate([layer.ravel() for layer in layers])
    return [*rows, (f"all {len(layers)} layers", kept(all_kept, n_text, n_protected))]
