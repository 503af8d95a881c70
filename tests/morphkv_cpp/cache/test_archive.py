"""Archive and recall through Llama: what is kept, when it comes back, what is refused; on tiny random models."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import Archive, Llama, MorphKV, Recall, bridge
from support.tiny import greedy, some_tokens

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


def retained(llm) -> list[np.ndarray]:
    return [llm.retained(layer) for layer in range(2)]


@pytest.mark.parametrize(("head_size", "kind"), [(32, "q8_0"), (24, None)])
def test_auto_is_in_memory_as_q8_0_where_heads_are_of_whole_blocks(open_llama, head_size, kind):
    shape = {"head_size": head_size}
    llm = open_llama(shape=shape, archive="auto")
    assert llm.archive == Archive("ram", type=kind)
    llm.eval(some_tokens(300))
    assert llm.cache_stats().n_archived > 0
    if kind is None:
        with pytest.raises(ValueError, match="type_k and type_v must fit heads of 24 and 24 values, got q8_0"):
            open_llama(shape=shape, archive=Archive("auto", type="q8_0"))


def test_what_leaves_the_window_is_archived_and_a_prompt_recalls_it(open_llama):
    llm = open_llama(archive="ram")
    llm.eval(some_tokens(500))
    before = llm.cache_stats()
    assert before.n_archived == before.logical_pos + 1 - (before.n_used - before.n_distant)
    assert before.n_recalls == 0
    assert before.archive_bytes > 0
    assert before.archive_ms > 0
    greedy(llm, some_tokens(30, seed=1), 2, reset=False)
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
    llm = open_llama(archive=Archive(recall="prompt"))
    greedy(llm, some_tokens(400), 40)
    assert llm.cache_stats().n_recalls == 2
    greedy(llm, some_tokens(400) + some_tokens(20, seed=2), 40)
    assert llm.last_prompt.n_cached == 400  # other tokens were written behind them: back to the checkpoint
    assert llm.cache_stats().n_recalls == 4
    greedy(llm, some_tokens(20, seed=3), 40, reset=False)
    assert llm.cache_stats().n_recalls == 6


@pytest.mark.parametrize("recall", ["off", "prompt", 3])
def test_when_to_recall(open_llama, recall):
    llm = open_llama(archive=Archive(recall=recall))
    greedy(llm, some_tokens(400), 100)
    expected = {"off": 0, "prompt": 2, 3: 2 + 99 // (3 * SMALL.interval)}
    assert llm.cache_stats().n_recalls == expected[recall]
    assert len(llm.last_recalls) == min(2, expected[recall])


def test_without_recalls_nothing_differs_from_no_archive(open_llama):
    with_archive, without = open_llama(archive=Archive(recall="off")), open_llama()
    prompt = some_tokens(400)
    assert greedy(with_archive, prompt, 120) == greedy(without, prompt, 120)
    for mine, other in zip(retained(with_archive), retained(without)):
        assert (mine == other).all()
    assert without.cache_stats().n_archived == without.cache_stats().archive_bytes == 0


def test_a_short_text_is_as_without_an_archive(open_llama):
    prompt = some_tokens(60)
    llm = open_llama(archive="ram")
    assert greedy(llm, prompt, 20) == greedy(open_llama(), prompt, 20)
    assert llm.cache_stats().n_recalls == 0


def test_only_the_end_of_a_long_prompt_is_decoded_again(open_llama, monkeypatch):
    llm = open_llama(archive=Archive(redo=7))
    decoded = []
    decode = Llama.decode
    monkeypatch.setattr(Llama, "decode", lambda self, tokens: (decoded.append(len(tokens)), decode(self, tokens)))
    greedy(llm, some_tokens(300), 1)
    assert decoded[:3] == [299, 7, 1]


def test_recalls_can_be_set_while_the_model_is_open(open_llama):
    llm = open_llama(archive="ram")
    llm.archive = replace(llm.archive, recall="off", share=1.0)
    greedy(llm, some_tokens(400), 2)
    assert llm.cache_stats().n_recalls == 0
    assert llm.archive.share == 1.0
    with pytest.raises(ValueError, match="only the recall settings of an open archive can be changed"):
        llm.archive = replace(llm.archive, type="q8_0")


def test_type_and_bound(open_llama):
    sizes = {}
    for kind in ("f32", None, "q8_0", "q4_0"):
        llm = open_llama(archive=Archive(type=kind))
        greedy(llm, some_tokens(2000), 2)
        sizes[kind] = llm.cache_stats().archive_bytes
        assert llm.cache_stats().n_recalled > 0
    assert sizes["f32"] > sizes[None] > sizes["q8_0"] > sizes["q4_0"]
    bound = sizes[None] // 3
    llm = open_llama(archive=Archive(max_bytes=bound))
    greedy(llm, some_tokens(2000), 2)
    stats = llm.cache_stats()
    assert 0 < stats.archive_bytes <= bound
    assert stats.n_archive_lost > 0
    assert stats.n_archived + stats.n_archive_lost == stats.logical_pos + 1 - (stats.n_used - stats.n_distant)


def test_an_archive_is_bounded_unless_it_is_said(open_llama):
    assert open_llama(archive="ram").archive.max_bytes == Archive().max_bytes == 2 * 2**30
    assert open_llama(archive=Archive(max_bytes=0)).archive.max_bytes == 0


def test_a_state_carries_the_archive(open_llama):
    llm, other = open_llama(archive="ram"), open_llama(archive="ram")
    llm.eval(some_tokens(500))
    state = llm.save_state()
    other.load_state(pickle.loads(pickle.dumps(state)))
    question = some_tokens(25, seed=4)
    assert greedy(llm, question, 40, reset=False) == greedy(other, question, 40, reset=False)
    for mine, theirs in zip(retained(llm), retained(other)):
        assert (mine == theirs).all()
    assert llm.cache_stats().n_recalled == other.cache_stats().n_recalled > 0
    without = open_llama()
    with pytest.raises(RuntimeError, match="other settings"):
        without.load_state(state)
    assert greedy(without, some_tokens(200), 3)


def test_pickling_keeps_the_settings(open_llama):
    llm = open_llama(archive=Archive(type="q8_0", share=0.3))
    copy = pickle.loads(pickle.dumps(llm))
    assert copy.archive == llm.archive == Archive(type="q8_0", share=0.3)
    copy.close()


def test_a_file(open_llama, tmp_path):
    path = tmp_path / "chat.archive"
    llm, in_ram = open_llama(archive=path), open_llama(archive="ram")
    prompt = some_tokens(700)
    assert greedy(llm, prompt, 40) == greedy(in_ram, prompt, 40)
    stats = llm.cache_stats()
    assert path.stat().st_size > stats.n_archived * 100
    with pytest.raises(RuntimeError, match="in use"):
        open_llama(archive=path)
    llm.close()
    again = open_llama(archive=path)  # a new text begins it anew
    assert greedy(again, prompt, 40) == greedy(in_ram, prompt, 40)


CHILD = """
import sys
import warnings
from morphkv_cpp import Llama, MorphKV
llm = Llama(sys.argv[1], morphkv=MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0),
            archive=sys.argv[2], n_threads=1, n_threads_batch=1, verbose=False)
