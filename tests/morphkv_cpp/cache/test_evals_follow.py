"""Recall while writing (`recall="auto"`) through Llama: where, with drafts, and behind a state; tiny random models.

Their attention is spread, so that it takes a lower bar than a real model's until a page counts as used.
"""

import numpy as np
import pytest

from morphkv_cpp import Archive, MorphKV, bridge
from support.tiny import greedy, last_logits, some_tokens

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


@pytest.fixture(autouse=True)
def every_page_is_used(monkeypatch):
    settings = Archive.recall_settings
    monkeypatch.setattr(Archive, "recall_settings", lambda self: {**settings(self), "need": 0.0})


@pytest.fixture
def places(monkeypatch):
    """How many tokens the text had at each recall while it was written."""
    found = []
    write_next = bridge.write_next

    def note(context, *arguments, **settings):
        recalled = write_next(context, *arguments, **settings)
        if recalled is not None:
            found.append(bridge.stats(context)["logical_pos"] + 1)
            assert recalled["n_recalled"] > 0
        return recalled

    monkeypatch.setattr(bridge, "write_next", note)
    return found


def test_it_is_the_default_of_an_archive():
    assert Archive().recall == "auto"


def test_while_writing_at_multiples_of_16_alone(open_llama, places):
    llm = open_llama(archive="ram")
    greedy(llm, some_tokens(403), 100)
    assert len(llm.last_recalls) == 2
    assert llm.cache_stats().n_recalls == 2 + len(places)
    assert places == sorted(set(places))
    assert len(places) >= 3
    assert all(n % bridge.WRITE_STEP == 0 and 403 <= n < 503 for n in places)


def test_not_before_anything_is_evicted_and_not_for_prompts(open_llama, places):
    llm = open_llama(archive="ram")
    greedy(llm, some_tokens(40), 30)
    llm.reset()
    for start in range(0, 480, 48):
        llm.eval(some_tokens(48, seed=start))
    assert places == []
    assert llm.cache_stats().n_recalls == 0


@pytest.mark.parametrize("recall", ["prompt", "off", 3])
def test_other_settings_do_not(open_llama, places, recall):
    greedy(open_llama(archive=Archive(recall=recall)), some_tokens(400), 60)
    assert places == []


def test_drafts_change_no_text(open_llama, places):
    prompt = some_tokens(401)
    plain = greedy(open_llama(archive="ram"), prompt, 90)
    without_drafts = places.copy()
    places.clear()
    # of which every other token is right
    draft = iter(range(10**6))

    def drafted(input_ids, **_options):
        n = len(input_ids) - len(prompt)
        guess = np.array(plain[n : n + 11], dtype=np.intc)
        guess[3 + next(draft) % 5 :] = 7
        return guess

    llm = open_llama(archive="ram", draft_model=drafted, n_ctx=1024)
    assert greedy(llm, prompt, 90) == plain
    assert places == without_drafts


def test_a_state_in_the_middle_of_an_answer_goes_on_alike(open_llama, places):
    prompt = some_tokens(405)
    whole = greedy(open_llama(archive="ram"), prompt, 120)
    at = places.copy()
    places.clear()
    first, other = open_llama(archive="ram"), open_llama(archive="ram")
    written = greedy(first, prompt, 50)
    other.load_state(first.save_state())
    token = written[-1]
    for _ in range(70):
        other.eval([token])
        token = int(np.argmax(last_logits(other)))
        written.append(token)
    assert written == whole
    assert places == at


def test_a_recall_that_fails_while_writing_is_raised_and_the_text_stays(open_llama, monkeypatch):
    llm = open_llama(archive="ram")
    greedy(llm, some_tokens(400), 2)

    def fail(*_arguments, **_settings):
        raise bridge.NativeError("recall failed: no memory; sequence 0 is unchanged")

    monkeypatch.setattr(bridge, "write_next", fail)
    n_tokens = llm.n_tokens
    with pytest.raises(RuntimeError, match="no memory"):
        llm.eval([5])
    assert llm.n_tokens == n_tokens == llm.cache_stats().logical_pos + 1
