"""LangChain's ChatOpenAI over a chat of twenty turns."""

import pytest

from support.client_chats import N_ANSWER, Messages, live_a_chat

pytest.importorskip("langchain_openai", reason="needs langchain-openai: pip install 'morphkv_cpp[clients]'")
from langchain_openai import ChatOpenAI


def ask_with(model):
    def ask(messages: Messages) -> tuple[str, int, int]:
        answer = model.invoke([(message["role"], message["content"]) for message in messages])
        usage = answer.usage_metadata
        return answer.content, usage["input_tokens"], usage["input_token_details"]["cache_read"]

    return ask


@pytest.fixture
def options(server):
    return {
        "base_url": f"{server.url}/v1",
        "api_key": "none",
        "model": "any",
        "temperature": 0,
        "max_tokens": N_ANSWER,
        "extra_body": {"id_slot": 1},
    }


def test_a_chat(server, options):
    live_a_chat(server, ask_with(ChatOpenAI(**options)))


def test_a_chat_of_streams(server, options):
    live_a_chat(server, ask_with(ChatOpenAI(**options, streaming=True, stream_usage=True)))
