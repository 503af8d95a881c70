"""A model that reads a text and answers: with a full cache, stock llama.cpp's context shift, or MorphKV."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import llama_cpp
import numpy as np
import numpy.typing as npt

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.cache.archive import CACHE_TYPES
from morphkv_cpp.errors import UnsupportedError

from . import copying
from .perplexity import open_for_nll
from .remember import N_CHUNK, taken_back
from .suite_arms import N_PAD, TYPE_BITS, SuiteArm
from .tasks import Question

N_KEEP = 4  # first tokens that a context shift keeps
SEED = 1  # of what is sampled

Rows = npt.NDArray[np.float32]


class Reader:
    """An arm's model with one text in it."""

    n_chunk = N_CHUNK  # tokens that are read at once

    def __init__(self, arm: SuiteArm, llm: Llama):
        self.arm, self.llm = arm, llm

    def close(self) -> None:
        self.llm.close()

    def reset(self) -> None:
        self.llm.reset()

    def sizes(self, n_tokens: int, per_cell: float) -> dict[str, int]:
        """Bytes of K and V, and of what is kept beside them. per_cell: bytes of a cell in f16."""
        if self.arm.morphkv is not None:
            stats = self.llm.cache_stats()
            # the room for a whole prompt is there only in that task, and for all
            return {"kv_bytes": stats.kv_bytes, "extra_bytes": stats.extra_bytes}
        n_cells = self.arm.n_cells or n_tokens
        return {"kv_bytes": round(n_cells * per_cell * TYPE_BITS[self.arm.cell_type] / 16), "extra_bytes": 0}

    def read(self, tokens: Sequence[int], on_chunk: Callable[[int], None] = lambda n: None) -> None:
        """A new text."""
        self.reset()
        for start in range(0, len(tokens), self.n_chunk):
            chunk = list(tokens[start : start + self.n_chunk])
            self.eval(chunk)
            on_chunk(len(chunk))

    def eval(self, tokens: Sequence[int]) -> None:
        self.llm.eval(tokens)

    def logits(self, tokens: Sequence[int]) -> Rows:
        """Of each of the next tokens, (n_tokens, n_vocab); of a model that was opened for that. The next call's
        overwrite them."""
        self.eval(tokens)
        return cast(Rows, self.llm.scores.rows[: len(tokens)])  # type: ignore[attr-defined]

    def answer(self, question: Question) -> str:
        """What is written behind the text and the question; of a forced answer a digit a token, 1 where it is right."""
        if question.forced:
            return "".join(str(int(right)) for right in self._forced(question))
        written: list[int] = []
        self.llm.set_seed(SEED)
        with closing(self._steps(question)) as steps:
            for token in steps:
                written.append(token)
                text = self.llm.detokenize(written).decode("utf-8", errors="ignore")
                is_end = self.llm._is_end(token) or bool(question.until and re.search(question.until, text))
                if is_end or len(written) >= question.n_answer:
                    return text
        raise AssertionError("a text has no end")

    def _steps(self, question: Question) -> Generator[int, Any, None]:
        return self.llm.generate(question.tokens, reset=False, temp=question.temp)

    def _forced(self, question: Question) -> list[bool]:
        return copying.copy(self.llm, copying.Document([], question.tokens, list(question.forced)))

    @contextlib.contextmanager
    def taken_back(self) -> Iterator[None]:
        """What is done in here is undone."""
        with taken_back(self.llm):
            yield


class AtCut(Reader):
    """The cache is cut once, when the question has voted, so that even the answer's first token sees a cut cache.

    Nothing is recalled: the question is not read as a prompt.
    """

    def _steps(self, question: Question) -> Generator[int, Any, None]:
        # cut before the second token that comes alone: those two and the question's last are taken back and read anew
        last = question.tokens[-1:]
        for tokens in (question.tokens, last, last):
            self.llm.eval(tokens)
        self.llm.n_tokens -= 3
        self.llm.eval(last)
        while True:
            token = self.llm.sample(temp=question.temp)
            yield token
            self.llm.eval([token])


