"""0.1.0's own tests of the archive, as they were: what is kept, when it comes back, what is refused.

Its keywords are fields of Archive now, which a DeprecationWarning says. Left out are tests of sentences that changed.
"""

import ctypes
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import Archive, Llama, MorphKV, Recall
from support.tiny import QUIET, some_tokens

CONFIG = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)

pytestmark = pytest.mark.filterwarnings("ignore:.*say archive=Archive:DeprecationWarning")


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


@pytest.fixture
def open_llama(model):
    """Factory of models that are closed at the end."""
    opened = []

    def make(**options):
        opened.append(Llama(str(model), **({"morphkv": CONFIG} | QUIET | options)))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def write(llm, prompt: list[int], n_tokens: int, **options) -> list[int]:
    tokens = llm.generate(prompt, temp=0.0, **options)
    return [next(tokens) for _ in range(n_tokens)]


def retained(llm) -> list[np.ndarray]:
    return [llm.retained(layer) for layer in range(2)]


def test_what_leaves_the_window_is_archived_and_a_prompt_recalls_it(open_llama):
    llm = open_llama(archive="ram")
    llm.eval(some_tokens(500))
    before = llm.cache_stats()
    assert before.n_archived == before.logical_pos + 1 - (before.n_used - before.n_distant)
    assert before.n_recalls == 0
    assert before.archive_bytes > 0
    assert before.archive_ms > 0
    write(llm, some_tokens(30, seed=1), 2, reset=False)
    after = llm.cache_stats()
    assert len(llm.last_recalls) == after.n_recalls == 2
    assert all(isinstance(recall, Recall) and 0 < recall.ask_ms <= recall.took_ms for recall in llm.last_recalls)
    assert sum(recall.n_recalled for recall in llm.last_recalls) == after.n_recalled > 0
    assert after.logical_pos + 1 == llm.n_tokens == 500 + 30 + 1
    assert (after.kv_bytes, after.n_cells) == (before.kv_bytes, before.n_cells)
    # a recall of one's own
    assert llm.recall().n_archived >= 480
    assert llm.cache_stats().n_recalls == 3


def test_the_next_prompt_is_recalled_for_as_well_and_the_answer_is_not(open_llama):
    # what 0.1.0 did not have, and its default
    llm = open_llama(archive=Archive("ram", recall="prompt", restore=False), ctx_checkpoints=0)
    write(llm, some_tokens(400), 40)
    assert llm.cache_stats().n_recalls == 2
    write(llm, some_tokens(400) + some_tokens(20, seed=2), 40)
    assert llm.last_prompt.n_cached < 400  # other tokens were written behind them
    assert llm.cache_stats().n_recalls == 2
    write(llm, some_tokens(20, seed=3), 40, reset=False)
    assert llm.cache_stats().n_recalls == 4


