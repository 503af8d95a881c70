"""What tells who speaks, for models that speak with the same voice."""

from __future__ import annotations

from .ear import N_CHANNEL, N_HIDDEN, N_MEL, Ear
from .tensors import N_INSIDE, Tensors

N_POOLED = 40


def _qwen3(tensors: Tensors, n_text: int) -> None:
    """ECAPA-TDNN: all of a sound becomes one token."""

    def conv(name: str, n_out: int, n_in: int, n_kernel: int = 1) -> None:
        tensors.conv(name, n_out, n_in, n_kernel)
        tensors.bias(f"{name}.bias", n_out)

    conv("a.conv1d.0", N_INSIDE, N_MEL, 5)
    for i in (1, 2, 3):
        block = f"a.blk.{i}"
        for part in ("conv_pw1", "conv_pw2"):
            conv(f"{block}.{part}", N_INSIDE, N_INSIDE)
        conv(f"{block}.se_conv1", N_CHANNEL, N_INSIDE)
        conv(f"{block}.se_conv2", N_INSIDE, N_CHANNEL)
        for j in range(7):
            conv(f"{block}.res2.{j}", N_INSIDE // 8, N_INSIDE // 8, 3)
    conv("a.conv_out", N_POOLED, 3 * N_INSIDE)
    conv("a.asp_tdnn", N_HIDDEN, 3 * N_POOLED)
    conv("a.asp_attn", N_POOLED, N_HIDDEN)
    conv("mm.a.fc", n_text, 2 * N_POOLED)


def _pocket(tensors: Tensors, n_text: int) -> None:
    """Mimi: samples become frames by convolutions, and these attend to the frames before them."""

    def conv(name: str, n_out: int, n_in: int, n_kernel: int) -> None:
        tensors.conv(name, n_out, n_in, n_kernel, is_half=True)
        tensors.bias(f"{name}.bias", n_out)

    n = N_CHANNEL // 2
    conv("a.seanet.conv_in", n, 1, 7)
    for i, stride in enumerate((4, 5, 6)):  # as clip takes them to be
        block = f"a.seanet.blk.{i}"
        conv(f"{block}.res_conv1", n // 2, n, 3)
        conv(f"{block}.res_conv2", n, n // 2, 1)
        conv(f"{block}.scale_conv", 2 * n, n, 2 * stride)
        n *= 2
    conv("a.seanet.conv_out", N_INSIDE, n, 3)
    block = "a.blk.0"
    tensors.block(block)
    for part in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down"):
        del tensors[f"{block}.{part}.bias"]
    for part in ("ls1", "ls2"):
        tensors.norm(f"{block}.{part}", has_bias=False)
    tensors.conv("a.downsample.conv", N_HIDDEN, N_INSIDE, 32, is_half=True)
    tensors.matrix("a.speaker_proj.weight", n_text, N_HIDDEN)


VOICES: dict[str, Ear] = {
    "qwen3tts_spkenc": Ear(_qwen3, n_block=3),
    "pockettts_spkenc": Ear(_pocket, n_mel=1),
}
