"""The half of a voice's file that speaks. llama.cpp loads it, and neither llama-server nor a chat handler asks it."""

from __future__ import annotations

from collections.abc import Iterator

import gguf

from .tensors import N_FF, N_INSIDE, Tensors

ENDS = ("weight", "bias")


def _qwen3() -> Iterator[str]:
    for part in ("embd", "head", "output_norm"):
        yield f"a.gen.code.{part}.weight"
    wav = "a.gen.wav"
    for part in ("in_proj", "out_proj", "codebook"):
        yield from (f"{wav}.quant.{which}.{part}.weight" for which in ("first", "rest"))
    for part in ("pre_conv", "tfm.in_proj", "tfm.out_proj", "dac.entry", "dac.post_conv"):
        yield from (f"{wav}.{part}.{end}" for end in ENDS)
    yield f"{wav}.tfm.output_norm.weight"
    for i in range(8):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_gate", "ffn_up", "ffn_down", "ln1", "ln2"):
            yield f"{wav}.tfm.blk.{i}.{part}.weight"
        yield from (f"{wav}.tfm.blk.{i}.ls{j}.weight" for j in (1, 2))
    for i in range(2):
        yield f"{wav}.up.blk.{i}.gamma"
        for part in ("conv", "dwconv", "norm", "pw1", "pw2"):
            yield from (f"{wav}.up.blk.{i}.{part}.{end}" for end in ENDS)
    snakes = ["dac.post_snake"]
    for i in range(4):
        yield from (f"{wav}.dac.blk.{i}.conv.{end}" for end in ENDS)
        snakes.append(f"dac.blk.{i}.snake")
        for res in (f"dac.blk.{i}.res.{j}" for j in range(3)):
            yield from (f"{wav}.{res}.conv{j}.{end}" for j in (1, 2) for end in ENDS)
            snakes += [f"{res}.act1", f"{res}.act2"]
    yield from (f"{wav}.{snake}.{end}" for snake in snakes for end in ("alpha", "beta"))


def _pocket() -> Iterator[str]:
    flow, seanet = "a.gen.flow", "a.gen.wav.seanet"
    layers = [f"{flow}.{part}" for part in ("input_proj", "cond_embd", "final.ada", "final.proj")]
    for i in range(2):
        yield from (f"{flow}.time.{i}.{part}" for part in ("freqs", "norm"))
        layers += [f"{flow}.time.{i}.up", f"{flow}.time.{i}.down"]
    layers += ["a.gen.out_eos", f"{seanet}.conv_in", f"{seanet}.conv_out"]
    layers += [f"{seanet}.blk.{i}.{part}" for i in range(3) for part in ("res_conv1", "res_conv2", "scale_conv")]
    yield from (f"{layer}.{end}" for layer in layers for end in ENDS)
    yield from ("a.gen.emb_mean", "a.gen.emb_std", "a.gen.wav.quant_out.weight", "a.gen.wav.upsample.weight")


# By clip's names: the half that hears, that which speaks, and the tensor that has the size of the text model's.
SPEAKING = {
    "qwen3tts_spkenc": ("qwen3tts_gen", _qwen3, "a.gen.code.out_embd.weight"),
    "pockettts_spkenc": ("pockettts_gen", _pocket, "a.gen.input_linear.weight"),
}


def add_speaking(writer: gguf.GGUFWriter, tensors: Tensors, kind: str, n_text: int) -> None:
    """kind: of the half that hears. Nothing is computed with the tensors, so they are as small as can be."""
    speaks, names, of_text = SPEAKING[kind]
    for name in names():
        tensors.bias(name, 1)
    tensors.bias(of_text, n_text, n_text)
    writer.add_bool("clip.has_gen_audio_encoder", True)
    writer.add_string("clip.gen.audio.projector_type", speaks)
    sizes = {"embedding_length": N_INSIDE, "feed_forward_length": N_FF, "projection_dim": n_text}
    for key, value in (sizes | {"attention.head_count": 2, "block_count": 0}).items():
        writer.add_uint32(f"clip.gen.audio.{key}", value)
    writer.add_float32("clip.gen.audio.attention.layer_norm_epsilon", 1e-6)
