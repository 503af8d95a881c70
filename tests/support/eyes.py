"""What turns pictures into tokens, tiny and random, by kinds of projectors, as clip's loader wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gguf
import numpy as np

PATCH, IMAGE, N_INSIDE, N_FF = 8, 32, 32, 96
N_SIDE = IMAGE // PATCH
N_GRID = N_SIDE**2
N_JOINED = 4 * N_INSIDE  # of two rows and two columns
N_QUERY = 6


class Tensors(dict[str, np.ndarray]):
    """By name; shapes are (n_out, n_in)."""

    def __init__(self, seed: int):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def matrix(self, name: str, *shape: int) -> None:
        n_in = int(np.prod(shape[1:]))
        self[name] = (self.rng.standard_normal(shape) / np.sqrt(n_in)).astype(np.float32)

    def bias(self, name: str, *shape: int) -> None:
        self[name] = (0.1 * self.rng.standard_normal(shape)).astype(np.float32)

    def linear(self, name: str, n_out: int, n_in: int) -> None:
        self.matrix(f"{name}.weight", n_out, n_in)
        self.bias(f"{name}.bias", n_out)

    def norm(self, name: str, n: int = N_INSIDE, has_bias: bool = True) -> None:
        self[f"{name}.weight"] = self.rng.uniform(0.8, 1.2, n).astype(np.float32)
        if has_bias:
            self.bias(f"{name}.bias", n)

    def vector(self, name: str, *shape: int) -> None:
        self[name] = self.rng.standard_normal(shape).astype(np.float32)

    def matrices(self, **shapes: tuple[int, int]) -> None:
        """Their names begin with mm, and __ is a dot."""
        for name, shape in shapes.items():
            self.matrix(f"mm.{name.replace('__', '.')}.weight", *shape)

    def block(self, name: str) -> None:
        """A layer as CLIP has it."""
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            self.linear(f"{name}.{part}", N_INSIDE, N_INSIDE)
        self.linear(f"{name}.ffn_up", N_FF, N_INSIDE)
        self.linear(f"{name}.ffn_down", N_INSIDE, N_FF)
        for part in ("ln1", "ln2"):
            self.norm(f"{name}.{part}")


@dataclass(frozen=True)
class Trunk:
    """What patches go through before they are projected. keys: what the file says of it, behind clip.vision."""

    n_block: int = 1
    patch: tuple[int, ...] = (N_INSIDE, 3, PATCH, PATCH)
    has_patch_bias: bool = True
    n_frames: int = 1  # a picture is that many of a film
    positions: tuple[int, ...] | None = (N_GRID,)  # learned
    before: tuple[int, ...] | None = None  # tokens that are no patch
    has_means: bool = True  # norms take them off
    is_joined: bool = False  # Q, K and V in one
    is_gated: bool = False
    patch_size: int = PATCH
    n_inside: int = N_INSIDE
    keys: Mapping[str, Any] = field(default_factory=dict)

    def add(self, tensors: Tensors) -> None:
        for i in range(self.n_frames):
            tensors.matrix("v.patch_embd.weight" + f".{i}" * bool(i), *self.patch)
        if self.has_patch_bias:
            tensors.bias("v.patch_embd.bias", N_INSIDE)
        if self.positions is not None:
            tensors.matrix("v.position_embd.weight", *self.positions, N_INSIDE)
        if self.before is not None:
            tensors.vector("v.class_embd", *self.before, N_INSIDE)
        for i in range(self.n_block):
            self._add_block(tensors, f"v.blk.{i}")
        tensors.norm("v.post_ln", has_bias=self.has_means)

    def _add_block(self, tensors: Tensors, block: str) -> None:
        tensors.block(block)
        if self.is_gated:
            tensors.linear(f"{block}.ffn_gate", N_FF, N_INSIDE)
        if not self.has_means:
            del tensors[f"{block}.ln1.bias"], tensors[f"{block}.ln2.bias"]
        if self.is_joined:
            for end in ("weight", "bias"):
                parts = [tensors.pop(f"{block}.attn_{x}.{end}") for x in "qkv"]
                tensors[f"{block}.attn_qkv.{end}"] = np.concatenate(parts)


@dataclass(frozen=True)
class Mobile(Trunk):
    """MobileNet V5: two stages, each of half the size; the second has a block of convolutions and one that attends."""

    patch_size: int = 2  # so that clip counts the tokens that there are
    n_inside: int = 64  # as the text model

    def add(self, tensors: Tensors) -> None:
        n = self.n_inside

        def point(name: str, n_out: int, n_in: int) -> None:
            tensors.matrix(f"{name}.weight", n_out, n_in, 1, 1)

        def depth(name: str, n_channel: int) -> None:
            tensors.matrix(f"{name}.weight", n_channel, 1, 3, 3)
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].astype(np.float16)

        tensors.matrix("v.conv_stem.conv.weight", N_INSIDE, 3, 3, 3)
        tensors.norm("v.conv_stem.bn", has_bias=False)
        tensors.matrix("v.blk.0.0.conv_exp.weight", n, N_INSIDE, 3, 3)
        point("v.blk.0.0.conv_pwl", n, n)
        for name in ("dw_start", "dw_mid"):
            depth(f"v.blk.1.0.{name}.conv", n)
        for name in ("pw_exp", "pw_proj"):
            point(f"v.blk.1.0.{name}.conv", n, n)
        for name, n_out in (("query", n), ("key", N_INSIDE), ("value", N_INSIDE), ("output", n)):
            point(f"v.blk.1.1.attn.{name}.proj", n_out, n)
        tensors.norm("v.blk.1.1.norm", n, has_bias=False)
        for name in ("exp", "proj"):
            point(f"v.msfa.ffn.pw_{name}.conv", n, n)
        tensors.norm("v.msfa.norm", n, has_bias=False)


Head = Callable[[Tensors, int], None]  # takes the size of the text model's embeddings


def _two(first: str, second: str, n_in: int, n_middle: int | None = None) -> Head:
    """Two products, with an activation between them."""

    def add(tensors: Tensors, n_text: int) -> None:
        tensors.linear(first, n_middle or n_in, n_in)
        tensors.linear(second, n_text, n_middle or n_in)

    return add


def _normed(then: Head, n: int, name: str = "mm.input_norm", has_bias: bool = True) -> Head:
    def add(tensors: Tensors, n_text: int) -> None:
        tensors.norm(name, n, has_bias)
        then(tensors, n_text)

    return add


def _deepstack(tensors: Tensors, n_text: int) -> None:
    """And what the text model's first layer adds to its own."""
    tensors.norm("v.deepstack.0.norm", N_JOINED)
    tensors.linear("v.deepstack.0.fc1", N_JOINED, N_JOINED)
    tensors.linear("v.deepstack.0.fc2", n_text, N_JOINED)
    _two("mm.0", "mm.2", N_JOINED)(tensors, n_text)


