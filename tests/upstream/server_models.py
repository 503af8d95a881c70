"""Tiny random-weight GGUFs for the models that upstream's server tests name, in a folder laid out as a hub.

They have the architectures, special tokens and file names of the originals, not their words. What they write is letters
and spaces, never an end of text.
"""

from __future__ import annotations

import string
import struct
import zlib
from pathlib import Path

import gguf
import numpy as np

SPACE = "\u2581"  # how a SentencePiece vocabulary writes a space
KIND = gguf.TokenType
N_EMBD, N_HEAD, N_HEAD_KV, HEAD_SIZE, N_FF = 64, 4, 2, 16, 96
CONTEXT_LENGTH = 8192
N_EXPERT = 4

# Pairs make texts as many tokens as upstream's vocabulary does, nearly. Those on the first line win over the others:
# upstream counts on " Hello 1" being 5 tokens and on "Hi how are you" being 8, <s> included.
PAIRS = """el lo ow re ou
    th he in er an on at en nd ti es or te of ed is it al ar st to nt ng se ha as io le ve co me de hi ri ro ic ne ea ra
    ce li ch ll be ma si om ur um ox""".split()
FIM = {"prefix": "<fim_prefix>", "suffix": "<fim_suffix>", "middle": "<fim_middle>"}
# Upstream counts on " hello" and " Hello" being one token to the larger models.
HELLO = ("ello", f"{SPACE}hello", f"{SPACE}Hello")
IMAGE_MARKS = ("<start_of_image>", "<end_of_image>")


def write_hub(folder: Path, vocabularies: Path) -> Path:
    """Write folder/<owner>/<name>/<file> for all that the tests fetch; vocabularies: upstream's ggml-vocab-*.gguf."""

    def place(name: str) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return folder / name

    stories = place("ggml-org/test-model-stories260K/stories260K-F32.gguf")
    _llama(stories, seed=10)  # a seed with which no word that a test expects is written by chance
    _llama(
        place("ggml-org/test-model-stories260K-infill/stories260K-infill-F32.gguf"), extra=tuple(FIM.values()), seed=1
    )
    for name in (
        "ggml-org/models/tinyllamas/stories260K.gguf",
        "ggml-org/test-model-router-download/stories260K-F16.gguf",
    ):
        place(name).write_bytes(stories.read_bytes())
    _llama(place("ggml-org/models/tinyllamas/split/stories15M-q8_0.gguf"), seed=2, n_files=3)
    _llama(place("ggml-org/stories15M_MOE/stories15M_MOE-F16.gguf"), pieces=HELLO, n_expert=N_EXPERT, seed=3)
    _lora(place("ggml-org/stories15M_MOE/moe_shakespeare15M.gguf"))
    _llama(place("ggml-org/tiny-llamas/stories15M-q4_0.gguf"), pieces=HELLO, seed=4)
    words = vocabularies / "ggml-vocab-bert-bge.gguf"
    _bert(place("ggml-org/models/bert-bge-small/ggml-model-f16.gguf"), words)
    _bert(place("ggml-org/models/jina-reranker-v1-tiny-en/ggml-model-f16.gguf"), words, ranks=True, seed=5)
    _gemma3(place("ggml-org/tinygemma3-GGUF/tinygemma3-Q8_0.gguf"))
    _vision(place("ggml-org/tinygemma3-GGUF/mmproj-tinygemma3.gguf"))
    _png(place("ggml-org/tinygemma3-GGUF/test/11_truck.png"), seed=11)
    _png(place("ggml-org/tinygemma3-GGUF/test/91_cat.png"), seed=91)
    place("ggml-org/test-preset-ci/preset.ini").write_text(
        "[tinygemma3-preset]\nhf-repo = ggml-org/tinygemma3-GGUF:Q8_0\n\n"
        "[stories260K-test]\nhf-repo = ggml-org/test-model-stories260K\n"
    )
    return folder


