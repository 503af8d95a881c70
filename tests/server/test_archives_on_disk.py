"""--morphkv-state-dir keeps archives as well: a chat goes on after kill -9 as it would have gone on without."""

from __future__ import annotations

import pytest

from support.chats_on_disk import go_on, restart
from support.server_process import TIGHT, ServerProcess
from support.server_process import some_tokens as tokens

N_ANSWER = 30  # as go_on has it


def n_archived(server: ServerProcess, i: int = 0) -> int:
    return server.slot(i)["morphkv"]["n_archived"]


@pytest.fixture(params=["ram", "file"])
def archive(request, tmp_path):
    return ["--morphkv-archive", "ram" if request.param == "ram" else tmp_path / "a.archive"]


@pytest.fixture
def flags(tmp_path, archive):
    return [*TIGHT, "--slots", "--metrics", "--morphkv-state-dir", tmp_path / "chats", *archive]


def pages(tmp_path):
    return sorted((tmp_path / "chats").glob("*.pages"))


class TestKilled:
    def test_two_chats_take_turns(self, start_server, tiny_llama, flags):
        """Each has a slot of its own in a server that is never killed: the same answers, and the same archive."""
        server = start_server(tiny_llama(), *flags, "-np", 1)
        quiet = start_server(tiny_llama(), *TIGHT, "--slots", "--morphkv-archive", "ram", "-np", 2)
        texts = [tokens(500), tokens(460, seed=5)]
        for turn in range(10):
            if turn % 2 == 1:
                restart(server)
            for i, text in enumerate(texts):
                question = [*text, *tokens(40, seed=turn)[1:]]
                mine, _ = go_on(server, question)
                assert mine == question + quiet.complete(question, N_ANSWER, id_slot=i)["tokens"], (turn, i)
                assert n_archived(server) == n_archived(quiet, i) > 300
                texts[i] = mine

    def test_files_grow_by_what_is_new(self, start_server, tiny_llama, flags, tmp_path):
        server = start_server(tiny_llama(), *flags, "-np", 1)
        text, _ = go_on(server, tokens(500))
        (file,) = pages(tmp_path)
        before = file.read_bytes()
        go_on(server, [*text, *tokens(200, seed=3)[1:]])
        assert pages(tmp_path) == [file]
        assert file.read_bytes()[: len(before)] == before
        assert file.stat().st_size > 1.3 * len(before)

    def test_what_was_edited_away_leaves_the_file(self, start_server, tiny_llama, flags, tmp_path):
        """And what is put in its place is there after a restart."""
        server = start_server(tiny_llama(), *flags, "-np", 1)
        quiet = start_server(tiny_llama(), *TIGHT, "--slots", "--morphkv-archive", "ram", "-np", 1)
        text, _ = go_on(server, tokens(500))
        assert text == tokens(500) + quiet.complete(tokens(500), N_ANSWER)["tokens"]
        for question in ([*text[:300], *tokens(150, seed=3)[1:]], [*text[:300], *tokens(90, seed=4)[1:]]):
            edited, _ = go_on(server, question)
            assert edited == question + quiet.complete(question, N_ANSWER)["tokens"]
        restart(server)
        again = [*edited, *tokens(60, seed=6)[1:]]
        assert go_on(server, again)[0] == again + quiet.complete(again, N_ANSWER)["tokens"]
        assert n_archived(server) == n_archived(quiet)

    def test_goes_back_by_it(self, start_server, tiny_llama, flags):
        server = start_server(tiny_llama(), *flags, "-np", 1, "--ctx-checkpoints", 0)
        text, _ = go_on(server, tokens(900))
        restart(server)
        go_on(server, [*text, 261, 262])
        took = server.complete([*text[:600], *tokens(40, seed=4)[1:]], 4)["timings"]
        assert took["restored_n"] == 600 - 128


class TestFolder:
    @pytest.fixture
    def archive(self):
        return ["--morphkv-archive", "ram"]

    @pytest.mark.parametrize("damage", ["gone", "cut", "other"])
    def test_pages_that_are_not_those_of_the_chat(self, start_server, tiny_llama, flags, tmp_path, damage):
        """The chat goes on, and archives what comes from then on."""
        server = start_server(tiny_llama(), *flags, "-np", 1)
        text, _ = go_on(server, tokens(500))
        (file,) = pages(tmp_path)
        data = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(data[: len(data) // 2] if damage == "cut" else data[:32] + b"\0" * (len(data) - 32))
        restart(server)
        longer, timings = go_on(server, [*text, 261, 262], 40)
        assert timings["loaded_n"] == len(text) - 1
        assert 0 < n_archived(server) < 100
        again, _ = go_on(server, [*longer, 261])
        restart(server)
        assert server.complete([*again, 261], 4)["timings"]["loaded_n"] == len(again) - 1
        assert n_archived(server) > 40

    def test_pages_count_for_the_limit_and_go_with_their_chat(self, start_server, tiny_llama, flags, tmp_path):
        server = start_server(tiny_llama(), *flags, "-np", 1, "--morphkv-state-max", 1)
        for i in range(8):
            go_on(server, tokens(700, seed=i))
        chats = sorted((tmp_path / "chats").glob("*.chat"))
        assert 0 < len(chats) < 8
        assert {file.stem for file in pages(tmp_path)} <= {file.stem for file in chats}
        assert sum(file.stat().st_size for file in [*chats, *pages(tmp_path)]) <= 2**20