@pytest.mark.parametrize("recall", ["off", "prompt", 3])
def test_when_to_recall(open_llama, recall):
    llm = open_llama(archive="ram", recall=recall)
    write(llm, some_tokens(400), 100)
    expected = {"off": 0, "prompt": 2, 3: 2 + 99 // (3 * CONFIG.interval)}
    assert llm.cache_stats().n_recalls == expected[recall]
    assert len(llm.last_recalls) == min(2, expected[recall])


def test_without_recalls_nothing_differs_from_no_archive(open_llama):
    with_archive, without = open_llama(archive="ram", recall="off"), open_llama()
    prompt = some_tokens(400)
    assert write(with_archive, prompt, 120) == write(without, prompt, 120)
    for mine, other in zip(retained(with_archive), retained(without)):
        assert (mine == other).all()
    assert without.cache_stats().n_archived == without.cache_stats().archive_bytes == 0


def test_recalls_can_be_set_while_the_model_is_open(open_llama):
    llm = open_llama(archive="ram")
    llm.archive = replace(llm.archive, recall="off", share=1.0)
    write(llm, some_tokens(400), 2)
    assert llm.cache_stats().n_recalls == 0
    assert llm.archive.share == 1.0
    with pytest.raises(ValueError, match="can be changed"):
        llm.archive = replace(llm.archive, type="q8_0")


def test_type_and_bound(open_llama):
    sizes = {}
    for kind in ("f32", None, "q8_0", "q4_0"):
        llm = open_llama(archive=Archive(type=kind))
        write(llm, some_tokens(2000), 2)
        sizes[kind] = llm.cache_stats().archive_bytes
        assert llm.cache_stats().n_recalled > 0
    assert sizes["f32"] > sizes[None] > sizes["q8_0"] > sizes["q4_0"]
    bound = sizes[None] // 3
    llm = open_llama(archive="ram", archive_max_bytes=bound)
    write(llm, some_tokens(2000), 2)
    stats = llm.cache_stats()
    assert 0 < stats.archive_bytes <= bound
    assert stats.n_archive_lost > 0
    assert stats.n_archived + stats.n_archive_lost == stats.logical_pos + 1 - (stats.n_used - stats.n_distant)


def test_a_state_carries_the_archive(open_llama):
    llm, other = open_llama(archive="ram"), open_llama(archive="ram")
    llm.eval(some_tokens(500))
    state = llm.save_state()
    other.load_state(pickle.loads(pickle.dumps(state)))
    question = some_tokens(25, seed=4)
    assert write(llm, question, 40, reset=False) == write(other, question, 40, reset=False)
    for mine, theirs in zip(retained(llm), retained(other)):
        assert (mine == theirs).all()
    assert llm.cache_stats().n_recalled == other.cache_stats().n_recalled > 0
    without = open_llama()
    with pytest.raises(RuntimeError, match="other settings"):
        without.load_state(state)
    assert write(without, some_tokens(200), 3)


def test_pickling_keeps_the_settings(open_llama):
    llm = open_llama(archive="ram", archive_type="q8_0", recall_share=0.3)
    copy = pickle.loads(pickle.dumps(llm))
    assert copy.archive == llm.archive == Archive(type="q8_0", share=0.3)
    copy.close()


def test_a_file(open_llama, tmp_path):
    path = tmp_path / "chat.archive"
    llm, in_ram = open_llama(archive=path), open_llama(archive="ram")
    prompt = some_tokens(700)
    assert write(llm, prompt, 40) == write(in_ram, prompt, 40)
    stats = llm.cache_stats()
    assert path.stat().st_size > stats.n_archived * 100
    with pytest.raises(RuntimeError, match="in use"):
        open_llama(archive=path)
    llm.close()
    again = open_llama(archive=path)  # a new text begins it anew
    assert write(again, prompt, 40) == write(in_ram, prompt, 40)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"morphkv": None}, ValueError, "an archive needs MorphKV"),
        ({"archive_type": "q4_k"}, ValueError, "archive_type must be one of .*, got 'q4_k'"),
        ({"archive_type": 8}, TypeError, "archive_type must be a str, got 8"),
        ({"archive_max_bytes": -1}, ValueError, "archive_max_bytes must not be negative, got -1"),
        ({"recall": "always"}, ValueError, 'recall must be "auto", "prompt", "off" or a number above 0'),
        ({"recall": 0}, ValueError, 'recall must be "auto", "prompt", "off" or a number above 0, got 0'),
        ({"recall_share": 0}, ValueError, r"recall_share must be in \(0, 1\], got 0"),
        ({"recall_share": 1.5}, ValueError, r"recall_share must be in \(0, 1\], got 1.5"),
        ({"recall_redo": -1}, ValueError, "recall_redo must not be negative"),
        ({"recall_votes": True}, TypeError, "recall_votes must be an int"),
        ({"archive": 7}, TypeError, 'archive must be "ram", a path or an Archive, got 7'),
        ({"morphkv": replace(CONFIG, rope_limit=0)}, ValueError, "rope_limit"),
    ],
)
def test_what_is_refused(open_llama, options, error, sentence):
    with pytest.raises(error, match=sentence):
        open_llama(**{"archive": "ram", **options})


def test_a_recall_that_is_refused_says_why(open_llama):
    llm = open_llama(archive=Archive(votes=17))
    llm.eval(some_tokens(300))
    with pytest.raises(ValueError, match=r"votes must be in 0\.\.16, got 17"):
        llm.recall()
    with pytest.raises(ValueError, match="a recall needs an archive"):
        open_llama().recall()


def test_a_generation_that_fails_leaves_no_recall_behind(open_llama):
    llm = open_llama(archive="ram")
    with pytest.raises(ctypes.ArgumentError, match="wrong type"):
        next(llm.generate(some_tokens(300), top_k="many"))
    assert llm.n_tokens == 0
    llm.eval(some_tokens(400))
    assert llm.cache_stats().n_recalls == 0


def test_a_session_carries_its_archive(open_llama, tmp_path):
    llm = open_llama(archive="ram", chat_format="chatml")
    chat = llm.session()
    for i in range(12):
        "".join(chat.say(f"Question {i}: what is next, and what was first?", max_tokens=24, seed=i))
    fork = chat.fork()
    chat.save(tmp_path / "chat")
    other = open_llama(archive="ram", chat_format="chatml")
    restored = other.load_session(tmp_path / "chat")
    answers = ["".join(c.say("And now?", max_tokens=30, seed=99)) for c in (chat, fork, restored)]
    assert answers[0] == answers[1] == answers[2]
    stats = [c.cache_stats() for c in (chat, fork, restored)]
    assert stats[0].n_recalls == stats[1].n_recalls == stats[2].n_recalls > 0
    assert stats[0].n_archived == stats[1].n_archived == stats[2].n_archived > 0
    assert chat.last.n_recalled > 0
    assert os.path.getsize(tmp_path / "chat") > stats[0].archive_bytes / 2
