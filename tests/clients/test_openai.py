"""The openai package: chats, responses, streams, tools, schemas, and clients that leave."""

from __future__ import annotations

import json
import time

import pytest

from support.client_chats import N_ANSWER, Messages, live_a_chat

openai = pytest.importorskip("openai")

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Lisbon", "Porto"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as one:
        yield one


def create(client, messages: Messages, **more):
    body = {"id_slot": 0, **more.pop("extra_body", {})}
    return client.chat.completions.create(
        model="any", messages=messages, extra_body=body, **{"max_tokens": N_ANSWER, "temperature": 0, **more}
    )


def test_a_chat(server, client):
    def ask(messages: Messages) -> tuple[str, int, int]:
        done = create(client, messages)
        usage = done.usage
        return done.choices[0].message.content, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens

    live_a_chat(server, ask)


def test_a_chat_of_streams(server, client):
    def ask(messages: Messages) -> tuple[str, int, int]:
        chunks = list(create(client, messages, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = chunks[-1].usage
        assert chunks[-1].timings["cache_n"] == usage.prompt_tokens_details.cached_tokens
        return text, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens

    live_a_chat(server, ask)


def test_a_chat_of_responses(server, client):
    def as_item(message: dict[str, str]) -> dict[str, object]:
        kind = "output_text" if message["role"] == "assistant" else "input_text"
        content = [{"type": kind, "text": message["content"]}]
        return {"type": "message", "role": message["role"], "content": content}

    def ask(messages: Messages) -> tuple[str, int, int]:
        done = client.responses.create(
            model="any",
            instructions=messages[0]["content"],
            input=[as_item(message) for message in messages[1:]],
            max_output_tokens=N_ANSWER,
            temperature=0,
            extra_body={"id_slot": 0},
        )
        return done.output_text, done.usage.input_tokens, done.usage.input_tokens_details.cached_tokens

    live_a_chat(server, ask)


def test_an_answer_by_a_schema(client):
    messages: Messages = []
    for turn in range(5):
        messages.append({"role": "user", "content": f"{turn}: which city?"})
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
        # a model of random weights writes as much white space as the grammar lets it
        answer = create(client, messages, response_format=form, max_tokens=400).choices[0].message.content
        assert json.loads(answer)["city"] in SCHEMA["properties"]["city"]["enum"]
        messages.append({"role": "assistant", "content": answer})


def test_an_answer_that_nobody_reads_ends(server, client):
    stream = create(
        client, [{"role": "user", "content": "a"}], max_tokens=10**6, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert server.slot(0)["is_processing"]
    stream.close()
    end = time.monotonic() + 30
    while server.slot(0)["is_processing"] and time.monotonic() < end:
        time.sleep(0.05)
    assert not server.slot(0)["is_processing"]


def test_errors_are_those_of_openai(client):
    with pytest.raises(openai.BadRequestError, match="must contain 'content'"):
        create(client, [{"role": "user"}])
    with pytest.raises(openai.InternalServerError, match="without --morphkv"):
        client.embeddings.create(model="any", input="x")


@pytest.mark.demo
def test_tools_are_called_and_their_results_read(start_shared, demo_model, tmp_path):
    from test_examples import TEMPLATE

    template = tmp_path / "tools.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    server = start_shared(demo_model, "-np", 1, "--chat-template-file", template)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        messages: Messages = [{"role": "user", "content": "What is the weather in Lisbon?"}]
        done = create(client, messages, tools=[TOOL], tool_choice="required").choices[0]
        assert done.finish_reason == "tool_calls"
        (call,) = done.message.tool_calls
        assert (call.function.name, "city" in json.loads(call.function.arguments)) == ("weather", True)
        messages += [
            done.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sun"},
        ]
        answer = create(client, messages, tools=[TOOL], tool_choice="none")
        assert answer.choices[0].message.content
        assert answer.usage.prompt_tokens_details.cached_tokens > 0
