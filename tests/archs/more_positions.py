"""A GGUF with learned positions for longer texts: test-llama-archs writes 256, too few for 500 behind an eviction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from archs.rewrite import rewrite
from gguf import GGUFReader

TABLE = "position_embd.weight"


def extend_positions(path: Path, n_positions: int) -> None:
    """Write the file anew with a random table of n_positions, and the trained context as long."""
    (table,) = (tensor.data for tensor in GGUFReader(path).tensors if tensor.name == TABLE)
    shape = (n_positions, table.shape[1])
    longer = np.random.default_rng(0).normal(table.mean(), table.std(), shape).astype(table.dtype)
    rewrite(path, path, keys={"context_length": n_positions}, tensors={TABLE: longer})
