"""Texts on disk: a fresh Llama goes on from what another one has written; on tiny models."""

import logging
import os

import pytest

from morphkv_cpp import Archive, Llama, LlamaDiskCache, MorphKV, NoMorphKVError
from support.tiny import QUIET, count_evaluated, some_tokens

N_BESIDE = 64  # tokens beside the new ones
SMALL = MorphKV(capacity=96, window=8, interval=8, keep=2, prompt_room=0)
OTHER = MorphKV(capacity=128, window=8, interval=8, keep=2, prompt_room=0)
CHAT = some_tokens(400), some_tokens(600, seed=5)


@pytest.fixture
def open_llm(tiny_llama, tmp_path):
    """A Llama as in a fresh process, with the texts of a folder."""
    opened = []

    def open_(morphkv=SMALL, folder=tmp_path / "texts", capacity_bytes=2 << 30, pages=False, **options):
        opened.append(Llama(str(tiny_llama()), morphkv=morphkv, **options, **QUIET))
        opened[-1].set_cache(LlamaDiskCache(folder, capacity_bytes, archive=pages))
        return opened[-1]

    yield open_
    for llm in opened:
        llm.close()


def ask(llm, text, n=30):
    """The text with its answer, but for the answer's last token, which is not in the cache."""
    llm.create_completion(text, max_tokens=n, temperature=0.0, logit_bias={2: -100.0})
    return llm.input_ids[: llm.n_tokens].tolist()


def n_evaluated(llm, monkeypatch, text):
    with monkeypatch.context() as patch:
        lengths = count_evaluated(llm, patch)
        ask(llm, text, 1)
    return sum(lengths)


def files(tmp_path):
    return sorted((tmp_path / "texts").glob("*.text"))


class TestGoesOn:
    def test_a_fresh_llama_says_what_the_old_one_would(self, open_llm, monkeypatch):
        llm = open_llm()
        text = [*ask(llm, CHAT[0]), *some_tokens(12, seed=7)]
        fresh = open_llm()
        assert n_evaluated(fresh, monkeypatch, text) == 12
        assert (fresh.last_prompt.n_cached, fresh.last_prompt.n_evaluated) == (len(text) - 12, 12)
        assert ask(open_llm(), text) == ask(llm, text)

    def test_a_chat_of_a_hundred_turns_costs_its_last(self, open_llm, monkeypatch, tmp_path):
        llm, text, sizes = open_llm(), CHAT[0], []
        for turn in range(100):
            text = [*ask(llm, text, 10), *some_tokens(9, seed=turn)]
            (file,) = files(tmp_path)
            sizes.append(file.stat().st_size)
        assert len(text) > 2000
        assert n_evaluated(open_llm(), monkeypatch, text) <= 9 + N_BESIDE
        # ids alone grow
        assert sizes[-1] - sizes[10] <= 4 * 90 * 20 + 20_000

    def test_two_chats_take_turns(self, open_llm, monkeypatch, tmp_path):
        """The cache has one of them at a time, and the process ends at each turn."""
        texts = list(CHAT)
        straight = [open_llm(folder=tmp_path / f"{i}") for i in range(2)]
        for turn in range(4):
            llm = open_llm()
            for i, text in enumerate(texts):
                question = [*text, *some_tokens(12, seed=turn)]
                texts[i] = ask(llm, question)
                assert texts[i] == ask(straight[i], question)
                assert turn == 0 or llm.last_prompt.n_evaluated <= 12 + N_BESIDE
        assert len(files(tmp_path)) == 2

    def test_an_answer_asked_for_again(self, open_llm, monkeypatch):
        """Long enough that its beginning is evicted."""
        ask(open_llm(), CHAT[0], 200)
        assert n_evaluated(open_llm(), monkeypatch, CHAT[0]) <= N_BESIDE

    def test_what_is_here_goes_before(self, open_llm, monkeypatch):
        llm = open_llm()
        text = ask(llm, CHAT[0])
        with monkeypatch.context() as patch:
            patch.setattr(LlamaDiskCache, "_give", None)
            ask(llm, [*text, 5, 6])

    def test_a_session_steps_aside(self, open_llm, monkeypatch):
        text = ask(open_llm(), CHAT[0])
        llm = open_llm(chat_format="chatml")
        chat = llm.session("abc")
        chat.ask("one", max_tokens=5)
        assert n_evaluated(llm, monkeypatch, [*text, 5, 6]) <= 2 + N_BESIDE
        chat.ask("two", max_tokens=5)
        assert chat.n_turns == 2

    def test_a_chat_completion(self, open_llm):
        messages = [{"role": "user", "content": "what about the trams and the old tiles " * 12}]
        open_llm(chat_format="chatml").create_chat_completion(messages, max_tokens=5, temperature=0.0)
        again = open_llm(chat_format="chatml").create_chat_completion(messages, max_tokens=5, temperature=0.0)
        usage = again["usage"]
        assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] <= N_BESIDE


class TestArchive:
    def test_without_its_pages_it_begins_anew(self, open_llm, monkeypatch, tmp_path):
        text = ask(open_llm(archive="ram"), CHAT[1])
        llm = open_llm(archive=Archive("ram", recall="off"))
        assert n_evaluated(llm, monkeypatch, [*text, *some_tokens(12, seed=7)]) == 12
        assert 0 < llm.cache_stats().n_archived < 50

    def test_with_its_pages(self, open_llm, monkeypatch):
        llm = open_llm(archive="ram", pages=True)
        text = [*ask(llm, CHAT[1]), *some_tokens(12, seed=7)]
        fresh = open_llm(archive="ram", pages=True)
        n_before = llm.cache_stats().n_archived
        assert ask(fresh, text) == ask(llm, text)
        assert fresh.cache_stats().n_archived == llm.cache_stats().n_archived >= n_before > 500
        # and so it goes back by it
        ask(fresh, [*text[:450], *some_tokens(12, seed=8)])
        assert fresh.last_prompt.n_restored == 450 - 128

    @pytest.mark.parametrize("pages", [False, True])
    def test_asked_again_and_on(self, open_llm, monkeypatch, pages):
        ask(open_llm(archive="ram", pages=pages), CHAT[1], 200)
        llm = open_llm(archive="ram", pages=pages)
        text = ask(llm, CHAT[1], 20)
        assert llm.last_prompt.n_evaluated <= N_BESIDE
        ask(llm, [*text, 5, 6], 40)
        assert llm.last_prompt.n_evaluated <= 3


class TestFolder:
    def test_the_least_recently_used_goes_first(self, open_llm, monkeypatch, tmp_path):
        llm = open_llm()
        ask(llm, CHAT[0])
        (first,) = files(tmp_path)
        n_bytes = first.stat().st_size
        llm = open_llm(capacity_bytes=int(2.6 * n_bytes))
        ask(llm, CHAT[1])
        (second,) = set(files(tmp_path)) - {first}
        ask(llm, [*CHAT[0], 5])  # uses the first, and takes its place
        ask(llm, some_tokens(500, seed=9))
        assert llm.cache.cache_size <= 2.6 * n_bytes
        assert second not in files(tmp_path)
        assert len(files(tmp_path)) == 2

    def test_one_that_is_too_large_is_told_once(self, open_llm, tmp_path, caplog):
        llm = open_llm(capacity_bytes=1000)
        with caplog.at_level(logging.WARNING, logger="morphkv_cpp"):
            ask(llm, CHAT[0])
            ask(llm, CHAT[1])
        assert caplog.text.count("a text could not be kept") == 1
        assert "capacity_bytes must be at least its" in caplog.text
        assert files(tmp_path) == []

    @pytest.mark.parametrize("what", ["settings", "archive", "damaged", "cut"])
    def test_others_are_ignored_with_a_line(self, open_llm, monkeypatch, tmp_path, caplog, what):
        ask(open_llm(archive="ram" if what == "archive" else None), CHAT[0])
        (file,) = files(tmp_path)
        data = file.read_bytes()
        if what == "damaged":
            file.write_bytes(data[:30] + b"x" + data[31:])
        elif what == "cut":
            file.write_bytes(data[:-9])
        before = file.read_bytes()
        with caplog.at_level(logging.WARNING, logger="morphkv_cpp"):
            llm = open_llm(OTHER if what == "settings" else SMALL)
        assert f"1 files of {tmp_path / 'texts'} are ignored" in caplog.text
        assert n_evaluated(llm, monkeypatch, CHAT[0]) == len(CHAT[0])
        assert file.read_bytes() == before

    def test_a_state_that_is_damaged_is_found_out_late(self, open_llm, monkeypatch, tmp_path, caplog):
        ask(open_llm(), CHAT[0])
        (file,) = files(tmp_path)
        data = bytearray(file.read_bytes())
        data[-100] ^= 1
        file.write_bytes(data)
        llm = open_llm()
        with caplog.at_level(logging.WARNING, logger="morphkv_cpp"):
            assert n_evaluated(llm, monkeypatch, CHAT[0]) == len(CHAT[0])
        assert "a text cannot go on from" in caplog.text
        assert "its checksum is wrong" in caplog.text

    def test_a_folder_that_is_gone_ends_no_answer(self, open_llm, tmp_path, caplog):
        llm = open_llm()
        os.rmdir(tmp_path / "texts")
        with caplog.at_level(logging.WARNING, logger="morphkv_cpp"):
            assert len(ask(llm, CHAT[0])) > 400
        assert "a text could not be kept" in caplog.text

    def test_left_overs_are_removed(self, open_llm, tmp_path):
        (tmp_path / "texts").mkdir()
        scratch = tmp_path / "texts" / ".a.text.x.morphkv"
        scratch.write_bytes(b"x")
        open_llm()
        assert not scratch.exists()


class TestRefused:
    def test_without_morphkv(self, open_llm):
        with pytest.raises(NoMorphKVError):
            open_llm(None)

    def test_of_two_models(self, open_llm):
        cache = open_llm().cache
        with pytest.raises(ValueError, match="is for one model and its settings"):
            open_llm(OTHER).set_cache(cache)
        open_llm().set_cache(cache)

    @pytest.mark.parametrize("n", [0, -1, 1.5, True])
    def test_a_size_that_is_none(self, n):
        with pytest.raises(ValueError, match="capacity_bytes must be an integer of at least 1"):
            LlamaDiskCache("x", n)
