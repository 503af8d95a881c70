"""Eyes that join two rows and two columns of patches to a token."""

from __future__ import annotations

from dataclasses import replace

from .tensors import IMAGE, N_FF, N_INSIDE, N_JOINED, N_SIDE, PATCH, Head, Tensors, normed, two
from .trunks import HALVES, MERGED, PIXELS, Trunk


def _deepstack(tensors: Tensors, n_text: int) -> None:
    """And what the text model's first layer adds to its own."""
    tensors.norm("v.deepstack.0.norm", N_JOINED)
    tensors.linear("v.deepstack.0.fc1", N_JOINED, N_JOINED)
    tensors.linear("v.deepstack.0.fc2", n_text, N_JOINED)
    two("mm.0", "mm.2", N_JOINED)(tensors, n_text)


def _dots(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.post_norm", has_bias=False)
    del tensors["v.post_ln.weight"]
    normed(two("mm.0", "mm.2", N_JOINED), N_INSIDE)(tensors, n_text)


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


def _nemotron(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.model.mlp.0", N_JOINED, has_bias=False)
    tensors.matrices(model__mlp__1=(N_FF, N_JOINED), model__mlp__3=(n_text, N_FF))


def _dots3(tensors: Tensors, n_text: int) -> None:
    """The second layer's network are experts."""
    _dots(tensors, n_text)
    block, n_expert = "v.blk.1", 4
    for part in ("ffn_up", "ffn_gate", "ffn_down"):
        del tensors[f"{block}.{part}.weight"], tensors[f"{block}.{part}.bias"]
    tensors.matrix(f"{block}.ffn_gate_inp.weight", n_expert, N_INSIDE)
    tensors.bias(f"{block}.exp_probs_b.weight", n_expert)
    for part, shape in (("up", (N_FF, N_INSIDE)), ("gate", (N_FF, N_INSIDE)), ("down", (N_INSIDE, N_FF))):
        tensors.matrix(f"{block}.ffn_{part}_exps.weight", n_expert, *shape)


def _glm5(tensors: Tensors, n_text: int) -> None:
    _glm(tensors, n_text)
    del tensors["v.norm_embd.weight"]


def _mimo(tensors: Tensors, n_text: int) -> None:
    """Its heads share one K and V; those of layers that attend in windows have a sink."""
    for i in range(3):
        for end in ("weight", "bias"):
            name = f"v.blk.{i}.attn_qkv.{end}"
            tensors[name] = tensors[name][: 2 * N_INSIDE]
        tensors.vector(f"v.blk.{i}.attn_sinks", 2)
    tensors.matrix("mm.0.weight", N_FF, N_JOINED)
    tensors.matrix("mm.2.weight", n_text, N_FF)


def _minimax(tensors: Tensors, n_text: int) -> None:
    tensors.linear("mm.1", N_FF, N_INSIDE)
    tensors.linear("mm.2", N_INSIDE, N_FF)
    two("mm.merger.fc1", "mm.merger.fc2", N_JOINED)(tensors, n_text)


def _muse(tensors: Tensors, n_text: int) -> None:
    tensors.matrix("mm.0.weight", N_FF, N_JOINED)
    tensors.matrix("mm.1.weight", N_FF, N_FF)
    tensors.matrix("mm.2.weight", n_text, N_FF)


def _deepseek4(tensors: Tensors, n_text: int) -> None:
    """Tokens before an image, behind it, at the end of each row, and some that fill it up."""
    two("mm.1", "mm.2", N_JOINED)(tensors, n_text)
    for name in ("v.image_newline", "v.token_embd.img_start", "v.token_embd.img_end", "v.token_embd.img_pad"):
        tensors.vector(name, n_text)


GATED = Trunk(positions=None, has_patch_bias=False, has_means=False, is_gated=True, keys=MERGED)

MERGING: dict[str, tuple[Trunk, Head]] = {
    "nemotron_v2_vl": (Trunk(before=(2,), keys=HALVES), _nemotron),
    "lfm2": (Trunk(keys=HALVES), normed(two("mm.1", "mm.2", N_JOINED), N_JOINED)),
    "kimivl": (Trunk(keys=HALVES), normed(two("mm.1", "mm.2", N_JOINED), N_INSIDE)),
    "kimik25": (
        Trunk(positions=(N_SIDE, N_SIDE), keys=HALVES),
        normed(two("mm.1", "mm.2", N_JOINED), N_INSIDE),
    ),
    "paddleocr": (Trunk(keys=PIXELS), normed(two("mm.1", "mm.2", N_JOINED), N_INSIDE)),
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
        normed(two("mm.0", "mm.2", N_JOINED), N_INSIDE, has_bias=False),
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
        two("mm.0", "mm.2", N_JOINED),
    ),
    "ling3vl": (Trunk(n_frames=2), normed(two("mm.0", "mm.2", N_JOINED), N_INSIDE)),
    "pixtral": (GATED, _pixtral),
    "lightonocr": (replace(GATED, keys=MERGED | {"preproc_image_size": 2 * IMAGE}), _light),
    "glm4v": (
        Trunk(n_frames=2, positions=None, has_means=False, is_gated=True),
        _glm,
    ),
    "qwen2vl_merger": (Trunk(n_frames=2, positions=None, has_patch_bias=False), two("mm.0", "mm.2", N_JOINED)),
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
        two("mm.0", "mm.2", N_JOINED),
    ),
    "dots3note_v": (
        Trunk(
            n_block=2,
            positions=None,
            has_means=False,
            is_gated=True,
            keys=MERGED | PIXELS | {"expert_used_count": 2},
        ),
        _dots3,
    ),
    "glm5v": (
        Trunk(n_frames=2, positions=None, has_means=False, is_gated=True, keys=PIXELS | {"swiglu_clamp": 7.0}),
        _glm5,
    ),
    # of which the second layer attends in windows of rows, the third in windows of columns
    "mimovl": (
        Trunk(
            n_block=3,
            n_frames=2,
            positions=None,
            has_patch_bias=False,
            has_means=False,
            is_joined=True,
            is_gated=True,
            keys=PIXELS | {"attention.head_count_kv": 1, "window_size": 4, "wa_pattern_mode": [-1, 0, 1]},
        ),
        _mimo,
    ),
    "minimax_m3": (Trunk(n_frames=2, positions=None, has_patch_bias=False), _minimax),
    "muse-glimmer": (Trunk(n_block=2), _muse),
    "deepseek4v": (
        Trunk(positions=None, has_means=False, keys=HALVES | {"image_min_pixels": 256}),
        _deepseek4,
    ),
    "qwen3vl_merger": (Trunk(n_frames=2, is_joined=True), _deepstack),
}
