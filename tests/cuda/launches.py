"""How many kernels an eviction starts on CUDA: counted by fake_cuda.cpp, without a GPU.

make cuda-launches

For a context of one sequence and for one of four, each with cells of its own as in llama-server: in the shape of
Llama 3 8B, with and without an archive, and for compressed keys of 128 heads (MLA). Each by ggml's operations and by
kernels of our own, which start at most MAX_LAUNCHES and copy at most MAX_COPIES times.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np

from morphkv_cpp import MorphKV, bridge
from morphkv_cpp.config import native_params
from morphkv_cpp.models.synthetic import write_tiny_llama

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from archs.more_models import KEYS, write

CONFIG = MorphKV(capacity=2048, window=32, interval=128, prompt_room=512)
LLAMA_8B = {"n_layer": 32, "n_head": 32, "n_head_kv": 8, "head_size": 128}
MLA_LAYERS = 4
N_BATCH = 512
STAGGER = 8  # tokens that a sequence lacks more than the one before: nearly due ones are cut with one that is
N_SHOWN = 12
MAX_LAUNCHES, MAX_COPIES = 6, 2


def write_mla(path: Path, n_head: int = 128) -> Path:
    """Compressed keys as DeepSeek's, 512 + 64; the rest is small, and evictions see nothing of it."""
    n_embd, n_vocab, n_ff, n_lora, n_rope, n_other = 64, KEYS["vocab_size"], 96, 512, 64, 16
    keys = KEYS | {
        "context_length": 8192,
        "block_count": MLA_LAYERS,
        "leading_dense_block_count": MLA_LAYERS,
        "attention.head_count": n_head,
        "attention.head_count_kv": 1,
        "attention.key_length": n_lora + n_rope,
        "attention.value_length": n_lora,
        "attention.key_length_mla": n_other + n_rope,
        "attention.value_length_mla": n_other,
        "attention.q_lora_rank": 0,
        "attention.kv_lora_rank": n_lora,
        "rope.dimension_count": n_rope,
        "expert_feed_forward_length": n_ff,
        "expert_shared_count": 1,
    }
    layer = {
        "attn_norm": [n_embd],
        "attn_q": [n_embd, n_head * (n_other + n_rope)],
        "attn_kv_a_mqa": [n_embd, n_lora + n_rope],
        "attn_kv_a_norm": [n_lora],
        "attn_k_b": [n_other, n_lora, n_head],
        "attn_v_b": [n_lora, n_other, n_head],
        "attn_output": [n_head * n_other, n_embd],
        "ffn_norm": [n_embd],
        "ffn_gate": [n_embd, n_ff],
        "ffn_up": [n_embd, n_ff],
        "ffn_down": [n_ff, n_embd],
    }
    shapes = {"token_embd": [n_embd, n_vocab], "output_norm": [n_embd], "output": [n_embd, n_vocab]}
    shapes |= {f"blk.{i}.{name}": shape for i in range(MLA_LAYERS) for name, shape in layer.items()}
    write(path, "deepseek2", keys, {f"{name}.weight": shape for name, shape in shapes.items()}, seed=1)
    return path


