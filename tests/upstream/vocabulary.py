"""Give the random-weight models of upstream's test-llama-archs a vocabulary that can tokenize English letters.

They come with tokens named tok_0, tok_1, ... and no tokenizer; llama-cpp-python's tests feed text.
"""

from __future__ import annotations

import string
from pathlib import Path

import gguf

SPACE = "\u2581"  # how a SentencePiece vocabulary writes a space
KINDS = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL, "</s>": gguf.TokenType.CONTROL}
KINDS["<0x0A>"] = gguf.TokenType.BYTE  # without it llama.cpp finds no newline token


def with_vocabulary(source: Path, target: Path) -> Path:
    """Copy a GGUF with a SentencePiece vocabulary of letters in place of its own, of the same size."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    n_vocab = len(reader.get_field("tokenizer.ggml.tokens").data)
    for name, field in reader.fields.items():
        # What the writer adds by itself, what is replaced, and empty arrays, which the writer refuses.
        if name.startswith(("GGUF.", "general.architecture", "tokenizer.")) or field.contents() == []:
            continue
        items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], items)
    _add_vocabulary(writer, n_vocab)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    tokens = [*KINDS, SPACE, *string.ascii_letters]
    tokens += [f"{SPACE}{letter}" for letter in string.ascii_letters]
    tokens = (tokens + [f"<unused{i}>" for i in range(n_vocab)])[:n_vocab]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(n_vocab)])
    writer.add_token_types([KINDS.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
