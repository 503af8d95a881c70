"""What a server says of its cache, and prompts that are longer than it."""

import json
import math
import re

import pytest

from support.server_process import TIGHT
from support.server_process import some_tokens as tokens


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama):
    return start_shared(tiny_llama(), *TIGHT, "--metrics", "--slots", "-np", 2)


@pytest.fixture(scope="module")
def stock(start_shared, tiny_llama):
    return start_shared(tiny_llama(), "-np", 1, "-c", 256, "--metrics", "--slots", "--flash-attn", "on")


class TestOff:
    def test_nothing_speaks_of_morphkv(self, stock):
        done = stock.complete(tokens(20), 4)
        props = stock.get("/props")
        del props["build_info"]
        seen = [props, stock.get("/slots"), done, stock.http.get("/metrics").text]
        assert "morphkv" not in str(seen)
        assert "evict" not in str(seen)

    def test_until_the_first_eviction_answers_are_stock_bit_by_bit(self, stock, server):
        asked = {"n_probs": 5, "cache_prompt": False, "id_slot": 0}
        on, off = (one.complete(tokens(60), 60, **asked) for one in (server, stock))
        assert on["tokens"] == off["tokens"]
        assert on["completion_probabilities"] == off["completion_probabilities"]
        assert on["timings"]["evicted_n"] == 0


class TestProps:
    def test_settings_and_memory_are_there(self, server):
        props = server.get("/props")
        assert props["default_generation_settings"]["n_ctx"] == 2**31 - 1
        expected = {"capacity": 128, "window": 16, "votes": 16, "prompt_room": 64, "interval": 16, "fusion": "sum"}
        expected |= {"policy": "morphkv", "protect": 0}
        expected |= {"decay": 0.0, "keep": 4, "keep_system": False, "rope_limit": 8192, "n_cells": 256}
        # 2 slots, 256 cells, 2 layers, 2 KV heads of 32, K and V, f16
        expected |= {"kv_bytes": 2 * 256 * 2 * 2 * 32 * 2 * 2}
        assert {key: props["morphkv"].get(key) for key in expected} == expected
        assert props["morphkv"]["extra_bytes"] > 0


