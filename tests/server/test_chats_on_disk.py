"""--morphkv-state-dir: chats go on when the server was killed. What is wrong with a folder or a file ends no answer."""

from __future__ import annotations

import sys
import time

import pytest

from support.chats_on_disk import go_on, restart, wait_for, written
from support.server_process import TIGHT, ServerProcess, run_program
from support.server_process import some_tokens as tokens

RESTORED = 64  # tokens beside the new ones


def wait_for_line(server: ServerProcess, words: str) -> None:
    """The log is written by a thread."""
    end = time.monotonic() + 30
    while words not in server.log.read_text():
        assert time.monotonic() < end, words
        time.sleep(0.02)


@pytest.fixture
def flags(tmp_path):
    return [*TIGHT, "-np", 1, "--slots", "--metrics", "--morphkv-state-dir", tmp_path / "chats"]


@pytest.fixture
def server(start_server, tiny_llama, flags):
    return start_server(tiny_llama(), *flags)


class TestKilled:
    def test_two_chats_alternate_and_the_server_is_killed_ten_times(self, server, start_server, tiny_llama):
        """Each has a slot of its own in a server that is never killed: the same answers, bit by bit."""
        quiet = start_server(tiny_llama(), *TIGHT, "-np", 2)
        texts = [tokens(300), tokens(260, seed=5)]
        for turn in range(20):
            if turn % 2 == 1:
                restart(server)
            for i, text in enumerate(texts):
                question = [*text, *tokens(12, seed=turn)[1:]]
                mine, timings = go_on(server, question)
                assert mine == question + quiet.complete(question, 30, id_slot=i)["tokens"]
                assert turn == 0 or timings["prompt_n"] <= 11 + RESTORED
                texts[i] = mine
        assert server.slot()["morphkv"]["n_evictions"] > 10
        assert server.metrics()["llamacpp:morphkv_chats"] == 2

    def test_a_chat_of_a_hundred_turns_costs_its_last(self, server):
        text = tokens(100)
        for turn in range(100):
            text, _ = go_on(server, [*text, 260 + turn % 50, 270, 280], 20)
        size = server.metrics()["llamacpp:morphkv_chat_bytes"]
        restart(server)
        text, timings = go_on(server, [*text, 261, 271, 281], 20)
        assert len(text) > 2300
        assert timings["prompt_n"] <= 3 + RESTORED
        assert (
            server.metrics()["llamacpp:morphkv_chat_bytes"] < 1.2 * size < 2**20
        )  # its tokens apart, of constant size

    def test_its_last_answer_is_asked_for_again_or_loses_its_thinking(self, server):
        question = tokens(400)
        text, _ = go_on(server, question, 120)
        restart(server)
        again, timings = go_on(server, question, 120)
        assert again == text
        assert timings["prompt_n"] <= RESTORED
        restart(server)
        _, timings = go_on(server, [*question, *text[-30:], 261, 262])
        assert timings["prompt_n"] <= 32 + RESTORED

    def test_the_answer_says_how_much_came_from_disk(self, server):
        text, _ = go_on(server, tokens(400))
        restart(server)
        timings = server.complete([*text, 261, 262], 4)["timings"]
        assert (timings["cache_n"], timings["loaded_n"]) == (len(text) - 1, len(text) - 1)
        assert server.metrics()["llamacpp:morphkv_loaded_tokens_total"] == len(text) - 1
        assert server.count_logged("come from disk") > 0
        assert "loaded_n" not in server.complete([*text, 261, 262], 4)["timings"]

    @pytest.mark.parametrize("flag", [[], ["--morphkv-archive", "ram"]], ids=["", "archive"])
    def test_recurrent_layers_go_on_too(self, start_server, tiny_hybrid, flags, flag):
        server = start_server(tiny_hybrid, *flags, "--morphkv-capacity", 256, "--morphkv-window", 32, *flag)
        text, _ = go_on(server, tokens(400), 150)
        restart(server)
        _, timings = go_on(server, [*text, 261, 262])
        assert timings["prompt_n"] <= 2 + RESTORED

    def test_one_that_is_edited_far_back_does_not_replace_it(self, server):
        text, _ = go_on(server, tokens(400), 60)
        edited, _ = go_on(server, [*text[:100], *tokens(300, seed=7)[1:]], 60)
        restart(server)
        for one in (text, edited):
            assert go_on(server, [*one, 261, 262])[1]["prompt_n"] <= 2 + RESTORED

    def test_requests_that_want_no_cache_get_none(self, server):
        text, _ = go_on(server, tokens(400))
        restart(server)
        assert server.complete([*text, 261], 4, cache_prompt=False)["timings"]["prompt_n"] == len(text) + 1

    def test_it_wakes_with_them(self, start_server, tiny_llama, flags):
        server = start_server(tiny_llama(), *flags, "--sleep-idle-seconds", 1)
        text, _ = go_on(server, tokens(400))
        end = time.monotonic() + 30
        while not server.get("/props")["is_sleeping"] and time.monotonic() < end:
            time.sleep(0.1)
        assert server.complete([*text, 261], 4)["timings"]["loaded_n"] == len(text) - 1


class TestFolder:
    def test_the_least_recently_used_leave_it_where_it_is_full(self, start_server, tiny_llama, flags, tmp_path):
        server = start_server(tiny_llama(), *flags, "--morphkv-state-max", 1)
        texts = [go_on(server, tokens(400, seed=i))[0] for i in range(12)]
        files = list((tmp_path / "chats").iterdir())
        assert 2**19 < sum(file.stat().st_size for file in files) <= 2**20
        assert server.get("/props")["morphkv"]["chats"] == len(files) < 12
        restart(server)
        assert server.complete([*texts[0], 261], 4)["timings"]["prompt_n"] == len(texts[0]) + 1
        assert server.complete([*texts[-1], 261], 4)["timings"]["prompt_n"] <= 1 + RESTORED

    def test_files_of_others_are_ignored_with_a_line(self, server, start_server, tiny_llama, flags, tmp_path):
        text, _ = go_on(server, tokens(400))
        (file,) = (tmp_path / "chats").iterdir()
        # the second finds the first one's chat, too
        for n, (model, *more) in enumerate(([tiny_llama(seed=1)], [tiny_llama(), "--morphkv-window", 24]), start=1):
            stranger = start_server(model, *flags, *more)
            wait_for_line(stranger, f"{n} of another model or other settings, 0 damaged")
            assert stranger.complete([*text, 261], 4)["timings"]["prompt_n"] == len(text) + 1
            stranger.stop()
        assert file.is_file()

    def test_damaged_files_are_ignored_with_a_line(self, server, tmp_path):
        texts = [go_on(server, tokens(400, seed=i))[0] for i in range(3)]
        server.kill()
        files = sorted((tmp_path / "chats").iterdir(), key=lambda path: path.stat().st_mtime)
        whole = files[1].read_bytes()
        files[0].write_bytes(files[0].read_bytes()[:5000])
        files[1].write_bytes(whole[:-900] + bytes([whole[-900] ^ 1]) + whole[-899:])
        (tmp_path / "chats" / "more.chat").write_text("something else")
        server.start()
        wait_for_line(server, "0 of another model or other settings, 2 damaged")
        n = [server.complete([*text, 261], 4)["timings"]["prompt_n"] for text in texts]
        assert n[:2] == [len(text) + 1 for text in texts[:2]]
        assert n[2] <= 1 + RESTORED
        assert "cannot go on from" in server.log.read_text()

    def test_what_a_killed_server_was_writing_is_removed(self, server, tmp_path):
        import os

        old = tmp_path / "chats" / "0.chat.tmp"
        old.write_text("half")
        os.utime(old, (1, 1))
        restart(server)
        assert not old.exists()

    @pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
    def test_a_full_disk_ends_no_answer(self, start_server, tiny_llama, flags, tmp_path):
        limit = 384 * 1024  # more than the server writes into its log
        server = start_server(tiny_llama(), *flags, "--morphkv-capacity", 1024, file_bytes=limit)
        text = tokens(1500)
        for n_failed in (1, 2):
            done = server.complete(text, 30)
            wait_for(server, n_failed, "failed")
            text = [*text, *done["tokens"], 261]
        assert written(server) == 0
        assert server.count_logged("a chat could not be kept in") == 1
        assert list((tmp_path / "chats").iterdir()) == []
        assert server.complete(text, 4)["timings"]["prompt_n"] < 10

    def test_a_chat_that_is_larger_than_the_limit_is_told(self, start_server, tiny_llama, flags, tmp_path):
        server = start_server(tiny_llama(), *flags, "--morphkv-capacity", 2048, "--morphkv-state-max", 1)
        server.complete(tokens(2500), 4)
        wait_for(server, 1, "failed")
        assert server.count_logged("it is larger than --morphkv-state-max") > 0
        assert list((tmp_path / "chats").iterdir()) == []

    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            (["--morphkv-state-max", 10], "--morphkv-state-max needs --morphkv-state-dir PATH"),
            (["--morphkv-state-dir", "x", "--morphkv-state-max", -1], "must not be negative, got -1"),
            (["--morphkv-state-dir", __file__], "--morphkv-state-dir must be a folder that can be written, got"),
        ],
    )
    def test_flags_that_are_refused(self, tiny_llama, flags, sentence):
        done = run_program("llama-server", "--model", tiny_llama(), *TIGHT, "--port", 0, *flags)
        assert done.returncode == 1
        assert sentence in done.stdout
