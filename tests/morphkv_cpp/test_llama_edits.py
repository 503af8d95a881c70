"""What people do to a chat of 3,400 tokens, with a real model at capacity 512: what is evaluated, by `usage`."""

import copy

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval import prose_sections

pytestmark = pytest.mark.demo

CONFIG = MorphKV(capacity=512, window=32, interval=128, prompt_room=0)
N_TURNS = 12
N_ANSWER = 40


def ask(llm, messages):
    """The answer's message, and how many tokens were evaluated for it."""
    answer = llm.create_chat_completion(messages, max_tokens=N_ANSWER, temperature=0.0)
    usage = answer["usage"]
    return answer["choices"][0]["message"], usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture(scope="module", params=[None, pytest.param("ram", marks=pytest.mark.slow)])
def chat(request, demo_model):
    """A Llama and a chat of 12 turns on it, of about 290 tokens each."""
    words = " ".join(prose_sections()).split()
    messages = [{"role": "system", "content": "You are a librarian. You answer in one sentence."}]
    with Llama(demo_model, morphkv=CONFIG, archive=request.param, n_threads=2, verbose=False) as llm:
        for i in range(N_TURNS):
            page = " ".join(words[200 * i : 200 * (i + 1)])
            messages.append({"role": "user", "content": f"What is this page about? {page}"})
            messages.append(ask(llm, messages)[0])
        assert llm.n_tokens > 3400
        yield llm, messages


@pytest.fixture
def messages(chat):
    """The chat as it is, for a test that goes back in it; the Llama is brought back to its end first."""
    llm, messages = chat
    ask(llm, [*messages, {"role": "user", "content": "Thank you."}])
    return copy.deepcopy(messages)


def n_tokens_of(llm, messages):
    return len(llm.tokenize("".join(message["content"] for message in messages).encode(), add_bos=False))


def test_an_answer_asked_for_again(chat, messages):
    llm, _ = chat
    before = messages.pop()
    again, n_evaluated = ask(llm, messages)
    assert n_evaluated <= 64
    assert again == before


@pytest.mark.parametrize("n_back", [1, 2, 3, 10])
def test_an_edited_message(chat, messages, n_back):
    """From the message on, and not more than 64 tokens before it; templates put a few around each message."""
    llm, _ = chat
    first = len(messages) - 2 * n_back
    messages[first]["content"] = "How many pages have we read? " + messages[first]["content"]
    edited = messages[first:-1]
    _, n_evaluated = ask(llm, messages[:-1])
    assert n_evaluated <= n_tokens_of(llm, edited) + 8 * len(edited) + 64
    assert n_evaluated < llm.last_prompt.n_prompt - 200