class TestLongPrompts:
    def test_stock_refuses_what_is_longer_than_its_cells(self, stock):
        answer = stock.post("/completion", {"prompt": tokens(1000), "n_predict": 4})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "exceed_context_size_error"

    def test_morphkv_answers(self, server):
        done = server.complete(tokens(1000), 40, id_slot=1, cache_prompt=False)
        assert (done["tokens_evaluated"], len(done["tokens"]), done["truncated"]) == (1000, 40, False)
        timings = done["timings"]
        assert timings["prompt_n"] == 1000
        # the prompt alone: 192 cells at most, and 128 after each cut
        assert timings["evicted_n"] >= 1000 - 192
        assert timings["evictions_n"] > 0
        assert timings["evict_ms"] > 0

    def test_thirty_thousand_tokens_with_the_memory_of_two_thousand(self, start_server, tiny_llama):
        prompt = tokens(30000)
        stock = start_server(tiny_llama(), "-np", 1, "-c", 2048)
        morphkv = start_server(tiny_llama(), "-np", 1, "--morphkv", "--morphkv-capacity", 1024)
        assert (
            morphkv.get("/props")["morphkv"]["n_cells"] == stock.get("/props")["default_generation_settings"]["n_ctx"]
        )
        refused = stock.post("/completion", {"prompt": prompt, "n_predict": 20})
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "exceed_context_size_error")
        done = morphkv.complete(prompt, 20)
        assert (done["timings"]["prompt_n"], len(done["tokens"])) == (30000, 20)

    def test_slots_and_metrics_tell_the_same_as_timings(self, server):
        before = server.slot(0)["morphkv"], server.metrics()
        server.complete(tokens(20), 1, id_slot=0, cache_prompt=False)  # the slot counts from 0 again
        done = server.complete(tokens(700, seed=3), 50, id_slot=0, cache_prompt=False)
        after = server.slot(0)["morphkv"], server.metrics()

        assert after[0]["n_evicted"] == done["timings"]["evicted_n"]
        assert after[0]["n_evictions"] == done["timings"]["evictions_n"]
        assert after[0]["n_used"] == done["timings"]["kept_n"]
        assert after[0]["logical_pos"] == 700 + 50 - 2  # the last token was written and never read
        assert after[0]["n_used"] + after[0]["n_evicted"] == after[0]["logical_pos"] + 1
        assert 0 < after[0]["complete_pos"] <= after[0]["exact_pos"] <= after[0]["logical_pos"] + 1
        assert (after[0]["capacity"], after[0]["keep"], after[0]["n_cells"]) == (128, 4, 256)
        assert after[0]["rotary_offset"] == 0

        def grown(name: str) -> float:
            return after[1][f"llamacpp:morphkv_{name}"] - before[1][f"llamacpp:morphkv_{name}"]

        assert grown("evicted_tokens_total") == after[0]["n_evicted"]
        assert grown("evictions_total") == after[0]["n_evictions"]
        seconds = after[0]["evict_ms"] - before[0]["evict_ms"]
        assert math.isclose(grown("eviction_seconds_total"), seconds / 1e3, rel_tol=1e-3)
        assert after[1]["llamacpp:morphkv_cells"] == 512
        assert after[1]["llamacpp:morphkv_cells_used"] == sum(
            slot["morphkv"]["n_used"] for slot in server.get("/slots")
        )

    def test_positions_go_on_when_rotary_ones_are_rebased(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "--morphkv-rope-limit", 256, "-np", 1)
        server.complete(tokens(1000), 10)
        slot = server.slot()["morphkv"]
        assert slot["n_rebases"] > 0
        assert 0 < slot["logical_pos"] - slot["rotary_offset"] < 256
        assert slot["logical_pos"] == 1008

    def test_c_limits_a_slot_and_costs_no_memory(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 2, "-c", 600)
        props = server.get("/props")
        assert props["default_generation_settings"]["n_ctx"] == 600
        assert props["morphkv"]["n_cells"] == 256
        assert server.post("/completion", {"prompt": tokens(600), "n_predict": 1}).status_code == 400
        done = server.complete(tokens(590), 50)
        assert (len(done["tokens"]), done["truncated"]) == (10, True)


class TestKeep:
    def kept(self, start_server, tiny_llama, *flags, **asked) -> int:
        server = start_server(tiny_llama(), *TIGHT, "-np", 1, *flags)
        server.complete(tokens(300), 2, **asked)
        return server.slot()["morphkv"]["keep"]

    def test_keep_is_counted_behind_the_first_token(self, start_server, tiny_llama):
        assert self.kept(start_server, tiny_llama, "--keep", 20) == 21

    def test_a_request_may_want_more(self, start_server, tiny_llama):
        assert self.kept(start_server, tiny_llama, n_keep=50) == 51

    def test_all_of_the_prompt_is_what_capacity_allows(self, start_server, tiny_llama):
        assert self.kept(start_server, tiny_llama, n_keep=-1) == 128 - 16 - 1

    def test_more_than_fits_is_refused(self, server):
        answer = server.post("/completion", {"prompt": tokens(20), "n_predict": 1, "n_keep": 111})
        assert answer.status_code == 400
        assert "n_keep must be below capacity - window = 112 tokens to be kept, got 112" in answer.text

    def test_more_than_the_slot_is_sure_to_have_means_the_prompt_is_processed_anew(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1)
        first = server.complete(tokens(300), 2)
        longer = tokens(300) + first["tokens"] + [270]
        again = server.complete(longer, 2, n_keep=30)
        assert again["timings"]["cache_n"] == 0
        assert server.slot()["morphkv"]["keep"] == 31
        third = server.complete([*longer, *again["tokens"], 271], 2, n_keep=30)
        assert third["timings"]["cache_n"] > 300


