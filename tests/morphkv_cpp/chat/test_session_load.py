"""Files of sessions: what they bring back, and what is refused; on tiny models."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.cache import saved_file
from morphkv_cpp.cache.saved_file import Contents
from support.chats import talk
from support.tiny import held

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)


@pytest.fixture
def saved(open_llama, tmp_path):
    """A chat past its first evictions, and its file."""
    chat = open_llama().session("abc")
    for question in ("one", "two", "three", "four"):
        talk(chat, question)
    chat.save(tmp_path / "chat")
    return chat, tmp_path / "chat"


class TestLoad:
    def test_the_chat_goes_on_the_same(self, open_llama, saved):
        chat, path = saved
        llm = open_llama()
        llm.eval([5, 6, 7])
        again = llm.load_session(path)
        assert (again.system, again.n_turns, again.n_tokens) == ("abc", 4, chat.n_tokens)
        of_context = {"scratch_bytes": 0, "evict_ms": 0, "seq_evict_ms": 0}
        assert replace(again.cache_stats(), **of_context) == replace(chat.cache_stats(), **of_context)
        for question in ("five", "six", "seven"):
            for options in ({}, {"temperature": 1.5}):
                assert talk(again, question, **options) == talk(chat, question, **options)
        assert again.last.prompt_tokens == chat.last.prompt_tokens

    def test_in_another_process_too(self, saved, tiny_llama, tmp_path):
        chat, path = saved
        code = (
            "import sys; from morphkv_cpp import Llama, MorphKV\n"
            "config = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)\n"
            "llm = Llama(sys.argv[1], morphkv=config, n_threads=1, n_threads_batch=1,"
            " verbose=False, chat_format='chatml')\n"
            "print(ascii(''.join(llm.load_session(sys.argv[2]).say('five', max_tokens=20, temperature=0.0))))"
        )
        command = [sys.executable, "-c", code, str(tiny_llama()), str(path)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == ascii("".join(chat.say("five", max_tokens=20, temperature=0.0)))

    def test_what_was_still_to_be_decoded_comes_along(self, open_llama, tmp_path):
        chat = open_llama().session("abc")
        talk(chat, "one")
        assert len(chat._text.ahead) == 1
        chat.save(tmp_path / "chat")
        again = open_llama().load_session(tmp_path / "chat")
        assert again._text.ahead == chat._text.ahead
        assert talk(again, "two") == talk(chat, "two")

    def test_a_session_that_waits_aside_can_be_saved(self, open_llama, tmp_path):
        llm = open_llama()
        chat = llm.session("abc")
        talk(chat, "one")
        llm.eval([5, 6, 7])
        chat.save(tmp_path / "chat")
        assert llm.input_ids[: llm.n_tokens][-3:].tolist() == [5, 6, 7]
        assert talk(llm.load_session(tmp_path / "chat"), "two") == talk(chat, "two")

    def test_other_sessions_of_the_llama_are_not_disturbed(self, open_llama, saved):
        _, path = saved
        llm, other = open_llama(), open_llama()
        chat, same = llm.session("xyz"), other.session("xyz")
        for one in (chat, same):
            talk(one, "one")
        talk(llm.load_session(path), "two")
        assert talk(chat, "three") == talk(same, "three")

    def test_all_token_ids_are_known(self, open_llama, saved):
        chat, path = saved
        llm = open_llama()
        llm.load_session(path)
        assert held(llm) == held(chat._llm)

    def test_of_an_old_file_only_the_newest_are(self, open_llama, saved):
        chat, path = saved
        header, ids, state = saved_file.read(path, "session")
        saved_file.write(path, "session", Contents(header, ids[-160:], state))
        llm = open_llama()
        llm.load_session(path)
        assert held(llm)[-160:] == held(chat._llm)[-160:]
        assert set(held(llm)[:-160]) == {-1}
        # so a prompt with the same start is evaluated as a whole
        next(llm.generate([*held(chat._llm), 5]))
        assert llm.last_prompt.n_common == 0


class TestSize:
    def test_it_hardly_grows_with_the_chat(self, open_llama, tmp_path):
        llm = open_llama(n_ctx=8192)
        sizes = []
        with llm.session("abc") as chat:
            for _ in range(8):
                for _ in range(10):
                    talk(chat, "hello")
                chat.save(tmp_path / "chat")
                # beside the ids of tokens, and the messages
                text = 4 * chat.n_tokens + len(chat._talk.history.as_json().encode()) * 2
                sizes.append((tmp_path / "chat").stat().st_size - text)
            n_most = llm.cache_stats().kv_bytes + llm.cache_stats().extra_bytes + 10000
            assert llm.cache_stats().logical_pos > 10 * llm.cache_stats().n_limit
        assert max(sizes) < n_most
        # it differs by the cells in use
        assert max(sizes[4:]) <= 1.05 * max(sizes[:4])


class TestRefusals:
    @pytest.mark.parametrize(
        ("other", "what"),
        [
            ({"shape": {"seed": 1}}, "model"),
            ({"shape": {"n_head_kv": 1}}, "model"),
            ({"morphkv": replace(SMALL, interval=17)}, "settings"),
            ({"chat_format": "llama-3"}, "chat template"),
        ],
        ids=["weights", "heads", "settings", "template"],
    )
    def test_another_model_or_settings(self, open_llama, saved, other, what):
        _, path = saved
        llm = open_llama(**other)
        llm.eval([5, 6, 7])
        with pytest.raises(ValueError, match=f"chat was saved with (an)?other {what}: "):
            llm.load_session(path)
        assert llm.n_tokens == 3

    def test_another_type_of_cache_is_refused_and_a_live_session_goes_on(self, open_llama, saved):
        _, path = saved
        options = {"type_k": 8, "type_v": 8}  # q8_0
        llm, other = open_llama(**options), open_llama(**options)
        chat, same = llm.session("xyz"), other.session("xyz")
        for one in (chat, same):
            talk(one, "one")
        with pytest.raises(ValueError, match=r"chat was saved with other cache types: K and V were \['f16', 'f16'\]"):
            llm.load_session(path)
        assert talk(chat, "two") == talk(same, "two")

    def test_a_session_with_an_archive_needs_one(self, open_llama, tmp_path):
        chat = open_llama(archive="ram").session("abc")
        for question in ("one", "two", "three", "four"):
            talk(chat, question)
        chat.save(tmp_path / "chat")
        with pytest.raises(
            ValueError, match=r"chat was saved with an archive: open the model with Llama\(..., archive"
        ):
            open_llama().load_session(tmp_path / "chat")
        with pytest.raises(ValueError, match="chat was saved with an archive of type 'f16', and here it is 'q8_0'"):
            open_llama(archive="auto").load_session(tmp_path / "chat")
        again = open_llama(archive="ram").load_session(tmp_path / "chat")
        assert talk(again, "five") == talk(chat, "five")

    def test_one_without_needs_none(self, open_llama, saved):
        _, path = saved
        with pytest.raises(ValueError, match="chat was saved without an archive: open the model without one"):
            open_llama(archive="ram").load_session(path)

    def test_a_chat_that_is_longer_than_n_ctx(self, open_llama, saved):
        chat, path = saved
        with pytest.raises(ValueError, match=r"n_tokens must be in 1\.\.256, got \d+"):
            open_llama(n_ctx=256).load_session(path)
        assert chat.n_tokens > 256

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("n_tokens", 10**12),
            ("n_tokens", -1),
            ("n_tokens", "7"),
            ("n_tokens", None),
            ("n_tokens", 300),
            ("n_tokens", 200),
            ("ahead", [320]),
            ("ahead", [-1]),
            ("ahead", ["x"]),
            ("ahead", 7),
            ("ahead", None),
            ("seed", 2**64),
            ("keep", 2**40),
            ("keep", "all"),
            ("system", 5),
            ("n_turns", None),
            ("model", 5),
            ("settings", []),
        ],
    )
    def test_a_header_that_is_a_lie(self, open_llama, saved, key, value):
        """With a checksum that fits. Either a sentence, or a chat that works; never anything worse."""
        chat, path = saved
        contents = saved_file.read(path, "session")
        saved_file.write(path, "session", contents._replace(header=contents.header | {key: value}))
        llm = open_llama()
        with pytest.raises((ValueError, RuntimeError)):
            talk(llm.load_session(path), "x")
        llm.eval([5, 6])
        assert talk(llm.session("abc"), "one") == talk(chat._llm.session("abc"), "one")

    @pytest.mark.parametrize("lie", ["n_tokens", "ids", "state"])
    def test_a_file_that_does_not_fit_changes_nothing(self, open_llama, saved, lie):
        """Neither the text that the Llama holds, nor a session of it, live or aside."""
        _, path = saved
        contents = saved_file.read(path, "session")
        header, ids, state = contents
        if lie == "n_tokens":
            header = header | {"n_tokens": header["n_tokens"] - 1}
        elif lie == "ids":
            ids = np.zeros(header["n_tokens"] + 1, dtype=np.int32)
        else:
            state = bytes(state[:-8]) + bytes(8)
            state = state[: len(state) // 2]
        saved_file.write(path, "session", Contents(header, ids, state))
        llm, other = open_llama(), open_llama()
        chats = [[one.session(system) for system in ("abc", "xyz")] for one in (llm, other)]
        for pair in chats:
            for chat in pair:
                talk(chat, "one")
        before = (llm.n_tokens, held(llm), llm._seed, llm.save_state().llama_state)
        with pytest.raises(ValueError, match="chat does not fit: "):
            llm.load_session(path)
        after = (llm.n_tokens, held(llm), llm._seed, llm.save_state().llama_state)
        assert after == before
        for mine, theirs in zip(*chats):
            assert talk(mine, "two") == talk(theirs, "two")

    def test_a_seed_of_any_sign_comes_back(self, open_llama, tmp_path):
        chat = open_llama().session("abc")
        talk(chat, "one", seed=-1)
        chat.save(tmp_path / "chat")
        again = open_llama().load_session(tmp_path / "chat")
        assert talk(again, "two", temperature=2.0) == talk(chat, "two", temperature=2.0)

    @pytest.mark.skipif(sys.platform == "win32", reason="devices are POSIX")
    def test_a_path_that_is_no_file(self, open_llama, saved):
        chat, _ = saved
        with pytest.raises(ValueError, match="/dev/null is not a regular file"):
            chat.save("/dev/null")
        with pytest.raises(ValueError, match="/dev/zero is not a regular file"):
            open_llama().load_session("/dev/zero")

    def test_a_missing_file(self, open_llama, tmp_path):
        with pytest.raises(FileNotFoundError):
            open_llama().load_session(tmp_path / "nothing")
