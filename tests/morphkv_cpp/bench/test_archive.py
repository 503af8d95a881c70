"""What an archive costs, as `morphkv bench archive` takes it."""

from contextlib import closing

from morphkv_cpp import Archive, Llama, MorphKV
from morphkv_cpp.bench.archive import (
    N_BETWEEN,
    N_RATED,
    N_RECALLS,
    N_ROUNDS,
    N_WRITTEN,
    SEEN,
    UNSEEN,
    WritingLane,
    archive_cost,
    writing_cost,
)
from morphkv_cpp.bench.decode import endless_tokens, fill, prose_tokens

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


def test_a_text_goes_on_with_recalls_and_without_in_turns(tiny_llama, monkeypatch):
    turns, seen = [], []
    turn = WritingLane.turn

    def seen_turn(lane):
        turn(lane)
        turns.append((lane.name, lane.llm.archive.recall))

    monkeypatch.setattr(WritingLane, "turn", seen_turn)
    with closing(Llama(tiny_llama(), morphkv=SMALL, archive=Archive(recall="off"), verbose=False)) as llm:
        fill(llm, endless_tokens(llm, SEEN), 1000)
        cost = writing_cost(llm, seen.append)
        assert llm.n_tokens == 1000 + N_WRITTEN == 1000 + sum(seen)
        assert llm.cache_stats().n_recalls == cost.n_recalls
    assert turns[:4] == [("recalls", "auto"), ("none", "off"), ("none", "off"), ("recalls", "auto")]
    assert len(turns) == 2 * (N_ROUNDS + 1)
    assert cost.n_tokens == N_WRITTEN / 2
    assert 0 < cost.speed.low <= cost.speed.middle <= cost.speed.high


def test_what_is_written_is_in_no_page(tiny_llama):
    with closing(Llama(tiny_llama(), morphkv=None, verbose=False)) as llm:
        n_seen, n_unseen, n_all = (len(prose_tokens(llm, part)) for part in (SEEN, UNSEEN, slice(None)))
    assert n_unseen >= N_WRITTEN
    assert n_all - 3 <= n_seen + n_unseen <= n_all + 3
