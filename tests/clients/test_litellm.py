"""LiteLLM over a chat of twenty turns."""

import pytest

from support.client_chats import N_ANSWER, Messages, live_a_chat

litellm = pytest.importorskip("litellm", reason="needs litellm: pip install 'morphkv_cpp[clients]'")


@pytest.mark.filterwarnings("ignore")  # litellm's own
def test_a_chat(server):
    def ask(messages: Messages) -> tuple[str, int, int]:
        done = litellm.completion(
            "openai/any",
            messages=messages,
            api_base=f"{server.url}/v1",
            api_key="none",
            temperature=0,
            max_tokens=N_ANSWER,
            extra_body={"id_slot": 1},
        )
        usage = done.usage
        return done.choices[0].message.content, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens

    live_a_chat(server, ask)
