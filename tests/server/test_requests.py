"""What clients ask for besides plain text: several answers, grammars, adapters, drafts, nonsense, and to stop."""

import json
import re
import time
from typing import ClassVar

import gguf
import numpy as np
import pytest

from morphkv_cpp.eval import prose_sections
from support.server_process import TIGHT
from support.server_process import some_tokens as tokens


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama, tmp_path_factory):
    return start_shared(
        tiny_llama(), *TIGHT, "-np", 4, "--slots", "--slot-save-path", tmp_path_factory.mktemp("slots"), "--metrics"
    )


def write_lora(path, shape, seed=0):
    """An adapter of rank 4 on the queries and keys of each layer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    rng = np.random.default_rng(seed)
    for layer in range(shape.n_layer):
        for name, n_out in (("attn_q", shape.n_head), ("attn_k", shape.n_head_kv)):
            tensor = f"blk.{layer}.{name}.weight"
            n_out = n_out * shape.head_size
            writer.add_tensor(f"{tensor}.lora_a", rng.standard_normal((4, shape.n_embd)).astype(np.float32))
            writer.add_tensor(f"{tensor}.lora_b", rng.standard_normal((n_out, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class TestSeveralAnswers:
    def test_n_answers_share_a_prompt_longer_than_the_cells(self, server):
        messages = [{"role": "user", "content": "a long question " * 40}]
        one = server.chat(messages, 60)["choices"]
        three = server.chat(messages, 60, n=3)["choices"]
        assert [choice["message"] for choice in three] == [one[0]["message"]] * 3

    def test_answers_that_are_sampled_differ(self, server):
        messages = [{"role": "user", "content": "a long question " * 40}]
        choices = server.chat(messages, 60, n=3, temperature=2.0, seed=1)["choices"]
        assert len({choice["message"]["content"] for choice in choices}) == 3

    def test_more_than_slots_are_refused(self, server):
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 5})
        assert answer.status_code == 400


class TestGrammar:
    def test_it_holds_across_evictions(self, server):
        done = server.complete(tokens(300), 200, grammar='root ::= ("ab" | "cd" | " ")+', temperature=1.0)
        assert done["timings"]["evictions_n"] > 3
        assert re.fullmatch("(ab|cd| )*[ac]?", done["content"])

    def test_a_schema_gives_json_behind_a_long_prompt(self, server):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        schema["additionalProperties"] = False
        body = {"prompt": tokens(500), "json_schema": schema, "n_predict": 60, "temperature": 0}
        answer = server.post("/completion", body).json()
        assert set(json.loads(answer["content"])) == {"ok"}


# as models that know tools have it, in short
TOOLS_TEMPLATE = r"""
{%- if tools %}{{- "<|im_start|>system\nTo call a tool, write <tool_call>\n{\"name\": <name>, " }}
{{- "\"arguments\": <object>}\n</tool_call>. Tools:\n" }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- "<|im_end|>\n" }}{%- endif %}
{%- for message in messages %}
{%- if message.role == "assistant" %}
{{- "<|im_start|>assistant" }}{%- if message.content %}{{- "\n" + message.content }}{%- endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}
{{- '}\n</tool_call>' }}{%- endfor %}{{- "<|im_end|>\n" }}
{%- else %}{{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}
"""


class TestTools:
    def test_they_are_kept_as_a_part_of_the_system_prompt(self, start_server, tiny_llama, tmp_path):
        template = tmp_path / "tools.jinja"
        template.write_text(TOOLS_TEMPLATE)
        flags = [*TIGHT, "--morphkv-capacity", 400, "--morphkv-keep-system", "-np", 1]
        server = start_server(tiny_llama(), *flags, "--jinja", "--chat-template-file", template)
        tool = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}
        call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lisbon"}'}}
        messages = [{"role": "user", "content": "a long question " * 40}]
        server.chat(messages, 4)
        kept_without = server.slot()["morphkv"]["keep"]
        server.chat(messages, 4, tools=[tool])
        kept = server.slot()["morphkv"]["keep"]
        assert kept > kept_without + 50

        messages += [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "sun"},
        ]
        answer = server.chat(messages, 4, tools=[tool])
        usage = answer["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 500
        assert server.slot()["morphkv"]["keep"] == kept

    @pytest.mark.demo
    def test_one_is_called_behind_a_text_that_was_evicted(self, start_server, demo_model, tmp_path):
        """`required` does not forbid text before the call, upstream either: the model is shown how to call."""
        template = tmp_path / "tools.jinja"
        template.write_text(TOOLS_TEMPLATE)
        flags = [
            "--morphkv",
            "--morphkv-capacity",
            512,
            "--morphkv-prompt-room",
            128,
            "--morphkv-keep-system",
            "-np",
            1,
        ]
        server = start_server(demo_model, *flags, "--slots", "--jinja", "--chat-template-file", template)
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        tool = {
            "type": "function",
            "function": {"name": "weather", "description": "of a city", "parameters": parameters},
        }
        call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lisbon"}'}}
        messages = [
            {"role": "user", "content": "\n\n".join(prose_sections())[:6000] + "\nSay ok."},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "What is the weather in Lisbon?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "sun"},
            {"role": "user", "content": "What is the weather in Paris?"},
        ]
        chosen = server.chat(messages, 64, tools=[tool], tool_choice="required")["choices"][0]
        assert chosen["finish_reason"] == "tool_calls"
        (called,) = chosen["message"]["tool_calls"]
        assert (called["function"]["name"], json.loads(called["function"]["arguments"])) == (
            "weather",
            {"city": "Paris"},
        )
        assert server.slot()["morphkv"]["n_evicted"] > 512


class TestLora:
    def test_an_adapter_changes_the_answer_and_leaves_the_slot_usable(self, start_server, tiny_llama, tmp_path):
        from morphkv_cpp.models.synthetic import TinyLlamaShape

        path = write_lora(tmp_path / "lora.gguf", TinyLlamaShape())
        server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--lora", path)
        text = tokens(400)

        def answer(scale):
            return server.complete(text, 60, lora=[{"id": 0, "scale": scale}])

        without, with_it = answer(0.0), answer(1.0)
        assert with_it["tokens"] != without["tokens"]
        assert with_it["timings"]["cache_n"] == 0
        assert answer(0.0)["tokens"] == without["tokens"]
        assert without["timings"]["evictions_n"] > 0


class TestDrafts:
    """K and V in F32: one token and several are multiplied by other kernels, and what F16 rounds differently can turn a
    near tie, among tokens to be evicted as well.
    """

    TIGHT: ClassVar = [*TIGHT, "-np", 1, "-ctk", "f32", "-ctv", "f32"]

    # a draft model of other weights: most drafts are taken back, some where an eviction is near
    @pytest.mark.parametrize("seed", [0, 1], ids=["own draft", "other draft"])
    def test_a_draft_model_gives_the_same_greedy_text(self, start_server, tiny_llama, seed):
        draft = ["--spec-draft-model", tiny_llama(seed=seed), "--spec-type", "draft-simple"]
        draft += ["--spec-draft-n-max", 8, "--spec-draft-p-min", 0.0]
        plain = start_server(tiny_llama(), *self.TIGHT)
        drafting = start_server(tiny_llama(), *self.TIGHT, *draft)
        for text in map(tokens, (150, 250, 350, 450)):
            one, two = (server.complete(text, 150, cache_prompt=False) for server in (plain, drafting))
            assert two["tokens"] == one["tokens"]
            assert two["timings"]["evicted_n"] == one["timings"]["evicted_n"]
            assert two["timings"]["draft_n"] > 0
            assert seed or two["timings"]["draft_n_accepted"] > 20
        more = [*text, *two["tokens"], 261, 262]
        assert drafting.complete(more, 150)["timings"]["cache_n"] == len(more) - 3

    def test_drafts_may_be_longer_than_the_window(self, start_server, tiny_llama):
        """They are cut to what can be taken back."""
        draft = ["--spec-draft-model", tiny_llama(seed=1), "--spec-type", "draft-simple"]
        draft += ["--spec-draft-n-max", 48, "--spec-draft-p-min", 0.0]
        plain = start_server(tiny_llama(), *self.TIGHT)
        drafting = start_server(tiny_llama(), *self.TIGHT, *draft)
        one, two = plain.complete(tokens(300), 200), drafting.complete(tokens(300), 200)
        assert two["tokens"] == one["tokens"]

    def test_n_grams_need_no_model(self, start_server, tiny_llama):
        plain = start_server(tiny_llama(), *self.TIGHT)
        drafting = start_server(tiny_llama(), *self.TIGHT, "--spec-type", "ngram-simple")
        text = tokens(60) * 6
        one, two = plain.complete(text, 200), drafting.complete(text, 200)
        assert two["tokens"] == one["tokens"]


class TestStopping:
    def test_a_closed_connection_frees_the_slot(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1)
        expected = server.complete(tokens(300), 40, cache_prompt=False)["tokens"]
        for n_events in range(1, 60, 6):  # before, in and behind evictions: one falls every 16 tokens
            events = server.stream("/completion", {"prompt": tokens(300), "n_predict": -1, "ignore_eos": True})
            for _ in range(n_events):
                next(events)
            events.close()
        assert server.complete(tokens(300), 40, cache_prompt=False)["tokens"] == expected


MALFORMED = [
    ("/completion", b"{", "parse error"),
    ("/completion", {}, "prompt"),
    ("/completion", {"prompt": [10**6], "n_predict": 1}, "invalid tokens"),
    ("/completion", {"prompt": "x", "n_predict": "many"}, "n_predict"),
    ("/completion", {"prompt": "x", "grammar": "root ::= ("}, "grammar"),
    ("/completion", {"prompt": "x", "n_keep": 10**6}, "n_keep must be below"),
    ("/v1/chat/completions", {}, "'messages' is required"),
    ("/v1/chat/completions", {"messages": "hello"}, "Expected 'messages' to be an array"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "must contain 'content'"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3}, "logprobs"),
    ("/slots/0?action=restore", {"filename": "missing.bin"}, "Unable to restore slot"),
    ("/slots/0?action=save", {"filename": "../out.bin"}, "Invalid filename"),
    ("/slots/x?action=save", {"filename": "a.bin"}, "Invalid slot ID"),
    ("/slots/0?action=dance", {}, "Invalid action"),
    ("/nothing", {}, "Not Found"),
]


@pytest.mark.parametrize("path, body, reason", MALFORMED, ids=[f"{path} {body}"[:60] for path, body, _ in MALFORMED])
def test_nonsense_is_refused_with_a_reason(server, path, body, reason):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert reason.lower() in answer.json()["error"]["message"].lower()
    assert server.is_alive()


def test_it_sleeps_and_wakes(start_server, tiny_llama):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--sleep-idle-seconds", 1, "--metrics")
    first = server.complete(tokens(400), 40)
    end = time.monotonic() + 30
    while not server.get("/props")["is_sleeping"] and time.monotonic() < end:
        time.sleep(0.1)
    assert server.get("/props")["morphkv"]["capacity"] == 128
    evicted = server.metrics()["llamacpp:morphkv_evicted_tokens_total"]
    assert evicted == first["timings"]["evicted_n"]
    assert server.complete(tokens(400), 40)["tokens"] == first["tokens"]
    assert server.metrics()["llamacpp:morphkv_evicted_tokens_total"] == 2 * evicted
