"""What an eviction does in each layer alone: the measurement behind profiles of layers.

A text of about 1,000 tokens streams through the model with a full cache, and then once for each layer with that
layer's cache cut and all others full. The harm is the Kullback-Leibler divergence of the model's answers from those
with the full cache. Attention mass on far tokens finds other layers, and choosing by that is worse than no choice.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp._internals import LlamaContext

from .. import Llama, bridge
from ..cache.fingerprint import model_fingerprint
from ..profile import N_LARGE_MAX, Profile

TEXT = Path(__file__).parent.parent / "profiles" / "text.txt"

N_TOKENS, N_LEAST = 1024, 512  # of the text
CAPACITY, WINDOW, INTERVAL = 256, 32, 64  # of the layer that is cut
STRIDE = 4  # every so many tokens an answer is compared, once evictions have begun

Rows = npt.NDArray[np.float32]


def measure_profile(
    llm: Llama, tokens: Sequence[int], on_step: Callable[[int], None] = lambda n_steps: None
) -> Profile:
    """Of a Llama without MorphKV, by the first 1,024 tokens of a text. on_step: gets 1 for each of n_readings()."""
    tokens = list(tokens[:N_TOKENS])
    if len(tokens) < N_LEAST:
        raise ValueError(f"a profile needs a text of at least {N_LEAST} tokens, got {len(tokens)}")
    layers = cut_layers(llm)
    full = _log_softmax(_read(llm, tokens, _params(layers, set(), len(tokens))))
    on_step(1)
    harm = [0.0] * llama_cpp.llama_model_n_layer(llm._model.model)
    for layer in layers:
        cut = _log_softmax(_read(llm, tokens, _params(layers, {layer}, len(tokens))))
        # rounding may make it negative; a layer that is cut does some harm
        harm[layer] = max(float((np.exp(full) * (full - cut)).sum(axis=1).mean(dtype=np.float64)), 1e-12)
        on_step(1)
    path = llm.model_path
    return Profile(tuple(harm), model=Path(path).name, fingerprint=model_fingerprint(path))


def n_readings(llm: Llama) -> int:
    return 1 + len(cut_layers(llm))


def cut_layers(llm: Llama) -> list[int]:
    """Layers of the model that MorphKV cuts. Raises UnsupportedError for a model that it cannot serve."""
    layers = []
    with _context(llm, _params([], {0}, 0), N_TOKENS) as context:
        for layer in range(llama_cpp.llama_model_n_layer(llm._model.model)):
            with contextlib.suppress(bridge.InvalidError):
                bridge.retained(context, 0, layer)
                layers.append(layer)
    if len(layers) > N_LARGE_MAX:
        raise ValueError(f"a profile is for at most {N_LARGE_MAX} layers that are cut, got {len(layers)}")
    return layers


def _params(layers: Sequence[int], cut: set[int], n_tokens: int) -> dict[str, Any]:
    """Native parameters of a cache that is full in all layers but those."""
    room = {"window": WINDOW, "interval": INTERVAL, "prompt_room": 0}
    if len(cut) >= len(layers):
        return {**room, "capacity": CAPACITY}
    if not cut:
        return {**room, "capacity": n_tokens}
    rest = [layer for layer in layers if layer not in cut]
    sizes = {"large_capacity": n_tokens, "small_capacity": CAPACITY}
    return {**room, "capacity": CAPACITY, "n_large": len(rest), "large_layers": rest, **sizes}


@contextlib.contextmanager
def _context(llm: Llama, params: dict[str, Any], n_ctx: int) -> Iterator[int]:
    """A context beside the Llama's own, with MorphKV; its address."""
    settings = type(llm.context_params).from_buffer_copy(llm.context_params)
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = n_ctx, INTERVAL, INTERVAL, 1
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    with bridge.next_context_has({**bridge.default_params(), **params}):
        context = LlamaContext(model=llm._model, params=settings, verbose=llm.verbose)
    with contextlib.closing(context):
        bridge.require_morphkv(context.ctx)
        yield context.ctx


def _read(llm: Llama, tokens: Sequence[int], params: dict[str, Any]) -> Rows:
    """Logits of every STRIDE-th token behind the first evictions, (n, n_vocab)."""
    n_vocab, rows = llm.n_vocab(), []
    first = CAPACITY + INTERVAL
    batch = llama_cpp.llama_batch_init(INTERVAL, 0, 1)
    try:
        with _context(llm, params, len(tokens) + INTERVAL) as context:
            for start in range(0, len(tokens), INTERVAL):
                chunk = tokens[start : start + INTERVAL]
                wanted = []
                batch.n_tokens = len(chunk)
                for i, token in enumerate(chunk):
                    is_wanted = start + i >= first and (start + i) % STRIDE == 0
                    batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, is_wanted
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    if is_wanted:
                        wanted.append(i)
                if status := llama_cpp.llama_decode(context, batch):
                    raise RuntimeError(f"llama_decode returned {status}: {bridge.last_error()}")
                for i in wanted:
                    data = llama_cpp.llama_get_logits_ith(context, i)
                    rows.append(
                        np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), (n_vocab,)).copy()
                    )
    finally:
        llama_cpp.llama_batch_free(batch)
    return np.stack(rows)


def _log_softmax(rows: Rows) -> Rows:
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows
