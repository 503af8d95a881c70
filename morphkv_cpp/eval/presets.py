"""What the suite measures by default, and quickly: lengths of texts and numbers of items by task."""

from __future__ import annotations

from collections.abc import Sequence

from .suite import Part
from .tasks import Task

# task, or the first words of several: lengths in tokens, items at each
Preset = dict[str, tuple[tuple[int, ...], int]]

FULL: Preset = {
    "perplexity": ((4096,), 8),
    "copy": ((2500, 12000), 20),
    "facts-cut": ((2560,), 12),
    "facts-gone": ((2048, 16384, 65536), 12),
    "facts": ((2048, 6144), 12),
    "ruler": ((4096, 16384, 65536), 8),
    "five-questions": ((4096,), 12),
    "instruction": ((4096,), 12),
    "repetition": ((1024,), 8),
}
QUICK: Preset = {
    "perplexity": ((1024,), 4),
    "copy": ((1280,), 3),
    "facts": ((1280,), 2),
    "ruler": ((1280,), 1),
    "five-questions": ((1280,), 2),
    "instruction": ((1280,), 2),
    "repetition": ((512,), 1),
}
FULL_CELLS, QUICK_CELLS = 768, 512
QUICK_ARMS = "full,shift,shift/q8_0,recency,paper,morphkv,morphkv+archive"


def parts_of(preset: Preset, tasks: Sequence[Task], n_tokens: Sequence[int] = (), n_items: int = 0) -> list[Part]:
    """The preset's lengths and numbers of items for these tasks, or those that are given instead."""
    parts = []
    for task in tasks:
        lengths, items = preset[max((name for name in preset if task.name.startswith(name)), key=len)]
        parts += [Part(task, n, n_items or items) for n in n_tokens or lengths]
    return parts
