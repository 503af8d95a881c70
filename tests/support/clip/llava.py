"""Eyes whose patches are tokens, LLaVA's and others, and those that join some afterwards."""

from __future__ import annotations

from .tensors import N_FF, N_GRID, N_INSIDE, Head, Tensors, two
from .trunks import PIXELS, Trunk


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


LLAVA: dict[str, tuple[Trunk, Head]] = {
    "mlp": (Trunk(n_block=2), two("mm.0", "mm.2", N_INSIDE)),  # which leaves the last layer out
    "janus_pro": (Trunk(), two("mm.0", "mm.1", N_INSIDE)),
    "phi4": (Trunk(keys=PIXELS), two("mm.0", "mm.2", N_INSIDE)),
    "cogvlm": (Trunk(positions=(N_GRID + 1,), before=(), is_joined=True), _cogvlm),
    "adapter": (Trunk(), _edge),
}
