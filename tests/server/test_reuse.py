"""What of a prompt is in the cache already: turns of a chat, edits, other slots' work, saved slots."""

import pytest

from support.server_process import TIGHT
from support.server_process import some_tokens as tokens


@pytest.fixture
def server(start_server, tiny_llama, tmp_path):
    return start_server(tiny_llama(), *TIGHT, "-np", 2, "--slots", "--slot-save-path", tmp_path)


def ask(server, text: list[int], n: int = 4, **more):
    """The text with its answer, and how much of the prompt was cached."""
    done = server.complete(text, n, **{"id_slot": 0, **more})
    assert done["timings"]["cache_n"] + done["timings"]["prompt_n"] == len(text)
    assert done["tokens_evaluated"] == len(text)
    return text + done["tokens"], done["timings"]["cache_n"]


class TestTurns:
    def test_a_turn_costs_its_own_tokens(self, server):
        text, cached = ask(server, tokens(400))
        assert cached == 0
        for turn in range(10):
            before = len(text)
            text, cached = ask(server, [*text, 260 + turn, 270, 280], 30)
            assert cached == before - 1
        assert server.slot()["morphkv"]["n_evictions"] > 5

    def test_an_answer_that_is_asked_for_again_goes_on_from_a_checkpoint(self, server):
        text, _ = ask(server, tokens(400))
        question = [*text, *tokens(40, seed=5)[1:]]
        first, _ = ask(server, question, 120)  # long enough for evictions that cannot be taken back
        again, cached = ask(server, question, 120)
        assert len(question) - 8 <= cached < len(question)
        assert again == first

    def test_an_edit_far_back_is_processed_from_the_start(self, server, start_server, tiny_llama):
        text, _ = ask(server, tokens(400), 100)
        edited = [*text[:50], 299, *text[51:]]
        mine, cached = ask(server, edited, 20)
        assert cached == 0
        fresh = start_server(tiny_llama(), *TIGHT, "-np", 1)
        assert mine == ask(fresh, edited, 20)[0]

    def test_an_edit_inside_the_recent_tokens_takes_the_tail_back(self, server):
        text, _ = ask(server, tokens(400), 4)
        edited = [*text[:-6], 299, 298]
        _, cached = ask(server, edited)
        assert cached == len(text) - 6

    def test_usage_of_chats_says_so_too(self, server):
        messages = [{"role": "user", "content": "tell me something " * 12}]
        answer = server.chat(messages, 8, id_slot=0)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        again = server.chat(messages, 8, id_slot=0)
        n_prompt = again["usage"]["prompt_tokens"]
        assert n_prompt - 8 <= again["usage"]["prompt_tokens_details"]["cached_tokens"] < n_prompt
        assert again["choices"][0]["message"] == answer["choices"][0]["message"]


class TestRecurrentLayers:
    """Their state goes back to the slot's mark. It lies where the last batch of a prompt began: 4 tokens before
    its end, where llama-server makes a checkpoint, or with an archive before its last token.
    """

    ROOM = ("--morphkv-capacity", 256, "--morphkv-window", 32, "-np", 2, "--slots")

    @pytest.fixture(params=[(), ("--morphkv-archive", "ram")], ids=["", "archive"])
    def hybrid(self, start_server, tiny_hybrid, request):
        server = start_server(tiny_hybrid, *TIGHT, *self.ROOM, *request.param)
        server.n_last = 1 if request.param else 4
        return server

    def test_before_the_first_eviction_logits_are_those_of_stock(self, start_server, tiny_hybrid):
        """Bit by bit, as batches are llama-server's own."""
        morphkv = [*TIGHT, "--morphkv-capacity", 1024]
        one, two = (start_server(tiny_hybrid, *flags, "-np", 1) for flags in (["-c", 2048], morphkv))
        texts = [tokens(100), tokens(700, seed=1)]
        for text in [*texts, [*texts[1], 265]]:
            answers = [server.complete(text, 16, n_probs=5) for server in (one, two)]
            assert answers[0]["completion_probabilities"] == answers[1]["completion_probabilities"]
        assert answers[1]["timings"]["evicted_n"] == 0

    @pytest.mark.parametrize("n_prompt", [100, 400])
    def test_an_answer_that_is_asked_for_again_costs_the_last_batch(self, hybrid, n_prompt):
        question = tokens(n_prompt)
        first, cached = ask(hybrid, question, 8)
        assert cached == 0
        for _ in range(2):
            assert ask(hybrid, question, 8) == (first, n_prompt - hybrid.n_last)
        assert hybrid.slot()["morphkv"]["mark_pos"] == n_prompt - hybrid.n_last

    def test_without_checkpoints_it_costs_a_token(self, start_server, tiny_hybrid):
        """Which is decoded alone, and rounded as stock rounds it in a batch of its own."""
        flags = ("--ctx-checkpoints", 0, "-np", 1)
        server = start_server(tiny_hybrid, *TIGHT, "--morphkv-capacity", 256, *flags)
        first = server.complete(tokens(100), 8, n_probs=5)["completion_probabilities"]
        again = server.complete(tokens(100), 8, n_probs=5)
        assert again["completion_probabilities"] == first
        assert again["timings"]["cache_n"] == 99
        stock = start_server(tiny_hybrid, "-c", 2048, *flags)
        stock.complete(tokens(99), 0)
        assert stock.complete(tokens(100), 8, n_probs=5)["completion_probabilities"] == first

    def test_a_turn_costs_its_own_tokens(self, hybrid):
        text, _ = ask(hybrid, tokens(400))
        for turn in range(5):
            before = len(text)
            text, cached = ask(hybrid, [*text, 260 + turn, 270, 280], 30)
            assert cached == before - 1

    def test_a_prompt_that_leaves_the_answer_goes_on_from_where_that_began(self, hybrid):
        text, _ = ask(hybrid, tokens(100), 12)
        _, cached = ask(hybrid, [*text[:104], *tokens(20, seed=3)[1:]])
        assert cached == 100 - hybrid.n_last

    def test_behind_evictions_a_checkpoint_serves(self, hybrid):
        first, _ = ask(hybrid, tokens(400), 150)
        assert hybrid.slot()["morphkv"]["mark_pos"] == -1
        again, cached = ask(hybrid, tokens(400), 150)
        assert 400 - 8 <= cached < 400
        # what lies before a checkpoint is not read again after a recall
        assert again == first or "n_archived" in hybrid.slot()["morphkv"]


