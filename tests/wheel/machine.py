"""The installed wheel on this machine, or on one that qemu plays: self-test, 20 tokens, the logits after them.

machine.py MODEL.gguf LOGITS.npy    writes the logits, or compares with them where the file is there
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np

from morphkv_cpp import Llama, MorphKV, bridge, info

# isort: split
import llama_cpp

N_PROMPT, N_WRITTEN = 130, 20
# Caches of f16, and kernels of other widths: 1e-4 was measured on a CPU without AVX and on aarch64.
TOLERANCE = 0.05


def main(model: str, logits: str) -> int:
    report = info()
    print(f"{platform.machine()}, CPU variant {report.cpu_variant} of {', '.join(report.cpu_variants)}")
    print(report.system_info)
    cpu = [row for row in bridge.selftest() if row["device"] == "CPU"]
    not_same = [row for row in cpu if row["result"] != "same"]
    print(f"selftest: {len(cpu)} cases, {len(not_same)} not the same")
    config = MorphKV(capacity=32, window=8, interval=8, prompt_room=0, rope_limit=120)
    tokens = np.random.default_rng(0).integers(3, 320, N_PROMPT + N_WRITTEN).tolist()
    with Llama(model, morphkv=config, n_threads=1, n_threads_batch=1, verbose=False) as llm:
        llm.eval(tokens[:N_PROMPT])
        for token in tokens[N_PROMPT:]:  # given, lest a near tie leads elsewhere
            llm.eval([token])
        stats = llm.cache_stats()
        got = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).copy()
    print(f"{N_WRITTEN} tokens, {stats.n_evictions} evictions, {stats.n_rebases} rebases")
    path = Path(logits)
    if not path.exists():
        np.save(path, got)
        return 1 if not_same else 0
    expected = np.load(path)
    error = float(np.abs(got - expected).max())
    print(f"logits of {np.abs(expected).max():.1f} at most differ by {error:.1e} at most; allowed is {TOLERANCE}")
    return 0 if not not_same and len(cpu) > 20 and stats.n_evictions > 0 and error < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
