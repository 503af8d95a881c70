"""A chat as the openai client keeps it: the whole history goes along at every turn, and never becomes too long."""

import openai
import pytest

pytestmark = pytest.mark.demo

SYSTEM = "You are a guide to the city of Lisbon. You answer in one short sentence and you never repeat yourself. " * 45
TOPICS = ["food", "trams", "tiles", "music", "rivers", "churches", "hills", "coffee", "markets", "beaches"]


@pytest.fixture(scope="module")
def server(start_shared, demo_model):
    return start_shared(demo_model, "--morphkv", "--morphkv-capacity", 1024, "-np", 1, "--slots")


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


def test_sixty_turns_come_from_the_cache(server, client):
    messages = [{"role": "system", "content": SYSTEM}]
    shares = []
    for turn in range(60):
        question = f"{turn}: what about the {TOPICS[turn % 10]}?"
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=8, temperature=0)
        usage = answer.usage
        shares.append(usage.prompt_tokens_details.cached_tokens / usage.prompt_tokens)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    assert shares[0] == 0
    assert min(shares[1:]) >= 0.95, shares
    slot = server.slot()["morphkv"]
    assert slot["n_evictions"] > 5
    assert slot["logical_pos"] > slot["n_cells"]


def test_a_stream_ends_with_its_usage(client):
    messages = [{"role": "user", "content": "Say hello."}]
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens <= 8