class TestSystemPrompt:
    SYSTEM = "abcdefghij klmno"

    def messages(self, system, question):
        return [{"role": "system", "content": system}, {"role": "user", "content": question}]

    def test_it_is_kept_up_to_the_question(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--morphkv-keep-system")
        kept = []
        for question in ("hello", "a question", "another " * 30):
            server.chat(self.messages(self.SYSTEM, question), 2)
            kept.append(server.slot()["morphkv"]["keep"])
        template = server.post("/apply-template", {"messages": self.messages(self.SYSTEM, "?")}).json()["prompt"]
        before = template[: template.index("?")]
        n_system = len(server.post("/tokenize", {"content": before, "add_special": True}).json()["tokens"])
        assert n_system - 1 <= kept[0] <= n_system
        assert kept == kept[:1] * 3

    def test_however_it_is_asked_for(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--morphkv-keep-system")
        messages = self.messages(self.SYSTEM, "hello")
        server.chat(messages, 2)
        kept = server.slot()["morphkv"]["keep"]
        schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
        limits = {"temperature": 0, "max_tokens": 2}
        asked = [
            ("/v1/chat/completions", {"messages": messages, "grammar": 'root ::= "a"+'}),
            ("/v1/chat/completions", {"messages": messages, "response_format": schema}),
            ("/v1/chat/completions", {"messages": messages, "logprobs": True, "top_logprobs": 2}),
            ("/v1/chat/completions", {"messages": [*messages, {"role": "assistant", "content": "well"}]}),
            ("/v1/messages", {"system": self.SYSTEM, "messages": messages[1:]}),
            ("/v1/responses", {"instructions": self.SYSTEM, "input": "hello"}),
        ]
        for path, body in asked:
            server.complete(tokens(20), 2, cache_prompt=False)
            assert server.slot()["morphkv"]["keep"] < kept
            answer = server.post(path, {**body, **limits})
            assert answer.status_code == 200, answer.text
            assert server.slot()["morphkv"]["keep"] == kept, (path, body)

    def test_one_that_does_not_fit_is_answered_with_a_warning(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 2, "--morphkv-keep-system")
        long = self.messages("x" * 200, "hello")
        warnings = [server.chat(long, 20, id_slot=0)["timings"].get("warning") for _ in range(2)]
        assert warnings[0] == warnings[1]
        found = re.fullmatch(
            r"the system prompt can be evicted: it has (\d+) tokens, and capacity - window - 1 = 111 can be kept; "
            r"start the server with --morphkv-capacity (\d+)",
            warnings[0],
        )
        n_system, capacity = map(int, found.groups())
        assert n_system > 200
        assert server.slot(0)["morphkv"]["keep"] == 4
        assert server.count_logged("the system prompt can be evicted") == 1
        # of this request alone
        short = server.chat(self.messages(self.SYSTEM, "hello"), 2, id_slot=0)
        assert "warning" not in short["timings"]
        assert server.slot(0)["morphkv"]["keep"] > 4
        assert "warning" not in server.complete(tokens(20), 2, id_slot=1)["timings"]

        roomy = start_server(tiny_llama(), *TIGHT, "--morphkv-capacity", capacity, "-np", 1, "--morphkv-keep-system")
        assert "warning" not in roomy.chat(long, 2)["timings"]
        assert roomy.slot()["morphkv"]["keep"] == n_system

    def test_the_warning_is_in_a_stream_and_in_each_of_several_answers(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 2, "--morphkv-keep-system")
        body = {"messages": self.messages("x" * 200, "hello"), "max_tokens": 4}
        last = [json.loads(event) for event in server.stream("/v1/chat/completions", body) if event != "[DONE]"][-1]
        assert "can be evicted" in last["timings"]["warning"]
        assert "can be evicted" in server.chat(body["messages"], 4, n=2)["timings"]["warning"]

    def test_without_one_nothing_changes(self, start_server, tiny_llama):
        question = [{"role": "user", "content": "a long question " * 20}]
        with_it, without = (
            start_server(tiny_llama(), *TIGHT, "-np", 1, flag)
            for flag in ("--morphkv-keep-system", "--no-morphkv-keep-system")
        )
        assert with_it.chat(question, 40)["choices"] == without.chat(question, 40)["choices"]
        assert with_it.slot()["morphkv"]["keep"] == without.slot()["morphkv"]["keep"] == 4
