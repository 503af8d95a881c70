"""The streamed answers that are compared: what is evaluated how, and that leaping changes nothing behind the leap."""

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.bench import streaming
from morphkv_cpp.bench.streaming import LeapingLlama, StreamLane, streaming_kept

QUIET = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
SMALL = MorphKV(64, 8, 20, prompt_room=0)


@pytest.fixture
def leaping(tiny_llama):
    opened = []

    def make():
        opened.append(LeapingLlama(tiny_llama(), morphkv=SMALL, n_batch=64, **QUIET))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def count_batches(llm, monkeypatch) -> list[int]:
    lengths, decode = [], llm._ctx.decode
    monkeypatch.setattr(llm._ctx, "decode", lambda batch: (lengths.append(batch.n_tokens()), decode(batch)))
    return lengths


def test_a_leap_is_evaluated_in_batches_and_what_follows_token_by_token(leaping, monkeypatch):
    llm = leaping()
    lengths = count_batches(llm, monkeypatch)
    lane = StreamLane("late", llm, n_start=300, n_turn=20)
    seen = []
    lane.start(seen.append)
    assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == sum(seen) == 300
    n_prompt = lengths[0]
    assert lengths[1:5] == [64] * 4
    assert sum(lengths) == 300
    lane.turn()
    assert lengths[-20:] == [1] * 20
    assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == 320
    assert n_prompt < 30
    assert len(lane.rates) == 1


def test_the_text_is_that_of_the_same_batches_evaluated_by_hand(leaping, tiny_llama):
    llm = leaping()
    lane = StreamLane("late", llm, n_start=200, n_turn=20)
    lane.start()
    text = llm.input_ids[:200].tolist()
    n_prompt = len(llm.tokenize(streaming.PROMPT.encode()))
    again = Llama(tiny_llama(), morphkv=SMALL, n_batch=64, **QUIET)
    again.eval(text[:n_prompt])
    for start in range(n_prompt, 200, 64):
        again.eval(text[start : min(start + 64, 200)])
    assert (again.retained(0) == llm.retained(0)).all()
    again.close()


def test_an_answer_that_ends_is_an_error(leaping, monkeypatch):
    monkeypatch.setattr(streaming, "STOPS", ["e"])
    lane = StreamLane("late", leaping(), n_start=300, n_turn=20)
    with pytest.raises(RuntimeError, match=r"the answer ended at \d+ tokens, before"):
        lane.start()


def test_two_streams_are_compared_in_turns(leaping):
    late, early = leaping(), leaping()
    turns, seen = [], []
    speed, lanes = streaming_kept(late, early, 3000, 250, seen.append, turns.append)
    assert turns == ["late", "early", "early", "late"] * 6 + ["late", "early"]
    assert [len(lane.rates) for lane in lanes] == [12, 12]
    assert (late.n_tokens, early.n_tokens) == (3000 + 13 * 250, 1000 + 13 * 250)
    assert sum(seen) == 4000
    assert 0 < speed.low <= speed.middle <= speed.high