class Runtime:
    """What the library has started so far."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libcudart.so.13")
        self._lib.fake_cuda_launches.restype = self._lib.fake_cuda_copies.restype = ctypes.c_long
        self._lib.fake_cuda_listed.restype = ctypes.c_char_p

    def counts(self) -> np.ndarray:
        """Kernels and copies."""
        return np.array([self._lib.fake_cuda_launches(), self._lib.fake_cuda_copies()])

    def begin_list(self) -> None:
        self._lib.fake_cuda_list()

    def listed(self) -> Counter:
        return Counter({name: int(n) for name, n in map(str.split, self._lib.fake_cuda_listed().decode().splitlines())})


class Context:
    """A context of n_seq sequences with cells of their own, all on the device."""

    def __init__(self, path: Path, n_seq: int, archive: bool):
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 99
        self.n_seq = n_seq
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max, params.kv_unified = 8192 * n_seq, N_BATCH, n_seq, False
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        with bridge.next_context_has(native_params(CONFIG)):
            self.ctx = llama_cpp.llama_init_from_model(self.model, params)
        bridge.require_morphkv(self.ctx)
        if archive:
            bridge.start_archive(self.ctx)
        self.batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.ctx)
        llama_cpp.llama_model_free(self.model)

    def decode(self, n_tokens: int, sequences: range) -> None:
        """So many tokens in each of the sequences, as one batch."""
        memory, batch, n = llama_cpp.llama_get_memory(self.ctx), self.batch, 0
        for seq in sequences:
            first = llama_cpp.llama_memory_seq_pos_max(memory, seq) + 1
            for i in range(n_tokens):
                batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = 5, first + i, 1, seq
                batch.logits[n] = i == n_tokens - 1
                n += 1
        batch.n_tokens = n
        assert llama_cpp.llama_decode(self.ctx, batch) == 0, bridge.last_error()
        # an archive is written meanwhile; its launches belong to this token
        llama_cpp.llama_synchronize(self.ctx)

    def n_evictions(self) -> int:
        return sum(bridge.stats(self.ctx, seq)["n_evictions"] for seq in range(self.n_seq))

    def fill(self) -> None:
        """To capacity, each sequence a little less than the one before."""
        for seq in range(self.n_seq):
            n_left = CONFIG.capacity - STAGGER * seq
            while n_left > 0:
                self.decode(min(N_BATCH, n_left), range(seq, seq + 1))
                n_left -= min(N_BATCH, n_left)


def readable(name: str) -> str:
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    return text.replace("(anonymous namespace)::", "").split("(")[0].removeprefix("void ")


def count(title: str, path: Path, n_seq: int, own: bool, archive: bool = False) -> None:
    """A token of each sequence, all of which are cut before it, less one without; the second time.

    own: by kernels of our own, without the comparison that comes first: here nothing is computed.
    """
    os.environ["MORPHKV_CUDA_KERNELS"] = "unchecked" if own else "0"
    runtime = Runtime()
    with closing(Context(path, n_seq, archive)) as context:
        context.fill()
        n_wanted = 2 * n_seq
        plain = plain_names = None
        while True:
            n_evictions, before = context.n_evictions(), runtime.counts()
            runtime.begin_list()
            context.decode(1, range(n_seq))
            grown, names = runtime.counts() - before, runtime.listed()
            if context.n_evictions() == n_evictions:
                plain, plain_names = grown, names
            elif context.n_evictions() == n_wanted:
                break
    kernels, copies = grown - plain
    what = ("an eviction" if n_seq == 1 else f"evictions of all {n_seq}") + (" and archiving" if archive else "")
    tokens = "a token" if n_seq == 1 else f"a token of each of {n_seq} sequences"
    by = "own kernels" if own else "ggml"
    print(f"{title}, {n_seq} in the context, {by}: {what}: {kernels} kernels and {copies} copies; ", end="")
    print(f"{tokens} without: {plain[0]} and {plain[1]}", flush=True)
    for name, n in (names - plain_names).most_common(N_SHOWN):
        print(f"  {n:5} {readable(name)}")
    if own and not archive and (kernels > MAX_LAUNCHES or copies > MAX_COPIES):
        sys.exit(
            f"our kernels start {kernels} times and copy {copies} times, more than {MAX_LAUNCHES} and {MAX_COPIES}"
        )


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    pass


def main() -> None:
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    with tempfile.TemporaryDirectory() as folder:
        llama = write_tiny_llama(Path(folder) / "8b.gguf", **LLAMA_8B)
        mla = write_mla(Path(folder) / "mla.gguf")
        for own, n_seq in ((True, 1), (True, 4), (False, 1), (False, 4)):
            count("Llama 3 8B", llama, n_seq, own)
            count("Llama 3 8B", llama, n_seq, own, archive=True)
            count(f"MLA, 128 heads, {MLA_LAYERS} layers", mla, n_seq, own)


if __name__ == "__main__":
    main()