class _Weights:
    """Random tensors by GGUF name, shapes (n_out, n_in). The first channel is the same for every token."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> np.ndarray:
        values = self.rng.standard_normal(shape) * gain / np.sqrt(shape[-1])
        self.tensors[name] = values.astype(np.float32)
        return self.tensors[name]

    def residual(self, name: str, *shape: int) -> None:
        """What is added to the residual stream leaves the first channel alone."""
        self.matrix(name, *shape)[..., 0, :] = 0

    def norm(self, name: str, n: int = N_EMBD, bias: bool = False) -> np.ndarray:
        self.tensors[f"{name}.weight"] = self.rng.uniform(0.8, 1.2, n).astype(np.float32)
        if bias:
            self.vector(f"{name}.bias", n)
        return self.tensors[f"{name}.weight"]

    def vector(self, name: str, n: int) -> None:
        self.tensors[name] = (0.1 * self.rng.standard_normal(n)).astype(np.float32)


def _llama(
    path: Path,
    extra: tuple[str, ...] = (),
    pieces: tuple[str, ...] = (),
    n_expert: int = 0,
    n_files: int = 1,
    seed: int = 0,
) -> None:
    n_layer = 2
    weights = _Weights(seed)
    tokens = _letters(extra, pieces)
    _add_ends(weights, tokens)
    for layer in range(n_layer):
        block = f"blk.{layer}."
        weights.norm(f"{block}attn_norm")
        weights.norm(f"{block}ffn_norm")
        _add_attention(weights, block)
        if n_expert:
            weights.matrix(f"{block}ffn_gate_inp.weight", n_expert, N_EMBD)
            weights.matrix(f"{block}ffn_gate_exps.weight", n_expert, N_FF, N_EMBD)
            weights.matrix(f"{block}ffn_up_exps.weight", n_expert, N_FF, N_EMBD)
            weights.residual(f"{block}ffn_down_exps.weight", n_expert, N_EMBD, N_FF)
        else:
            _add_ffn(weights, block)
    n_tensors_a_file = -(-len(weights.tensors) // n_files) if n_files > 1 else 0
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=n_tensors_a_file)
    _add_sizes(writer, n_layer)
    if n_expert:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)
    _add_vocabulary(writer, tokens)
    if extra:
        writer.add_uint32("tokenizer.ggml.fim_pre_token_id", tokens.index(FIM["prefix"]))
        writer.add_uint32("tokenizer.ggml.fim_suf_token_id", tokens.index(FIM["suffix"]))
        writer.add_uint32("tokenizer.ggml.fim_mid_token_id", tokens.index(FIM["middle"]))
    _finish(writer, weights)


def write_gemma3(model: Path, projector: Path) -> None:
    """A Gemma 3 and its projector, whose images have 36 tokens that attend to each other both ways."""
    _gemma3(model)
    _vision(projector)


def _gemma3(path: Path) -> None:
    """Sliding-window attention in five of six layers, as in the original."""
    n_layer = 6
    weights = _Weights(6)
    tokens = _letters(IMAGE_MARKS, HELLO)
    _add_ends(weights, tokens)
    for layer in range(n_layer):
        block = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            weights.norm(block + name)
        for name in ("post_attention_norm", "post_ffw_norm"):
            weights.norm(block + name)[0] = 0
        for name in ("attn_q_norm", "attn_k_norm"):
            weights.norm(block + name, HEAD_SIZE)
        _add_attention(weights, block)
        _add_ffn(weights, block)
    writer = gguf.GGUFWriter(path, "gemma3")
    _add_sizes(writer, n_layer)
    writer.add_sliding_window(512)
    _add_vocabulary(writer, tokens, add_space_prefix=False)
    _finish(writer, weights)


def _vision(path: Path) -> None:
    """A SigLIP of one layer with Gemma 3's projector: 36 tokens an image."""
    image_size, patch_size, n_merge, n_vision = 96, 8, 2, 32
    weights = _Weights(7)
    weights.matrix("v.patch_embd.weight", n_vision, 3, patch_size, patch_size)
    weights.vector("v.patch_embd.bias", n_vision)
    weights.matrix("v.position_embd.weight", (image_size // patch_size) ** 2, n_vision)
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        weights.matrix(f"v.blk.0.{name}.weight", n_vision, n_vision)
        weights.vector(f"v.blk.0.{name}.bias", n_vision)
    for name, n_out, n_in in (("ffn_up", N_FF, n_vision), ("ffn_down", n_vision, N_FF)):
        weights.matrix(f"v.blk.0.{name}.weight", n_out, n_in)
        weights.vector(f"v.blk.0.{name}.bias", n_out)
    for name in ("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln"):
        weights.norm(name, n_vision, bias=True)
    weights.norm("mm.soft_emb_norm", n_vision)
    weights.matrix("mm.input_projection.weight", n_vision, N_EMBD)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("gemma3")
    writer.add_vision_image_size(image_size)
    writer.add_vision_patch_size(patch_size)
    writer.add_vision_embedding_length(n_vision)
    writer.add_vision_feed_forward_length(N_FF)
    writer.add_vision_projection_dim(N_EMBD)
    writer.add_vision_block_count(1)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_projector_scale_factor(n_merge)
    writer.add_vision_use_gelu(True)
    _finish(writer, weights)


def _bert(path: Path, vocabulary: Path, ranks: bool = False, seed: int = 8) -> None:
    """BERT with the words of bge-small; ranks: with a classifier for one score, as a reranker has it."""
    reader = gguf.GGUFReader(vocabulary)
    fields = {name: field for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    n_vocab = len(fields["tokenizer.ggml.tokens"].data)
    n_layer, n_context = 2, 512
    weights = _Weights(seed)
    weights.matrix("token_embd.weight", n_vocab, N_EMBD, gain=8)
    weights.matrix("token_types.weight", 2, N_EMBD)
    weights.matrix("position_embd.weight", n_context, N_EMBD)
    weights.norm("token_embd_norm", bias=True)
    for layer in range(n_layer):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.matrix(f"{block}{name}.weight", N_EMBD, N_EMBD)
            weights.vector(f"{block}{name}.bias", N_EMBD)
        for name, n_out, n_in in (("ffn_up", N_FF, N_EMBD), ("ffn_down", N_EMBD, N_FF)):
            weights.matrix(f"{block}{name}.weight", n_out, n_in)
            weights.vector(f"{block}{name}.bias", n_out)
        weights.norm(f"{block}attn_output_norm", bias=True)
        weights.norm(f"{block}layer_output_norm", bias=True)
    if ranks:
        weights.matrix("cls.weight", N_EMBD, N_EMBD)
        weights.vector("cls.bias", N_EMBD)
        weights.matrix("cls.output.weight", 1, N_EMBD)
        weights.vector("cls.output.bias", 1)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(n_layer)
    writer.add_context_length(n_context)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if ranks else gguf.PoolingType.CLS)
    for name, field in fields.items():
        items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], items)
    _finish(writer, weights)


