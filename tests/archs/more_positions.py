"""A GGUF with learned positions for longer texts: test-llama-archs writes 256, too few for 500 behind an eviction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

TABLE = "position_embd.weight"


def extend_positions(path: Path, n_positions: int) -> None:
    """Write the file anew with a random table of n_positions, and the trained context as long."""
    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(path.with_suffix(".longer"), architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        value = n_positions if field.name == f"{architecture}.context_length" else field.contents()
        # the writer takes no empty array
        if value != []:
            writer.add_key_value(field.name, value, field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name == TABLE:
            shape = (n_positions, data.shape[1])
            data = np.random.default_rng(0).normal(data.mean(), data.std(), shape).astype(data.dtype)
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".longer").rename(path)