def shift_context(llm: Llama) -> None:
    """As llama.cpp's own context shift: the first N_KEEP tokens stay, and the newest half of the others.

    Raises UnsupportedError where llama.cpp cannot shift the model's context.
    """
    n_tokens = llm.n_tokens
    n_gone = (n_tokens - N_KEEP) // 2
    memory = llama_cpp.llama_get_memory(llm.ctx)
    is_shiftable = llama_cpp.llama_memory_can_shift(memory)
    if not is_shiftable or not llama_cpp.llama_memory_seq_rm(memory, 0, N_KEEP, N_KEEP + n_gone):
        raise UnsupportedError("a context shift needs a model whose context llama.cpp can shift")
    llama_cpp.llama_memory_seq_add(memory, 0, N_KEEP + n_gone, n_tokens, -n_gone)
    llm.input_ids[N_KEEP : n_tokens - n_gone] = llm.input_ids[N_KEEP + n_gone : n_tokens].copy()
    llm.n_tokens = n_tokens - n_gone


class Shifted(Reader):
    """Stock llama.cpp with a full context: its first tokens and the newest half of the others stay."""

    n_chunk = 64

    def eval(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), self.n_chunk):
            chunk = list(tokens[start : start + self.n_chunk])
            if self.llm.n_tokens + len(chunk) > self.llm.n_ctx():
                shift_context(self.llm)
            self.llm.eval(chunk)

    def _steps(self, question: Question) -> Generator[int, Any, None]:
        self.eval(question.tokens)
        # one sampler for the answer, as generate() has it: its random numbers follow each other
        self.llm._sampler = self.llm._init_sampler(temp=question.temp)
        try:
            while True:
                token = self.llm.sample()
                yield token
                self.eval([token])
        finally:
            self.llm._sampler = None

    def _forced(self, question: Question) -> list[bool]:
        self.eval(question.tokens)
        right = []
        for token in question.forced:
            right.append(self.llm.sample(temp=0.0) == token)
            self.eval([token])
        return right

    @contextlib.contextmanager
    def taken_back(self) -> Iterator[None]:
        llm = self.llm
        n_tokens, ids = llm.n_tokens, llm.input_ids.copy()
        size = llama_cpp.llama_state_seq_get_size(llm.ctx, 0)
        state = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(llm.ctx, state, size, 0) != size:
            raise RuntimeError("llama.cpp could not save the state of a sequence")
        yield
        if llama_cpp.llama_state_seq_set_data(llm.ctx, state, size, 0) != size:
            raise RuntimeError("llama.cpp could not load the state of a sequence")
        llm.n_tokens, llm.input_ids[:] = n_tokens, ids


def open_reader(model: Path, arm: SuiteArm, n_text: int, n_prompt: int, **llama: Any) -> Reader:
    """n_text: most tokens of a text with questions and answers. n_prompt: above 0, those of a prompt that is cut as a
    whole: the cache then has room for it besides."""
    options = {**llama, **_types(arm)}
    if arm.morphkv is None:
        stock = Llama(model, **{**options, "n_ctx": n_text if arm.is_full else arm.n_cells, "n_batch": N_CHUNK})
        return Reader(arm, stock) if arm.is_full else Shifted(arm, stock)
    config = arm.morphkv
    if n_prompt:
        config = dataclasses.replace(config, prompt_room=n_prompt)
    llm = Llama(model, morphkv=config, archive=arm.archive, **options)
    return AtCut(arm, llm) if n_prompt else Reader(arm, llm)


def open_for_logits(model: Path, arm: SuiteArm, n_text: int, n_chunk: int, **llama: Any) -> Reader:
    """A reader whose logits() gives those of n_chunk tokens at once."""
    options = {**llama, **_types(arm)}
    # open_for_nll() adds a chunk
    n_tokens = n_text if arm.is_full or arm.morphkv is not None else arm.n_cells - n_chunk
    llm = open_for_nll(model, arm.morphkv, n_tokens, n_chunk, archive=arm.archive, **options)
    reader = Shifted(arm, llm) if arm.morphkv is None and not arm.is_full else Reader(arm, llm)
    reader.n_chunk = n_chunk
    return reader


def _types(arm: SuiteArm) -> dict[str, Any]:
    number = CACHE_TYPES[arm.cell_type]
    return {"type_k": number, "type_v": number, "flash_attn": True}


def cell_bytes(model: Path, **llama: Any) -> float:
    """What a cell takes in f16: K and V of all layers that attend to everything."""
    found = []
    for capacity in (2 * N_PAD, 3 * N_PAD):
        config = MorphKV(capacity=capacity - 64, interval=64, prompt_room=0)
        with closing(Llama(model, morphkv=config, **llama)) as llm:
            found.append(llm.cache_stats().kv_bytes)
    return (found[1] - found[0]) / N_PAD
