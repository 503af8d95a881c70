"""How fast this machine copies memory: what the speed of decoding is bound by."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

N_BYTES = 256 << 20  # beyond any cache of a processor
N_TRIES = 5


def copy_gb_s(n_threads: int, n_bytes: int = N_BYTES) -> float:
    """GB (1e9 bytes) read and written in a second by a copy of `n_bytes`, parted among threads; the best of five."""
    source, target = np.ones(n_bytes, np.uint8), np.empty(n_bytes, np.uint8)
    parts = list(zip(np.array_split(target, n_threads), np.array_split(source, n_threads)))
    seconds = []
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(N_TRIES):
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(*part), parts))
            seconds.append(time.perf_counter() - start)
    return 2 * n_bytes / min(seconds) / 1e9
