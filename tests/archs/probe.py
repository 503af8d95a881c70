"""What MorphKV does for the model in a GGUF, by running it: a JSON object in a line of standard output for each model.

    python probe.py [--quick] MODEL...

support: "all" layers with a KV cache are cut, or a "part" of them; "refused", with the reason; or "no cache": llama.cpp
makes no context with a KV cache of this model. What is served has passed the checks below, unless --quick; a failed one
ends with a traceback. Each model gets a process of its own: llama.cpp asserts.
"""

from __future__ import annotations

import itertools
import json
import sys

import morphkv_cpp  # says first which libllama is loaded
from morphkv_cpp import bridge

# isort: split
import llama_cpp
import numpy as np
from gguf import GGUFReader

SMALL = {"capacity": 64, "window": 16, "interval": 16, "prompt_room": 64}
OPTIONS = {
    "n_ubatch": 32,
    "n_threads": 1,
    "n_threads_batch": 1,
    "verbose": False,
    "swa_full": False,
    "flash_attn": True,
}
N_CTX = 2048
N_PROMPT = 60
N_PAST = 500  # tokens behind the first eviction
N_READ = 400  # of a prompt that is read with an archive
FAR = 10**6


def main(path: str, quick: bool) -> dict:
    try:
        llm = open_with_morphkv(path)
    except morphkv_cpp.UnsupportedError as error:
        return refused_or_no_cache(path, str(error))
    except ValueError:
        return {"support": "no cache", "why": "llama.cpp makes no context for a text of it"}
    answer = {**layers_of(llm), "is_rebased": llm.cache_stats().rope_limit > 0, "has_mrope": has_mrope(llm)}
    llm.close()
    answer["is_archived"] = is_archived(path)
    if not quick:
        answer |= checked(path)
    return answer


def open_with_morphkv(path: str, **options) -> morphkv_cpp.Llama:
    return morphkv_cpp.Llama(path, morphkv=morphkv_cpp.MorphKV(**SMALL), n_ctx=N_CTX, **OPTIONS, **options)


def open_archived(path: str) -> morphkv_cpp.Llama:
    return open_with_morphkv(path, archive=morphkv_cpp.Archive("ram", share=1.0))


def has_mrope(llm: morphkv_cpp.Llama) -> bool:
    """Whether a token has several positions."""
    kinds = (llama_cpp.LLAMA_ROPE_TYPE_MROPE, llama_cpp.LLAMA_ROPE_TYPE_IMROPE)
    return llama_cpp.llama_model_rope_type(llm.model) in kinds


def is_archived(path: str) -> bool:
    try:
        open_archived(path).close()
    except morphkv_cpp.UnsupportedError:
        return False
    return True


def refused_or_no_cache(path: str, why: str) -> dict:
    try:
        stock = llama_cpp.Llama(path, n_ctx=N_CTX, **OPTIONS)
    except ValueError:
        return {"support": "no cache", "why": "llama.cpp makes no context for a text of it"}
    has_cache = bridge.kv_bytes(stock.ctx) > 0 and "has no KV cache" not in why
    stock.close()
    return {"support": "refused" if has_cache else "no cache", "why": why}


def layers_of(llm: morphkv_cpp.Llama) -> dict:
    n_layer = int(llama_cpp.llama_model_n_layer(llm.model))
    n_cut, n_windowed = 0, 0
    for layer in range(n_layer):
        try:
            llm.retained(layer)
            n_cut += 1
        except ValueError as error:
            n_windowed += "sliding window" in str(error)
    is_recurrent = bool(llama_cpp.llama_model_is_hybrid(llm.model))
    parts = ["without a sliding window"] * (n_windowed > 0) + ["that attend"] * is_recurrent
    why = "layers " + " and ".join(parts) if parts else ""
    return {"support": "part" if parts else "all", "why": why, "n_layer": n_layer, "n_cut": n_cut}


