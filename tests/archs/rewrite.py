"""A GGUF written anew, with other keys and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter


def architecture_of(path: Path) -> str:
    return GGUFReader(path).fields["general.architecture"].contents()


def rewrite(
    path: Path,
    target: Path,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
    architecture: str | None = None,
) -> None:
    """Keys are named without the architecture; None leaves one out, of tensors too. target may be path."""
    keys, tensors = keys or {}, tensors or {}
    reader = GGUFReader(path)
    old = architecture_of(path)
    new = architecture or old
    unfinished = target.with_suffix(".unfinished")
    writer = GGUFWriter(unfinished, new)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        name = field.name.replace(f"{old}.", f"{new}.", 1) if field.name.startswith(f"{old}.") else field.name
        if name.removeprefix(f"{new}.") in keys:
            continue
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        value = field.contents()
        # the writer takes no empty array
        if value != []:
            writer.add_key_value(name, value, field.types[0], sub_type=sub_type)
    for key, value in keys.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
            add(f"{new}.{key}", value)
    for tensor in reader.tensors:
        data = tensors.get(tensor.name, tensor.data)
        if data is not None:
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)