def _lora(path: Path) -> None:
    """An adapter of rank 4 for the attention of the stand-in for stories15M_MOE."""
    rank = 4
    weights = _Weights(9)
    for layer in range(2):
        for name, n_out in (("attn_q", N_HEAD * HEAD_SIZE), ("attn_v", N_HEAD_KV * HEAD_SIZE)):
            weights.matrix(f"blk.{layer}.{name}.weight.lora_a", rank, N_EMBD)
            weights.matrix(f"blk.{layer}.{name}.weight.lora_b", n_out, rank)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    _finish(writer, weights)


def _add_ends(weights: _Weights, tokens: list[str]) -> None:
    """Embeddings and output. The first channel, 1 for all, speaks against what is no letter or space."""
    weights.matrix("token_embd.weight", len(tokens), N_EMBD, gain=8)[:, 0] = 1
    weights.norm("output_norm")
    # So flat that ten tokens and more pass min_p, which a test counts on.
    output = weights.matrix("output.weight", len(tokens), N_EMBD, gain=1.2)
    output[:, 0] = [0.0 if token.lstrip(SPACE).isalpha() else -100.0 for token in tokens]


def _add_attention(weights: _Weights, block: str) -> None:
    weights.matrix(f"{block}attn_q.weight", N_HEAD * HEAD_SIZE, N_EMBD)
    weights.matrix(f"{block}attn_k.weight", N_HEAD_KV * HEAD_SIZE, N_EMBD)
    weights.matrix(f"{block}attn_v.weight", N_HEAD_KV * HEAD_SIZE, N_EMBD)
    weights.residual(f"{block}attn_output.weight", N_EMBD, N_HEAD * HEAD_SIZE)


def _add_ffn(weights: _Weights, block: str) -> None:
    weights.matrix(f"{block}ffn_gate.weight", N_FF, N_EMBD)
    weights.matrix(f"{block}ffn_up.weight", N_FF, N_EMBD)
    weights.residual(f"{block}ffn_down.weight", N_EMBD, N_FF)


def _add_sizes(writer: gguf.GGUFWriter, n_layer: int) -> None:
    writer.add_block_count(n_layer)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)


def _letters(specials: tuple[str, ...] = (), pieces: tuple[str, ...] = ()) -> list[str]:
    """A vocabulary with every byte as fallback; what comes first is merged first."""
    letters = [SPACE, *string.ascii_letters]
    starts = [SPACE + letter for letter in string.ascii_letters]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return ["<unk>", "<s>", "</s>", *bytes_, *specials, *PAIRS, *starts, f"{SPACE}you", *pieces, *letters]


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str], add_space_prefix: bool = True) -> None:
    def kind(token: str) -> gguf.TokenType:
        if token == "<unk>":
            return KIND.UNKNOWN
        if token.startswith("<0x"):
            return KIND.BYTE
        return KIND.CONTROL if token.startswith("<") else KIND.NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind(token) for token in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(add_space_prefix)


def _finish(writer: gguf.GGUFWriter, weights: _Weights) -> None:
    for name, tensor in weights.tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _png(path: Path, seed: int) -> None:
    """A picture of 32 x 32 random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)  # 8 bits, RGB
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
