"""Eyes that look at a picture as a whole and in tiles."""

from __future__ import annotations

import numpy as np

from .tensors import IMAGE, N_FF, N_GRID, N_INSIDE, N_JOINED, PATCH, Head, Tensors, normed, two
from .trunks import HALVES, Trunk

N_QUERY = 6


def _llama4(tensors: Tensors, n_text: int) -> None:
    tensors.matrices(
        model__mlp__1=(N_INSIDE, N_JOINED), model__mlp__2=(N_INSIDE, N_INSIDE), model__fc=(n_text, N_INSIDE)
    )


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


def _mini(tensors: Tensors, n_text: int) -> None:
    """MiniCPM's 4.6: four patches become one behind the first layer, and four of those a token."""
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        tensors.linear(f"v.vit_merger.{part}", N_INSIDE, N_INSIDE)
    tensors.norm("v.vit_merger.ln1")
    tensors.norm("v.vit_merger.ds_ln", N_JOINED)
    tensors.linear("v.vit_merger.ds_ffn_up", N_FF, N_JOINED)
    tensors.linear("v.vit_merger.ds_ffn_down", N_INSIDE, N_FF)
    normed(two("mm.up", "mm.down", N_JOINED, N_FF), N_JOINED)(tensors, n_text)


def _step(tensors: Tensors, n_text: int) -> None:
    """Two convolutions that halve rows and columns."""
    for name, n_out, n_in in (("mm.0", N_FF, N_INSIDE), ("mm.1", N_JOINED, N_FF)):
        tensors.conv(name, n_out, n_in, 3, 3)
        tensors.bias(f"{name}.bias", n_out)
    tensors.matrices(model__fc=(n_text, N_JOINED))


def _granite(tensors: Tensors, n_text: int) -> None:
    """Queries that attend to a window of patches; and a token at the end of each row."""
    n = GRANITE.n_inside
    tensors.vector("v.image_newline", n_text)
    for i in range(2):
        tensors.vector(f"v.proj_blk.{i}.img_pos", 4 * 4, n)
        tensors.vector(f"v.proj_blk.{i}.query", 2 * 2, n)
        tensors.norm(f"v.proj_blk.{i}.norm", n)
        tensors.norm(f"v.proj_blk.{i}.post_norm", n)
        tensors.queries(f"v.proj_blk.{i}", n, n)
        tensors.linear(f"v.proj_blk.{i}.linear", n_text, n)


# Tiles of 32 x 32; one projector takes means of the first layer, and the other one of four patches of the second.
GRANITE = Trunk(
    n_block=2,
    positions=(8**2,),
    patch_size=4,
    n_inside=64,
    n_head=1,
    keys={
        "image_grid_pinpoints": [32, 32, 64, 32, 64, 64],
        "feature_layer": [0, 1],
        "projector.spatial_offsets": [-1, 1],
        "projector.window_side": 4,
        "projector.query_side": 2,
    },
)

TILING: dict[str, tuple[Trunk, Head]] = {
    "idefics3": (
        Trunk(keys=HALVES | {"preproc_image_size": 2 * IMAGE}),
        lambda tensors, n_text: tensors.matrices(model__fc=(n_text, N_JOINED)),
    ),
    "internvl": (
        Trunk(positions=(N_GRID + 1,), before=(), keys=HALVES | {"preproc_max_tiles": 4}),
        normed(two("mm.model.mlp.1", "mm.model.mlp.3", N_JOINED, N_FF), N_JOINED, "mm.model.mlp.0"),
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
    "resampler": (
        Trunk(positions=(70**2,), keys={"clip.minicpmv_version": np.int32(3), "clip.minicpmv_query_num": N_QUERY}),
        _resampler,
    ),
    "minicpmv4_6": (
        Trunk(n_block=2, positions=(70**2,), patch_size=4, keys={"projector.scale_factor": 4, "wa_layer_indexes": [0]}),
        _mini,
    ),
    # whose tiles are 504 x 504, of which a patch has to be a part
    "step3vl": (Trunk(image=56, patch_size=14), _step),
    "granite4_vision": (GRANITE, _granite),
}
