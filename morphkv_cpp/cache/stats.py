"""The state of a cache, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheStats:
    """State of one sequence's cache, and the memory of all. Counts are in cells or tokens, which is the same."""

    capacity: int  # as configured: kept per KV head after an eviction
    keep: int  # first tokens of the sequence that are never evicted
    n_cells: int  # allocated per sequence, n_limit rounded up
    n_limit: int  # most cells that a sequence uses: capacity + max(interval, prompt_room)
    n_distant: int  # distant slots per KV head: capacity - window
    n_used: int  # cells that the sequence uses now
    n_seq_max: int  # sequences that have cells of their own
    logical_pos: int  # position of the sequence's newest token, -1 when empty
    complete_pos: int  # the oldest position that every head still holds: later tokens can be rolled back; -1 when empty
    exact_pos: int  # tokens from here on can be rolled back exactly: none is older than the last eviction or rebase
    mark_pos: int  # with recurrent layers: tokens from here on can be rolled back, and no others; -1: there is no mark
    rope_limit: int  # rotary positions stay below it; 0: they are never rebased
    rotary_offset: int  # of the sequence's recent tokens: position minus the rotary one, which RoPE sees
    n_rebases: int  # how often the offset grew
    n_evictions: int  # evictions of the sequence
    n_evicted: int  # tokens evicted per KV head, over all evictions of the sequence
    kv_bytes: int  # K and V of all sequences
    extra_bytes: int  # beside K and V, of all sequences: query rings, positions, scores, marks; tokens to be archived
    scratch_bytes: int  # that evictions compute in, a part of neither above; contexts share that of CUDA kernels
    evict_ms: float  # time spent in evictions, all sequences
    seq_evict_ms: float  # the same, of this sequence alone
    n_archived: int  # tokens of the sequence that are in its archive; on a GPU some may still be on their way
    n_archive_lost: int  # tokens that were dropped from it, as it is bounded
    n_archive_damaged: int  # pages of 16 tokens that could not be read: they are not recalled
    archive_bytes: int  # archives of all sequences, on the host: tokens and index
    archive_ms: float  # part of evict_ms: time that decoding waited for archives, all sequences
    n_recalls: int  # recalls of the sequence
    n_recalled: int  # recalled tokens, summed over layers and KV heads
    recall_ms: float  # time spent in them
    n_groups: (
        int  # of layers, each with a capacity of its own; 1: all are alike. n_cells, n_limit, n_distant, n_used and
    )
    # n_evicted are those of the layers that keep least
    min_capacity: int  # of any layer
    max_capacity: int
