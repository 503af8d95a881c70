"""kvpress's caches as arms of the suite: the same weights, dequantized, in PyTorch on the CPU.

The cache is cut after each interval of tokens, by kvpress's DecodingPress, whatever pieces the tokens come in: those of
the interval are then read once more as one chunk, since its presses know no other queries than those of the newest
chunk. A prompt that is cut as a whole is read at once with the question, as kvpress does it.

K and V are f32 and are counted as f16: what is compared is the number of cells. PyTorch computes with weights and
activations in f32, where llama.cpp rounds activations too, so that even an uncut cache differs a little from `full`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import llama_cpp
import numpy as np

from morphkv_cpp import Llama
from morphkv_cpp.errors import UnsupportedError
from morphkv_cpp.extras import needs_extra

from .readers import Reader, Rows
from .suite_arms import SuiteArm
from .tasks import Question

if TYPE_CHECKING:
    from .peer_presses import InOrder

N_BYTES = 2  # of a number of K or V, as if in f16
PACKAGES = ("kvpress", "transformers", "torch")


def versions() -> dict[str, str]:
    """Of what the extra `peers` installs. Raises ModuleNotFoundError where it is missing."""
    with needs_extra("peers"):
        import gguf  # noqa: F401
        import kvpress  # noqa: F401
    from importlib.metadata import version

    return {name: version(name) for name in PACKAGES}


class PeerReader(Reader):
    """A model of transformers, whose cache kvpress cuts. llm: the same model, for its vocabulary and its samplers."""

    def __init__(self, arm: SuiteArm, llm: Llama, model: Any, press: InOrder):
        super().__init__(arm, llm)
        assert arm.peer is not None
        self.model, self.press = model, press
        self.n_capacity, self.n_chunk = arm.peer.capacity, arm.peer.interval
        self.n_most = 0  # cells that there were at once
        self.cell_bytes = 0
        self.reset()

    def reset(self) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache()
        self.n_read = 0  # position of the next token
        self.newest: list[int] = []  # tokens of the interval that is not full yet

    def sizes(self, n_tokens: int, per_cell: float) -> dict[str, int]:
        return {"kv_bytes": self.n_most * self.cell_bytes, "extra_bytes": 0}

    @property
    def n_cells(self) -> int:
        """Of each layer and head."""
        return int(self.cache.get_seq_length())

    def eval(self, tokens: Sequence[int]) -> None:
        for piece in self._pieces(tokens):
            self._read_piece(piece, 1)

    def logits(self, tokens: Sequence[int]) -> Rows:
        return np.concatenate([self._read_piece(piece, len(piece)) for piece in self._pieces(tokens)])

    def _pieces(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        """None goes beyond the interval that has begun."""
        start = 0
        while start < len(tokens):
            piece = list(tokens[start : start + self.n_chunk - len(self.newest)])
            yield piece
            start += len(piece)

    def _read_piece(self, tokens: list[int], n_rows: int) -> Rows:
        n_begun = len(self.newest)
        is_full = n_begun + len(tokens) == self.n_chunk
        self.newest = [*self.newest, *tokens]
        if is_full and self.n_cells + len(tokens) > self.n_capacity:
            from kvpress import DecodingPress

            if n_begun:
                self.cache.crop(self.n_cells - n_begun)
                self.n_read -= n_begun
            self.press.n_before = self.n_read
            cut = DecodingPress(base_press=self.press, compression_interval=1, target_size=self.n_capacity)
            rows = self._forward(self.newest, n_rows, cut)
        else:
            rows = self._forward(tokens, n_rows)
        if is_full:
            self.newest = []
        return rows

    def _forward(self, tokens: Sequence[int], n_rows: int, press: Any = None) -> Rows:
        """Logits of the last n_rows tokens. Presses change the cache after the attention has seen all of it."""
        import torch

        self.n_most = max(self.n_most, self.n_cells + len(tokens))
        # set_attn_implementation() takes seconds
        is_eager = press is not None and self.press.needs_attention
        self.model.config._attn_implementation = "eager" if is_eager else "sdpa"
        positions = torch.arange(self.n_read, self.n_read + len(tokens))
        with torch.no_grad(), contextlib.nullcontext() if press is None else press(self.model):
            found = self.model(
                input_ids=torch.tensor([list(tokens)]),
                position_ids=positions[None],
                past_key_values=self.cache,
                logits_to_keep=n_rows,
            )
        self.n_read += len(tokens)
        layers = self.cache.layers
        numbers = sum(layer.keys[:, :, 0].numel() + layer.values[:, :, 0].numel() for layer in layers)
        self.cell_bytes = N_BYTES * numbers
        return cast(Rows, found.logits[0].numpy())

    def _begin(self, question: Question) -> Rows:
        """Reads the question; logits of what follows it, (1, n_vocab)."""
        return self.logits(question.tokens)[-1:]

    def _steps(self, question: Question) -> Generator[int, Any, None]:
        row = self._begin(question)[0]
        sampler = self.llm._init_sampler(temp=question.temp)
        while True:
            token = drawn(sampler.sampler, row)
            yield token
            row = self.logits([token])[0]

    def _forced(self, question: Question) -> list[bool]:
        rows = self._begin(question)
        if len(question.forced) > 1:
            rows = np.concatenate([rows, self.logits(question.forced[:-1])])
        return (rows.argmax(axis=1) == np.array(question.forced)).tolist()  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def taken_back(self) -> Iterator[None]:
        # a cache gets new tensors where it changes
        held = [(layer.keys, layer.values) for layer in self.cache.layers]
        n_read, newest = self.n_read, self.newest
        yield
        del self.cache.layers[len(held) :]
        for layer, (keys, values) in zip(self.cache.layers, held):
            layer.keys, layer.values = keys, values
        self.n_read, self.newest = n_read, newest


class PeerAtCut(PeerReader):
    """A prompt is read at once with its question, and then cut; its last token is read again, in the cut cache."""

    def read(self, tokens: Sequence[int], on_chunk: Callable[[int], None] = lambda n: None) -> None:
        self.reset()
        self.prompt = list(tokens)
        on_chunk(len(tokens))

    def _begin(self, question: Question) -> Rows:
        tokens = [*self.prompt, *question.tokens]
        if len(tokens) > self.n_capacity:
            # half a cell more, against rounding
            ratio = 1 - (self.n_capacity + 0.5) / len(tokens)
            self.press.n_before, self.press.n_again, self.press.compression_ratio = 0, 1, ratio
            try:
                self._forward(tokens, 1, self.press)
            finally:
                self.press.n_again, self.press.compression_ratio = 0, 0.0
            self.n_read -= 1
        else:
            self._forward(tokens[:-1], 1)
        return self.logits(tokens[-1:])


def drawn(sampler: Any, row: Rows) -> int:
    """A token by a chain of llama.cpp's samplers, which thereby goes on."""
    data = np.empty(len(row), dtype=np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True))
    data["id"], data["logit"], data["p"] = np.arange(len(row)), row, 0.0
    pointer = data.ctypes.data_as(llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(data=pointer, size=len(row), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    token = int(array.data[array.selected].id)
    llama_cpp.llama_sampler_accept(sampler, token)
    return token


@functools.lru_cache(maxsize=1)
def load(model: Path) -> Any:
    """The GGUF in transformers, f32. All readers of a model share it."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(model.parent), gguf_file=model.name, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    return loaded.eval()


def open_peer(model: Path, arm: SuiteArm, n_prompt: int, n_threads: int | None = None, **llama: Any) -> PeerReader:
    """n_prompt: above 0, a prompt is cut as a whole.

    Raises UnsupportedError where transformers cannot read the model, or where some layers see a window alone.
    """
    assert arm.peer is not None
    versions()
    import torch

    from .peer_presses import press_of

    llm = Llama(model, **{**llama, "n_ctx": 256, "n_threads": n_threads})
    try:
        if n_threads:
            torch.set_num_threads(n_threads)
        kind = llm.metadata.get("general.architecture", "")
        try:
            loaded = load(model)
        except (ValueError, NotImplementedError, KeyError, ImportError) as error:
            raise UnsupportedError(f"transformers cannot read this model of architecture {kind}: {error}") from error
        if getattr(loaded.config, "sliding_window", None):
            raise UnsupportedError(f"kvpress needs layers that all attend to everything, got a window in {kind}")
        return (PeerAtCut if n_prompt else PeerReader)(arm, llm, loaded, press_of(arm.peer.method))
    except BaseException:
        llm.close()
        raise
