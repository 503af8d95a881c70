"""The streamed answers that are compared: what is evaluated how, and that leaping changes nothing behind the leap."""

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.bench import streaming
from morphkv_cpp.bench.streaming import LeapingLlama, StreamLane, streaming_kept
from support.tiny import QUIET

SMALL = MorphKV(capacity=64, window=8, interval=20, prompt_room=0)


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
    assert sum(seen) == 300
    n_prompt, n_batches = lengths[0], lengths.index(1)
    assert n_prompt < 30
    assert lengths[1:5] == [64] * 4
    assert sum(lengths[:n_batches]) == 300
    n_started = llm.n_tokens
    lane.turn()
    assert set(lengths[n_batches:]) == {1}
    assert sum(lengths) == llm.n_tokens == llm.cache_stats().logical_pos + 1 == n_started + 20
    assert len(lane.rates) == 1


@pytest.mark.parametrize("n_start", [300, 311])
def test_a_lane_begins_its_turns_behind_an_eviction(leaping, n_start):
    llm = leaping()
    lane = StreamLane("late", llm, n_start, n_turn=20)
    lane.start()
    assert n_start < llm.n_tokens <= n_start + SMALL.interval + 1
    assert llm.cache_stats().n_used == SMALL.capacity + 1
    lane.turn()
    assert llm.cache_stats().n_used == SMALL.capacity + 1


def test_the_text_is_that_of_the_same_batches_evaluated_by_hand(leaping, tiny_llama):
    llm = leaping()
    lane = StreamLane("late", llm, n_start=200, n_turn=20)
    lane.start()
    text = llm.input_ids[: llm.n_tokens].tolist()
    n_prompt = len(llm.tokenize(streaming.PROMPT.encode()))
    again = Llama(tiny_llama(), morphkv=SMALL, n_batch=64, **QUIET)
    again.eval(text[:n_prompt])
    for start in range(n_prompt, 200, 64):
        again.eval(text[start : min(start + 64, 200)])
    for token in text[200:]:
        again.eval([token])
    assert (again.retained(0) == llm.retained(0)).all()
    again.close()


def test_an_answer_that_ends_is_an_error(leaping, monkeypatch):
    monkeypatch.setattr(streaming, "STOPS", ["e"])
    lane = StreamLane("late", leaping(), n_start=300, n_turn=20)
    with pytest.raises(RuntimeError, match=r"the answer ended at \d+ tokens, before"):
        lane.start()


def test_two_streams_are_compared_in_turns(leaping):
    llm = leaping()
    turns, seen = [], []
    speed, lanes = streaming_kept(llm, 3000, 240, seen.append, turns.append)
    assert turns == ["late", "early", "early", "late"] * 6 + ["late", "early"]
    assert [len(lane.rates) for lane in lanes] == [12, 12]
    assert sum(seen) == 4000
    assert 0 < speed.low <= speed.middle <= speed.high


def test_lanes_in_one_context_write_what_each_writes_alone(leaping):
    llm, alone = leaping(), leaping()
    lanes = [StreamLane("late", llm, 400, 40), StreamLane("early", llm, 100, 40)]
    for lane in lanes:
        lane.start()
    for lane in [*lanes, *reversed(lanes)]:
        lane.turn()
    late = StreamLane("late", alone, 400, 40)
    late.start()
    for _ in range(2):
        late.turn()
    assert llm.n_tokens == alone.n_tokens
    assert (llm.input_ids[: llm.n_tokens] == alone.input_ids[: llm.n_tokens]).all()
    assert (llm.retained(0) == alone.retained(0)).all()
