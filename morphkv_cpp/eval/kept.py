"""How large what a cache keeps is: quality is drawn against it."""

from .. import Llama, bridge


def kept_bytes(llm: Llama, n_tokens: int) -> float:
    """Bytes of K and V that stay of a text of n_tokens. Cells that are free for a while are not counted."""
    n_bytes = bridge.kv_bytes(llm.ctx)
    if llm.morphkv is None:
        return n_bytes * min(n_tokens, llm.n_ctx()) / llm.n_ctx()
    stats = llm.cache_stats()
    return n_bytes * min(n_tokens, stats.capacity) / stats.n_cells
