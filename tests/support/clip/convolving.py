"""Eyes that are convolutions, or have some before them: DeepSeek OCR's, behind SAM, and Reka's."""

from __future__ import annotations

from dataclasses import dataclass

from .tensors import N_FF, N_INSIDE, Head, Tensors, two
from .trunks import Trunk

N_SAM, N_NECK = 16, 8
WINDOW = 14


@dataclass(frozen=True)
class Sam(Trunk):
    """SAM, of 1,024 x 1,024 pixels, before the trunk: two layers that attend in windows, and one to all of it.

    Then convolutions that leave one of 16 patches.
    """

    def add(self, tensors: Tensors) -> None:
        tensors.vector("v.sam.pos_embd.weight", 1, 64, 64, N_SAM)
        tensors.conv("v.sam.patch_embd", N_SAM, 3, 16, 16)
        tensors.bias("v.sam.patch_embd.bias", N_SAM)
        for i, side in enumerate((WINDOW, WINDOW, 64)):
            block = f"v.sam.blk.{i}"
            for part in ("pre_ln", "post_ln"):
                tensors.norm(f"{block}.{part}", N_SAM)
            for part in ("pos_h", "pos_w"):
                tensors.bias(f"{block}.attn.{part}.weight", 2 * side - 1, N_SAM)
            for part, n_out, n_in in (
                ("attn.qkv", 3 * N_SAM, N_SAM),
                ("attn.out", N_SAM, N_SAM),
                ("mlp.lin1", N_FF, N_SAM),
                ("mlp.lin2", N_SAM, N_FF),
            ):
                tensors.linear(f"{block}.{part}", n_out, n_in)
        tensors.conv("v.sam.neck.0", N_NECK, N_SAM, 1, 1)
        tensors.norm("v.sam.neck.1", N_NECK)
        tensors.conv("v.sam.neck.2", N_NECK, N_NECK, 3, 3)
        tensors.norm("v.sam.neck.3", N_NECK)
        tensors.conv("v.sam.net_2", 2 * N_NECK, N_NECK, 3, 3)
        tensors.conv("v.sam.net_3", N_INSIDE, 2 * N_NECK, 3, 3)
        super().add(tensors)
        del tensors["v.patch_embd.weight"], tensors["v.patch_embd.bias"]


@dataclass(frozen=True)
class Convolutions(Trunk):
    """ConvNeXt V2, of two stages, of which the second halves rows and columns."""

    def add(self, tensors: Tensors) -> None:
        n = self.n_inside
        tensors.conv("v.patch_embd", n, 3, self.patch_size, self.patch_size)
        tensors.bias("v.patch_embd.bias", n)
        tensors.norm("v.patch_ln", n)
        for i in range(2):
            block = f"v.stage.{i}.blk.0"
            tensors.conv(f"{block}.dw", n, 1, 7, 7, is_half=True)
            tensors.bias(f"{block}.dw.bias", n)
            tensors.norm(f"{block}.ln", n)
            tensors.norm(f"{block}.grn", 4 * n)
            tensors.linear(f"{block}.pw1", 4 * n, n)
            tensors.linear(f"{block}.pw2", n, 4 * n)
        tensors.norm("v.stage.1.down.ln", n)
        tensors.conv("v.stage.1.down.conv", n, n, 2, 2)
        tensors.bias("v.stage.1.down.conv.bias", n)
        tensors.matrix("v.vision_pos_embed", 8 * 8, n)


def _deepseek(tensors: Tensors, n_text: int) -> None:
    """What SAM has seen beside what CLIP made of it; a token behind each row, and one behind the image."""
    tensors.linear("mm.model.fc", n_text, 2 * N_INSIDE)
    for name in ("v.image_newline", "v.view_seperator"):
        tensors.vector(name, n_text)


def _deepseek2(tensors: Tensors, n_text: int) -> None:
    """Queries behind what SAM has seen become the tokens."""
    for side, n in ((768, 12 * 12), (1024, 16 * 16)):
        tensors.vector(f"v.resample_query_{side}.weight", n, N_INSIDE)
    tensors.linear("mm.model.fc", n_text, N_INSIDE)
    tensors.vector("v.view_seperator", n_text)


SAM = {"sam.block_count": 3, "sam.head_count": 1, "sam.embedding_length": N_SAM, "window_size": WINDOW}

CONVOLVING: dict[str, tuple[Trunk, Head]] = {
    "deepseekocr": (Sam(positions=(16 * 16 + 1,), before=(), keys=SAM), _deepseek),
    "deepseekocr2": (
        Sam(positions=None, has_means=False, is_gated=True, keys=SAM | {"attention.head_count_kv": 2}),
        _deepseek2,
    ),
    "yasa2": (Convolutions(n_block=0, image=64, patch_size=4), two("mm.0", "mm.2", N_INSIDE)),
}
