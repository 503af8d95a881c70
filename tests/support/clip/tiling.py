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
}
