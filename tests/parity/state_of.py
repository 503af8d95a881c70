"""Program: go on from a saved state in a process of its own, and write the tokens drawn and all their logits.

usage: state_of.py MODEL TYPE N_THREADS STATE.pickle N_TOKENS OUT.npz
"""

import pickle
import sys
from pathlib import Path

import numpy as np

import morphkv_cpp

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

MORPHKV = morphkv_cpp.MorphKV(capacity=512, window=32, interval=64, prompt_room=0)


def open_llama(model: str, cache_type: int, n_threads: int) -> morphkv_cpp.Llama:
    return morphkv_cpp.Llama(
        model,
        morphkv=MORPHKV,
        type_k=cache_type,
        type_v=cache_type,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )


def go_on(llm: morphkv_cpp.Llama, first: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy: tokens (n_tokens,) from `first` on, and the logits behind each, (n_tokens, n_vocab)."""
    tokens, rows = [first], []
    while len(rows) < n_tokens:
        llm.eval(tokens[-1:])
        pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        rows.append(np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy())
        tokens.append(int(rows[-1].argmax()))
    return np.array(tokens[:n_tokens]), np.stack(rows)


def main() -> None:
    model, cache_type, n_threads, state, n_tokens, out = sys.argv[1:]
    llm = open_llama(model, int(cache_type), int(n_threads))
    saved, first = pickle.loads(Path(state).read_bytes())
    llm.load_state(saved)
    tokens, logits = go_on(llm, first, int(n_tokens))
    np.savez(out, tokens=tokens, logits=logits)
    llm.close()


if __name__ == "__main__":
    main()