class TestHostCache:
    def test_a_text_that_had_to_leave_its_slot_comes_back(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--cache-ram", 64)
        text, _ = ask(server, tokens(400), 20)
        ask(server, tokens(300, seed=4), 20)
        expected = len(text) - 1
        _, cached = ask(server, [*text, 260, 261], 20)
        assert cached == expected

    def test_without_it_the_text_is_processed_anew(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--cache-ram", 0)
        text, _ = ask(server, tokens(400), 20)
        ask(server, tokens(300, seed=4), 20)
        assert ask(server, [*text, 260, 261], 20)[1] == 0


class TestSlots:
    def go_on(self, server, text, **more):
        done = server.complete([*text, 265, 266], 60, n_probs=3, **{"id_slot": 0, **more})
        return done["tokens"], done["completion_probabilities"], done["timings"]["cache_n"]

    def test_a_saved_slot_goes_on_bit_by_bit_after_kill_9(self, server):
        text, _ = ask(server, tokens(500), 50)
        assert server.slot_action(0, "save", filename="a.bin").status_code == 200
        expected = self.go_on(server, text)
        assert expected[2] == len(text) - 1
        events = server.stream("/completion", {"prompt": tokens(300, seed=2), "n_predict": -1, "ignore_eos": True})
        next(events)
        server.kill()
        events.close()

        server.start()
        restored = server.slot_action(0, "restore", filename="a.bin")
        assert restored.json()["n_restored"] == len(text) - 1
        assert server.slot()["morphkv"]["logical_pos"] == len(text) - 2
        assert self.go_on(server, text) == expected

    def test_another_slot_may_take_it(self, server):
        text, _ = ask(server, tokens(500), 50)
        assert server.slot_action(0, "save", filename="a.bin").status_code == 200
        expected = self.go_on(server, text)
        assert server.slot_action(1, "restore", filename="a.bin").status_code == 200
        assert self.go_on(server, text, id_slot=1) == expected

    def test_a_file_of_other_settings_is_refused_and_the_server_goes_on(
        self, server, start_server, tiny_llama, tmp_path
    ):
        ask(server, tokens(300))
        assert server.slot_action(0, "save", filename="a.bin").status_code == 200
        other = start_server(tiny_llama(), *TIGHT, "--morphkv-capacity", 96, "-np", 1, "--slot-save-path", tmp_path)
        answer = other.slot_action(0, "restore", filename="a.bin")
        assert answer.status_code == 400
        assert "Unable to restore slot" in answer.json()["error"]["message"]
        assert ask(other, tokens(300))[1] == 0

    @pytest.mark.parametrize("damage", ["cut", "flip"])
    def test_a_damaged_file_is_refused(self, server, tmp_path, damage):
        ask(server, tokens(300))
        assert server.slot_action(0, "save", filename="a.bin").status_code == 200
        data = bytearray((tmp_path / "a.bin").read_bytes())
        if damage == "cut":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 40] ^= 0xFF
        (tmp_path / "b.bin").write_bytes(data)
        assert server.slot_action(1, "restore", filename="b.bin").status_code == 400
        assert ask(server, tokens(300), id_slot=1)[1] == 0

    def test_an_erased_slot_is_empty(self, server):
        text, _ = ask(server, tokens(300))
        assert server.slot_action(0, "erase").json()["n_erased"] == len(text) - 1
        assert server.slot()["morphkv"]["logical_pos"] == -1
        assert ask(server, text, cache_prompt=True)[1] == 0
