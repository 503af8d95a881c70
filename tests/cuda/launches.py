"""How many kernels an eviction starts on CUDA, in the shape of Llama 3 8B: counted by fake_cuda.cpp, without a GPU.

make cuda-launches CUDA=<folder of the CUDA 13 toolkit>
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.models.synthetic import write_tiny_llama

CONFIG = MorphKV(capacity=2048, window=32, interval=128, prompt_room=512)
SHAPE = {"n_layer": 32, "n_head": 32, "n_head_kv": 8, "head_size": 128}
N_SHOWN = 12


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


def readable(name: str) -> str:
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    return text.split("(")[0].removeprefix("void ")


def count(path: Path, archive: str | None) -> None:
    """A token that is decoded with an eviction before it, less one without."""
    runtime = Runtime()
    tokens = np.random.default_rng(0).integers(3, 320, CONFIG.capacity + 3 * CONFIG.interval).tolist()
    with closing(Llama(path, n_gpu_layers=-1, morphkv=CONFIG, archive=archive, n_threads=2, verbose=False)) as llm:
        llm.eval(tokens[: CONFIG.capacity])
        plain = None
        for token in tokens[CONFIG.capacity :]:
            n_evictions, before = llm.cache_stats().n_evictions, runtime.counts()
            runtime.begin_list()
            llm.eval([token])
            grown, names = runtime.counts() - before, runtime.listed()
            if llm.cache_stats().n_evictions == n_evictions:
                plain, plain_names = grown, names
        # until a token is the one that evicts
        while llm.cache_stats().n_evictions == n_evictions:
            before = runtime.counts()
            runtime.begin_list()
            llm.eval([5])
            grown, names = runtime.counts() - before, runtime.listed()
        kernels, copies = grown - plain
        what = "an eviction" + (" and its archiving" if archive else "")
        print(f"{what}: {kernels} kernels and {copies} copies; a token without: {plain[0]} and {plain[1]}")
        for name, n in (names - plain_names).most_common(N_SHOWN):
            print(f"  {n:5} {readable(name)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_llama(Path(folder) / "8b.gguf", **SHAPE)
        for archive in (None, "ram"):
            count(path, archive)


if __name__ == "__main__":
    main()