for i in range(10**6):
    llm.eval([3 + i % 300] * 8)
    if i == 60:
        print("writing", flush=True)
"""


def test_a_file_outlives_a_killed_process_and_others_are_refused(open_llama, model, tmp_path):
    path = tmp_path / "chat.archive"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(model), str(path)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert child.stdout.readline() == "writing\n"
    child.kill()
    child.wait()
    child.stdout.close()
    llm = open_llama(archive=path)
    assert llm.cache_stats().n_archived >= 300
    llm.close()

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match="truncated"):
        open_llama(archive=path)
    assert path.stat().st_size == len(whole) // 2
    path.write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(RuntimeError, match="no archive"):
        open_llama(archive=path)
    assert path.read_bytes().startswith(b"Dear diary")


@pytest.fixture
def small_disk():
    """Files cannot grow beyond 100 KB; a write that would fails, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_stops_the_archive_and_not_the_chat(open_llama, tmp_path, small_disk):
    llm = open_llama(archive=tmp_path / "chat.archive")
    with pytest.warns(RuntimeWarning, match="the archive stopped: .*cannot be written.*the chat continues"):
        llm.eval(some_tokens(1000))
    n_archived = llm.cache_stats().n_archived
    assert 0 < n_archived < 900
    assert len(greedy(llm, some_tokens(100, seed=5), 50, reset=False)) == 50
    assert llm.cache_stats().n_archived == n_archived
    assert llm.cache_stats().n_recalled > 0


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"morphkv": None}, ValueError, "an archive needs MorphKV"),
        ({"archive": 7}, TypeError, 'archive must be "ram", a path or an Archive, got 7'),
        ({"archive": ""}, ValueError, "archive must be \"ram\" or a path, got ''"),
        ({"archive": "off"}, ValueError, 'archive must be "ram" or a path, got "off", which is a file as "./off"'),
        ({"archive": "a\0b"}, ValueError, r"archive must be .* path, got 'a\\x00b'"),
        ({"morphkv": replace(SMALL, rope_limit=0)}, ValueError, "rope_limit"),
    ],
)
def test_what_is_refused(open_llama, options, error, sentence):
    with pytest.raises(error, match=sentence):
        open_llama(**{"archive": "ram", **options})


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"type": "q4_k"}, ValueError, "type must be one of .*, got 'q4_k'"),
        ({"type": 8}, TypeError, "type must be a str, got 8"),
        ({"max_bytes": -1}, ValueError, "max_bytes must not be negative, got -1"),
        ({"recall": "always"}, ValueError, 'recall must be "auto", "prompt", "off" or a number above 0'),
        ({"recall": 0}, ValueError, 'recall must be "auto", "prompt", "off" or a number above 0, got 0'),
        ({"share": 0}, ValueError, r"share must be in \(0, 1\], got 0"),
        ({"share": 1.5}, ValueError, r"share must be in \(0, 1\], got 1.5"),
        ({"redo": -1}, ValueError, "redo must not be negative"),
        ({"votes": True}, TypeError, "votes must be an int"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        Archive(**settings)


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


def test_a_recall_asks_within_the_limit_of_positions(open_llama):
    short = replace(SMALL, rope_limit=200)
    with pytest.raises(ValueError, match=r"distance must be below rope_limit \(200\), got 200"):
        open_llama(morphkv=short, archive=Archive(distance=200))
    for distance in (Archive.distance, 199):
        llm = open_llama(morphkv=short, archive=Archive(distance=distance))
        llm.eval(some_tokens(300))
        greedy(llm, some_tokens(20, seed=1), 2, reset=False)
        assert llm.cache_stats().n_recalls == 2


@pytest.mark.parametrize("end", ["generate", "save_state", "close"])
def test_an_archive_that_stopped_behind_the_last_decode_is_told_at_the_end(open_llama, monkeypatch, end):
    """Nobody waits for what is appended beside the model, so it may be known late; it is told once."""
    llm, why = open_llama(archive="ram"), ""
    monkeypatch.setattr(bridge, "why_archive_stopped", lambda *_: why)
    text = llm.generate(some_tokens(100))
    next(text)
    if end != "generate":
        text.close()
    why = "the disk is full"
    with pytest.warns(RuntimeWarning, match="the archive stopped: the disk is full"):
        {"generate": text.close, "save_state": llm.save_state, "close": llm.close}[end]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if end != "close":
            llm.eval([5])
        llm.close()
