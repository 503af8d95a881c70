"""GGUFs of tiny models whose layers 0 and 2 are recurrent and 1 and 3 attend ("lfm2"): of random weights, and one whose
weights are set by hand.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from morphkv_cpp.models.synthetic import N_VOCAB_MIN, add_vocabulary

N_LAYER, N_TAP = 4, 3  # taps of a convolution: two tokens back, one, and the token itself
N_VOCAB = 320

Weights = dict[str, np.ndarray]


def write_tiny_hybrid(path: Path, seed: int = 0) -> Path:
    """Random weights."""
    n_embd, n_ff, rng = 64, 96, np.random.default_rng(seed)

    def matrix(n_out: int, n_in: int, gain: float = 1.0) -> np.ndarray:
        return rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)

    weights = {"token_embd": rng.standard_normal((N_VOCAB, n_embd)), "output": matrix(N_VOCAB, n_embd)}
    for layer in range(N_LAYER):
        if layer % 2:
            parts = {"attn_q": matrix(n_embd, n_embd), "attn_k": matrix(32, n_embd), "attn_v": matrix(32, n_embd)}
            parts |= {
                "attn_output": matrix(n_embd, n_embd),
                "attn_q_norm": np.full(32, 1.5),
                "attn_k_norm": np.ones(32),
            }
        else:
            parts = {"shortconv.in_proj": matrix(3 * n_embd, n_embd), "shortconv.conv": matrix(n_embd, N_TAP)}
            parts["shortconv.out_proj"] = matrix(n_embd, n_embd)
        parts |= {"ffn_gate": matrix(n_ff, n_embd), "ffn_up": matrix(n_ff, n_embd), "ffn_down": matrix(n_embd, n_ff)}
        weights |= {f"blk.{layer}.{name}": tensor for name, tensor in parts.items()}
    return _write(path, weights, n_embd, n_ff, n_head=2, rope_freq_base=10000.0)


# The model that follows facts: sizes, and where in its residual stream a token has what.
N_CODE, N_FACT_EMBD = 20, 128
OWN, MEANS, BEFORE, ASKS, FOUND, ANSWER = (slice(i, i + N_CODE) for i in range(0, 6 * N_CODE, N_CODE))
ONE = 6 * N_CODE  # always 1
TURNED = slice(36, 36 + N_CODE)  # of a head: dimensions that RoPE hardly turns


def write_fact_hybrid(path: Path, asks: dict[int, int], means: dict[int, int], seed: int = 0) -> Path:
    """A model that follows two facts. After "a x" somewhere, where x means b, and "b c" somewhere else, a token that
    asks for a is followed by c. asks: what tokens that ask ask for; means: what tokens mean, others mean themselves.

    Layer 0 lets each token know the one before it. Layer 1 looks for the token behind the one that is asked for, and
    layer 3 for the token behind what layer 1 has found. So what layer 3 asks for is known once layer 1 has found.
    """
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1.0, 1.0], (N_VOCAB, N_CODE))
    tokens = np.zeros((N_VOCAB, N_FACT_EMBD))
    tokens[:, OWN], tokens[:, MEANS], tokens[:, ONE] = codes, codes, 1.0
    for token, about in asks.items():
        tokens[token, ASKS] = codes[about]
    for token, other in means.items():
        tokens[token, MEANS] = codes[other]
    output = np.zeros((N_VOCAB, N_FACT_EMBD))
    output[:, ANSWER] = codes

    weights = {"token_embd": tokens, "output": output}
    for layer in range(N_LAYER):
        if layer % 2:
            parts = _lookup(ASKS, FOUND) if layer == 1 else _lookup(FOUND, ANSWER)
        else:
            parts = _look_back(is_on=layer == 0)
        parts |= {f"ffn_{name}": np.zeros((N_FACT_EMBD, N_FACT_EMBD)) for name in ("gate", "up", "down")}
        weights |= {f"blk.{layer}.{name}": tensor for name, tensor in parts.items()}
    return _write(path, weights, N_FACT_EMBD, N_FACT_EMBD, n_head=1, rope_freq_base=1e12)


def _lookup(asks: slice, answer: slice) -> Weights:
    """Attention to the token behind the one that `asks` has: what it means comes to `answer`."""
    query, key, value, out = (np.zeros((N_FACT_EMBD, N_FACT_EMBD)) for _ in range(4))
    query[TURNED, asks] = key[TURNED, BEFORE] = value[:N_CODE, MEANS] = out[answer, :N_CODE] = np.eye(N_CODE)
    gain = np.full(N_FACT_EMBD, 2.0)
    return {"attn_q": query, "attn_k": key, "attn_v": value, "attn_output": out} | {
        "attn_q_norm": gain,
        "attn_k_norm": gain,
    }


def _look_back(is_on: bool) -> Weights:
    """A convolution that brings the own code of the token before to BEFORE: two factors of it are always 1."""
    project, out = np.zeros((3, N_FACT_EMBD, N_FACT_EMBD)), np.zeros((N_FACT_EMBD, N_FACT_EMBD))
    project[:2, :N_CODE, ONE] = 1.0
    project[2, :N_CODE, OWN] = np.eye(N_CODE)
    out[BEFORE, :N_CODE] = np.eye(N_CODE) * is_on
    taps = np.tile([0.0, 1.0, 0.0], (N_FACT_EMBD, 1))
    return {
        "shortconv.in_proj": project.reshape(3 * N_FACT_EMBD, N_FACT_EMBD),
        "shortconv.conv": taps,
        "shortconv.out_proj": out,
    }


def _write(path: Path, weights: Weights, n_embd: int, n_ff: int, n_head: int, rope_freq_base: float) -> Path:
    assert N_VOCAB >= N_VOCAB_MIN
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_name("tiny-hybrid")
    writer.add_block_count(N_LAYER)
    writer.add_context_length(8192)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv([0, 1, 0, 1])
    writer.add_key_length(n_embd // n_head)
    writer.add_value_length(n_embd // n_head)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_rope_freq_base(rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_uint32("lfm2.shortconv.l_cache", N_TAP)  # the lowest gguf has no word for it
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_vocabulary(writer, N_VOCAB)
    norms = {"token_embd_norm": np.ones(n_embd)}
    for layer in range(N_LAYER):
        norms |= {f"blk.{layer}.{name}": np.ones(n_embd) for name in ("attn_norm", "ffn_norm")}
    for name, tensor in (weights | norms).items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return path
