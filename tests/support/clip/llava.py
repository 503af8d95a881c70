"""Eyes whose patches are tokens, LLaVA's and others, and those that join some afterwards."""

from __future__ import annotations

from .tensors import N_FF, N_GRID, N_INSIDE, Head, Tensors, two
from .trunks import PIXELS, Trunk


def _normed(tensors: Tensors, n_text: int) -> None:
    """Yi's: a norm behind each product."""
    for name, n_out, n_in in (("mm.0", N_FF, N_INSIDE), ("mm.3", n_text, N_FF)):
        tensors.linear(name, n_out, n_in)
        tensors.norm(f"mm.{int(name[-1]) + 1}", n_out)


def _mobile(tensors: Tensors, n_text: int) -> None:
    """MobileVLM's: two blocks of convolutions, of which the second halves rows and columns."""
    tensors.linear("mm.model.mlp.1", n_text, N_INSIDE)
    tensors.linear("mm.model.mlp.3", n_text, n_text)
    for block in ("mm.model.mb_block.1.block", "mm.model.mb_block.2.block"):
        tensors.conv(f"{block}.0.0", n_text, 1, 3, 3, is_half=True)
        tensors.norm(f"{block}.0.1", n_text)
        tensors.linear(f"{block}.1.fc1", N_FF, n_text)
        tensors.linear(f"{block}.1.fc2", n_text, N_FF)
        tensors.matrix(f"{block}.2.0.weight", n_text, n_text)
        tensors.norm(f"{block}.2.1", n_text)


def _mobile2(tensors: Tensors, n_text: int) -> None:
    """MobileVLM V2's: means of four, and a convolution."""
    tensors.linear("mm.model.mlp.0", n_text, N_INSIDE)
    tensors.linear("mm.model.mlp.2", n_text, n_text)
    tensors.conv("mm.model.peg.0", n_text, 1, 3, 3, is_half=True)
    tensors.bias("mm.model.peg.0.bias", n_text)


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


def _cogvlm(tensors: Tensors, n_text: int) -> None:
    """And a token before an image and one behind it."""
    tensors.norm("mm.post_fc_norm", n_text)
    tensors.matrices(model__fc=(n_text, N_INSIDE), up=(N_FF, n_text), gate=(N_FF, n_text), down=(n_text, N_FF))
    for name in ("v.boi", "v.eoi"):
        tensors.vector(name, n_text)


SQUARE = Trunk(n_block=2, positions=(24**2,), image=48, patch_size=2)  # the size that clip takes MobileVLM's to have

LLAVA: dict[str, tuple[Trunk, Head]] = {
    "mlp": (Trunk(n_block=2), two("mm.0", "mm.2", N_INSIDE)),  # which leaves the last layer out
    "janus_pro": (Trunk(), two("mm.0", "mm.1", N_INSIDE)),
    "phi4": (Trunk(keys=PIXELS), two("mm.0", "mm.2", N_INSIDE)),
    "mlp_norm": (Trunk(n_block=2), _normed),
    "ldp": (SQUARE, _mobile),
    "ldpv2": (SQUARE, _mobile2),
    "cogvlm": (Trunk(positions=(N_GRID + 1,), before=(), is_joined=True), _cogvlm),
    "adapter": (Trunk(), _edge),
}