def checked(path: str) -> dict:
    """Bit-equal to stock before the first eviction, finite behind it, rollback, state round trip."""
    rng = np.random.default_rng(0)
    llm, stock = open_with_morphkv(path), llama_cpp.Llama(path, n_ctx=N_CTX, **OPTIONS)
    n_vocab = min(llm.n_vocab(), 100)
    for each in (llm, stock):
        each.eval(np.random.default_rng(1).integers(3, n_vocab, N_PROMPT).tolist())
    n_equal = 0
    while True:
        token = int(rng.integers(3, n_vocab))
        llm.eval([token])
        stock.eval([token])
        if llm.cache_stats().n_evictions > 0:
            break
        require((logits(llm) == logits(stock)).all(), f"bit-equal to stock at token {llm.n_tokens}")
        n_equal += 1
    require(n_equal > 10, f"an eviction comes late enough to compare, got {n_equal} tokens")
    stock.close()

    end = learned_end(path)
    for token in rng.integers(3, n_vocab, N_PAST).tolist():
        llm.eval([token])
        require(np.isfinite(logits(llm)).all(), f"finite at token {llm.n_tokens}")
    require(llm.cache_stats().n_evictions >= N_PAST // SMALL["interval"] - 1, "evictions go on")

    if checked_rollback(llm, rng, n_vocab):
        goes_back = "exactly"
    else:
        goes_back = "to marks" if checked_mark(llm, rng, n_vocab) else "no"
    checked_state(path, llm, rng, n_vocab)
    if end < FAR:
        checked_end(llm, end)
    llm.close()
    if is_archived(path):
        checked_reading(path, rng, n_vocab)
    return {"goes_back": goes_back, "n_equal": n_equal}


def checked_rollback(llm: morphkv_cpp.Llama, rng: np.random.Generator, n_vocab: int) -> bool:
    """Takes 6 tokens back and decodes them again; False if the model cannot go back and says so."""
    n_evictions = llm.cache_stats().n_evictions
    while llm.cache_stats().n_evictions == n_evictions:
        llm.eval([5])
    tail = rng.integers(3, n_vocab, 6).tolist()
    before = [evaluated(llm, token) for token in tail]
    stats = llm.cache_stats()
    llm.n_tokens -= len(tail)
    if stats.complete_pos == stats.logical_pos:
        try:
            llm.eval([tail[0]])
        except RuntimeError:
            require(llm.cache_stats() == stats, "a refused rollback changes nothing")
            llm.n_tokens = stats.logical_pos + 1
            return False
    require(stats.exact_pos <= stats.logical_pos + 1 - len(tail), f"can go back exactly, got {stats}")
    again = [evaluated(llm, token) for token in tail]
    require(all((a == b).all() for a, b in zip(before, again)), "the same tokens give the same bits again")
    return True


def checked_mark(llm: morphkv_cpp.Llama, rng: np.random.Generator, n_vocab: int) -> bool:
    """Goes back to a mark, twice; False if the model has none."""
    bridge.set_mark(llm.ctx)
    mark = llm.cache_stats().mark_pos
    if mark < 0:
        return False
    require(mark == llm.n_tokens, f"a mark is where the text ends, got {mark} of {llm.n_tokens}")
    tail = rng.integers(3, n_vocab, 6).tolist()
    answers = []
    for _ in range(3):
        llm.n_tokens = mark
        answers.append([evaluated(llm, token) for token in tail])
    for again in answers[1:]:
        require(all((a == b).all() for a, b in zip(answers[0], again)), "the same bits again behind a mark")
    return True


def checked_reading(path: str, rng: np.random.Generator, n_vocab: int) -> None:
    """Reads a prompt with an archive and writes an answer, twice; the second begins where the prompt ended."""
    llm = open_archived(path)
    prompt = rng.integers(3, n_vocab, N_READ).tolist()
    lengths: list[int] = []
    decode = llm._ctx.decode

    def count(batch) -> None:
        lengths.append(batch.n_tokens())
        decode(batch)

    llm._ctx.decode = count
    for _ in range(2):
        lengths.clear()
        require(len(list(itertools.islice(llm.generate(prompt, temp=0.0), 8))) == 8, "an answer is written")
        require(np.isfinite(logits(llm)).all(), "finite behind a recall")
    stats = llm.cache_stats()
    require(stats.n_archived > N_READ // 2 and stats.n_recalled > 0, f"a prompt recalls, got {stats}")
    llm.close()
    require(sum(lengths) < N_READ // 4, f"an answer asked for again costs little, got batches of {lengths}")


def checked_state(path: str, llm: morphkv_cpp.Llama, rng: np.random.Generator, n_vocab: int) -> None:
    other = open_with_morphkv(path)
    other.load_state(llm.save_state())
    for token in rng.integers(3, n_vocab, 40).tolist():
        a, b = evaluated(llm, token), evaluated(other, token)
        require((a == b).all(), "a restored text goes on with the same bits")
    other.close()


def learned_end(path: str) -> int:
    """Where learned positions end; FAR where they are not learned."""
    tables = [t for t in GGUFReader(path).tensors if t.name == "position_embd.weight"]
    return int(tables[0].shape[1]) if tables else FAR


def checked_end(llm: morphkv_cpp.Llama, end: int) -> None:
    while llm.n_tokens < end:
        llm.eval([5])
    try:
        llm.eval([5])
    except RuntimeError as error:
        require("positions of this model are learned" in str(error), f"the end has a reason, got {error}")
        return
    raise AssertionError("learned positions end")


def evaluated(llm: morphkv_cpp.Llama, token: int) -> np.ndarray:
    llm.eval([token])
    return logits(llm)


def logits(llm: llama_cpp.Llama) -> np.ndarray:
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).copy()


def require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument != "--quick":
            print(json.dumps({"model": argument, **main(argument, "--quick" in sys.argv)}), flush=True)
