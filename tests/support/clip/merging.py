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
    "qwen3vl_merger": (Trunk(n_frames=2, is_joined=True), _deepstack),
}
