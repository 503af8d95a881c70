"""What an archive costs, as `morphkv bench archive` takes it."""

from contextlib import closing

from morphkv_cpp import Archive, Llama, MorphKV
from morphkv_cpp.bench.archive import N_BETWEEN, N_RATED, N_RECALLS, archive_cost
from morphkv_cpp.bench.decode import endless_tokens

SMALL = MorphKV(capacity=96, window=16, interval=32, prompt_room=0)


def test_costs_are_counted(tiny_llama):
    seen = []
    options = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
    with closing(Llama(tiny_llama(), morphkv=SMALL, archive=Archive(recall="off"), **options)) as llm:
        cost = archive_cost(llm, endless_tokens(llm), 2000, seen.append)
        stats = llm.cache_stats()
    assert sum(seen) == 2000 + N_RATED
    assert stats.logical_pos == 2000 + N_RATED + N_RECALLS * N_BETWEEN - 1
    assert len(cost.recalls) == stats.n_recalls == N_RECALLS
    assert all(recall.n_archived > 2700 for recall in cost.recalls)
    assert 0 < cost.share < 1
    assert cost.speed == 1 - cost.share
    assert 0 < cost.ask_ms <= cost.recall_ms
    assert cost.n_bytes == stats.archive_bytes