def _dots(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.post_norm", has_bias=False)
    del tensors["v.post_ln.weight"]
    _normed(_two("mm.0", "mm.2", N_JOINED), N_INSIDE)(tensors, n_text)


def _llama4(tensors: Tensors, n_text: int) -> None:
    tensors.matrices(
        model__mlp__1=(N_INSIDE, N_JOINED), model__mlp__2=(N_INSIDE, N_INSIDE), model__fc=(n_text, N_INSIDE)
    )


def _light(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.input_norm", has_bias=False)
    tensors.matrices(patch_merger=(N_INSIDE, N_JOINED))
    tensors.linear("mm.1", n_text, N_INSIDE)
    tensors.linear("mm.2", n_text, n_text)


def _pixtral(tensors: Tensors, n_text: int) -> None:
    """And a token at the end of each row."""
    _light(tensors, n_text)
    tensors.vector("v.token_embd.img_break", n_text)


def _glm(tensors: Tensors, n_text: int) -> None:
    tensors.norm("v.norm_embd", has_bias=False)
    tensors.matrix("mm.patch_merger.weight", n_text, N_INSIDE, 2, 2)
    tensors.bias("mm.patch_merger.bias", n_text)
    tensors.norm("mm.post_norm", n_text)
    tensors.matrices(model__fc=(n_text, n_text), up=(N_FF, n_text), gate=(N_FF, n_text), down=(n_text, N_FF))


def _edge(tensors: Tensors, n_text: int) -> None:
    """GLM Edge's, and a token before an image and one behind it."""
    tensors.matrix("adapter.conv.weight", n_text, N_INSIDE, 2, 2)
    tensors.bias("adapter.conv.bias", n_text)
    tensors.norm("adapter.linear.norm1", n_text)
    sizes = {"linear": (n_text, n_text), "dense_h_to_4h": (N_FF, n_text), "gate": (N_FF, n_text)}
    for name, shape in (sizes | {"dense_4h_to_h": (n_text, N_FF)}).items():
        tensors.matrix(f"adapter.linear.{name}.weight", *shape)
    for name in ("adapter.boi", "adapter.eoi"):
        tensors.vector(name, n_text)


def _resampler(tensors: Tensors, n_text: int) -> None:
    """MiniCPM's: queries that attend to all patches become the tokens; its heads have 128 dimensions."""
    tensors.vector("resampler.pos_embed_k", 1, n_text)  # which clip wants and does not use
    tensors.vector("resampler.query", N_QUERY, n_text)
    tensors.matrix("resampler.kv.weight", n_text, N_INSIDE)
    tensors.matrix("resampler.proj.weight", n_text, n_text)
    for name in ("q", "k", "v", "out"):
        tensors.linear(f"resampler.attn.{name}", n_text, n_text)
    for name in ("q", "kv", "post"):
        tensors.norm(f"resampler.ln_{name}", n_text)


def _cogvlm(tensors: Tensors, n_text: int) -> None:
    """And a token before an image and one behind it."""
    tensors.norm("mm.post_fc_norm", n_text)
    tensors.matrices(model__fc=(n_text, N_INSIDE), up=(N_FF, n_text), gate=(N_FF, n_text), down=(n_text, N_FF))
    for name in ("v.boi", "v.eoi"):
        tensors.vector(name, n_text)


def _nemotron(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.model.mlp.0", N_JOINED, has_bias=False)
    tensors.matrices(model__mlp__1=(N_FF, N_JOINED), model__mlp__3=(n_text, N_FF))


def _gemma4(tensors: Tensors, n_text: int) -> None:
    tensors.matrices(input_projection=(n_text, N_INSIDE))


def _unified(tensors: Tensors, n_text: int) -> None:
    """Pixels are projected at once."""
    for i, n in enumerate((3 * (2 * PATCH) ** 2, N_INSIDE, N_INSIDE), start=1):
        tensors.norm(f"v.patch_norm.{i}", n)
    _gemma4(tensors, n_text)


def _gemma3n(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.soft_emb_norm", n_text, has_bias=False)
    tensors.matrices(input_projection=(n_text, n_text))


HALVES, MERGED = {"projector.scale_factor": 2}, {"spatial_merge_size": 2}
PIXELS = {"image_min_pixels": 256, "image_max_pixels": 4096}
GATED = Trunk(positions=None, has_patch_bias=False, has_means=False, is_gated=True, keys=MERGED)
TABLES = (2, 64)  # of rows and of columns

# By clip's names.
EYES: dict[str, tuple[Trunk, Head]] = {
    "mlp": (Trunk(n_block=2), _two("mm.0", "mm.2", N_INSIDE)),  # which leaves the last layer out
    "janus_pro": (Trunk(), _two("mm.0", "mm.1", N_INSIDE)),
    "phi4": (Trunk(keys=PIXELS), _two("mm.0", "mm.2", N_INSIDE)),
    # in tiles, and all of it as one
    "idefics3": (
        Trunk(keys=HALVES | {"preproc_image_size": 2 * IMAGE}),
        lambda tensors, n_text: tensors.matrices(model__fc=(n_text, N_JOINED)),
    ),
    "internvl": (
        Trunk(positions=(N_GRID + 1,), before=(), keys=HALVES | {"preproc_max_tiles": 4}),
        _normed(_two("mm.model.mlp.1", "mm.model.mlp.3", N_JOINED, N_FF), N_JOINED, "mm.model.mlp.0"),
    ),
    "llama4": (
        Trunk(
            patch=(N_INSIDE, 3 * PATCH**2),
            has_patch_bias=False,
            positions=(N_GRID + 1,),
            before=(),
            keys=HALVES,
        ),
        _llama4,
    ),
    "cogvlm": (Trunk(positions=(N_GRID + 1,), before=(), is_joined=True), _cogvlm),
    "nemotron_v2_vl": (Trunk(before=(2,), keys=HALVES), _nemotron),
    "lfm2": (Trunk(keys=HALVES), _normed(_two("mm.1", "mm.2", N_JOINED), N_JOINED)),
    "adapter": (Trunk(), _edge),
    # in tiles, and all of it as one
    "resampler": (
        Trunk(positions=(70**2,), keys={"clip.minicpmv_version": np.int32(3), "clip.minicpmv_query_num": N_QUERY}),
        _resampler,
    ),
    "kimivl": (Trunk(keys=HALVES), _normed(_two("mm.1", "mm.2", N_JOINED), N_INSIDE)),
    "kimik25": (
        Trunk(positions=(N_SIDE, N_SIDE), keys=HALVES),
        _normed(_two("mm.1", "mm.2", N_JOINED), N_INSIDE),
    ),
    "paddleocr": (Trunk(keys=PIXELS), _normed(_two("mm.1", "mm.2", N_JOINED), N_INSIDE)),
    "dots_ocr": (
        Trunk(positions=None, has_means=False, is_gated=True, keys=HALVES | PIXELS),
        _dots,
    ),
    # in windows, but for its last layer
    "youtuvl": (
        Trunk(
            n_block=2,
            patch=(N_INSIDE, 3 * PATCH**2),
            positions=None,
            keys={"window_size": 2 * PATCH * 2, "wa_layer_indexes": [1]},
        ),
        _normed(_two("mm.0", "mm.2", N_JOINED), N_INSIDE, has_bias=False),
    ),
    "exaone4_5": (
        Trunk(
            n_frames=2,
            positions=None,
            has_patch_bias=False,
            has_means=False,
            is_joined=True,
            is_gated=True,
            keys=PIXELS | {"attention.head_count_kv": 2},
        ),
        _two("mm.0", "mm.2", N_JOINED),
    ),
    "ling3vl": (Trunk(n_frames=2), _normed(_two("mm.0", "mm.2", N_JOINED), N_INSIDE)),
    "pixtral": (GATED, _pixtral),
    "lightonocr": (replace(GATED, keys=MERGED | {"preproc_image_size": 2 * IMAGE}), _light),
    "glm4v": (
        Trunk(n_frames=2, positions=None, has_means=False, is_gated=True),
        _glm,
    ),
    "gemma3nv": (Mobile(), _gemma3n),
    "gemma4v": (
        Trunk(positions=TABLES, has_patch_bias=False, has_means=False, keys=HALVES),
        _gemma4,
    ),
    "gemma4uv": (
        Trunk(n_block=0, patch=(N_INSIDE, 3 * (2 * PATCH) ** 2), positions=TABLES, keys=HALVES),
        _unified,
    ),
    "qwen2vl_merger": (Trunk(n_frames=2, positions=None, has_patch_bias=False), _two("mm.0", "mm.2", N_JOINED)),
    # of which the first layer attends in windows
    "qwen2.5vl_merger": (
        Trunk(
            n_block=2,
            n_frames=2,
            positions=None,
            has_patch_bias=False,
            has_means=False,
            is_gated=True,
            keys={"n_wa_pattern": 2},
        ),
        _two("mm.0", "mm.2", N_JOINED),
    ),
    "qwen3vl_merger": (Trunk(n_frames=2, is_joined=True), _deepstack),
}


def add_eyes(writer: gguf.GGUFWriter, tensors: Tensors, kind: str, n_text: int) -> None:
    """kind: one of EYES; what is not there (hunyuanvl) gets janus_pro's, which nobody loads."""
    trunk, add_head = EYES.get(kind, EYES["janus_pro"])
    trunk.add(tensors)
    add_head(tensors, n_text)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_image_size(IMAGE)
    writer.add_vision_patch_size(trunk.patch_size)
    writer.add_vision_embedding_length(trunk.n_inside)
    writer.add_vision_feed_forward_length(N_FF)
    writer.add_vision_projection_dim(n_text)
    writer.add_vision_block_count(trunk.n_block)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    for key, value in trunk.keys.items():
        add = {int: writer.add_uint32, list: writer.add_array, np.int32: writer.add_int32}[type(value)]
        add(key if key.startswith("clip.") else f"clip.vision.{key}", value)
    if trunk.is_gated:
        writer.add_vision_use_silu(True)
    else:
        writer.add_vision_use_gelu(True)
