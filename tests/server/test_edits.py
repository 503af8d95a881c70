"""What people do to a chat, and how much of it is evaluated: capacity 512, 3,400 tokens, by the openai client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from support.server_process import ServerProcess

FLAGS = ["--morphkv", "--morphkv-capacity", 512, "--morphkv-keep-system", "-np", 1, "--slots", "--metrics"]
SYSTEM = "You speak of Lisbon, and of nothing else."
N_HISTORY = 3400

Messages = list[dict[str, Any]]


class Talk:
    """A chat as clients keep it; its answers have 60 tokens. Numbers are of what the server did last."""

    def __init__(self, server: ServerProcess, n_answer: int = 60):
        self.server, self.n_answer = server, n_answer
        self.client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)
        self.messages: Messages = [{"role": "system", "content": SYSTEM}]
        self.text: list[int] = []  # what the slot was given last
        self.n_new = 0  # tokens of the last prompt that the one before it did not have in the same place
        self.n_evaluated = 0

    def tokens(self, messages: Messages) -> list[int]:
        prompt = self.server.post("/apply-template", {"messages": messages}).json()["prompt"]
        return self.server.post("/tokenize", {"content": prompt, "add_special": True}).json()["tokens"]

    def answer(self, messages: Messages | None = None) -> str:
        """To these messages, or all; the messages stay as they are."""
        asked = self.messages if messages is None else messages
        # letters: as text they are the same tokens again
        body = {"ignore_eos": True, "repeat_penalty": 1.3, "grammar": "root ::= [a-z]+"}
        done = self.client.chat.completions.create(
            model="any", messages=asked, max_tokens=self.n_answer, temperature=0, extra_body=body
        )
        text = self.tokens(asked)
        assert done.usage.prompt_tokens == len(text)
        n_same = next((i for i, (a, b) in enumerate(zip(self.text, text)) if a != b), min(len(self.text), len(text)))
        self.text, self.n_new = text, len(text) - n_same
        self.n_evaluated = done.usage.prompt_tokens - done.usage.prompt_tokens_details.cached_tokens
        return done.choices[0].message.content

    def say(self, question: str) -> str:
        self.messages.append({"role": "user", "content": question})
        answer = self.answer()
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def until(self, n_tokens: int) -> Talk:
        while len(self.tokens(self.messages)) < n_tokens:
            self.say(f"question {len(self.messages)}: what about the trams and the old tiles")
        return self


@pytest.fixture(scope="module", params=[[], ["--morphkv-archive", "auto"]], ids=["", "archive"])
def talk(start_shared, tiny_llama, request):
    return Talk(start_shared(tiny_llama(), *FLAGS, *request.param)).until(N_HISTORY)


@pytest.fixture
def kept(talk):
    """Its messages are put back, and the slot too."""
    before = [dict(message) for message in talk.messages]
    yield talk
    talk.messages = before
    talk.answer(before[:-1])


class TestEvaluated:
    def test_a_turn_costs_its_own_tokens(self, kept):
        kept.say("and the river?")
        assert kept.n_evaluated <= kept.n_new + 1

    def test_an_answer_that_is_asked_for_again_costs_next_to_nothing(self, kept):
        kept.say("and the river?")
        for _ in range(3):
            kept.answer(kept.messages[:-1])
            assert kept.n_evaluated <= 64

    def test_the_last_message_edited_costs_its_tokens(self, kept):
        kept.say("and the river?")
        kept.messages[-2]["content"] = "or rather the hills, and all that can be seen from there?"
        kept.answer(kept.messages[:-1])
        assert kept.n_evaluated <= kept.n_new + 64

    @pytest.mark.parametrize("n_turns", [2, 3, 10])
    def test_a_message_edited_before_costs_what_comes_from_there_on(self, kept, n_turns):
        edited = [dict(message) for message in kept.messages[:-1]]
        assert edited[-2 * n_turns - 1]["role"] == "user"
        edited[-2 * n_turns - 1]["content"] = "something else, the coffee"
        kept.answer(edited[: len(edited) - 2 * n_turns])
        assert kept.n_evaluated <= kept.n_new + 256
        assert kept.n_new < 200

    def test_a_stream_says_so_as_well(self, kept):
        chunks = kept.client.chat.completions.create(
            model="any",
            messages=kept.messages[:-1],
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        *_, last = chunks
        assert last.usage.prompt_tokens - last.usage.prompt_tokens_details.cached_tokens <= 64


@pytest.mark.parametrize("flags", [[], ["--morphkv-archive", "auto"]], ids=["", "archive"])
def test_thinking_that_is_dropped_at_each_turn_costs_what_is_new(start_server, tiny_llama, flags):
    talk = Talk(start_server(tiny_llama(), *FLAGS, *flags), n_answer=160)
    evaluated = []
    for turn in range(30):
        talk.say(f"{turn}: what about the trams and the old tiles")
        evaluated.append((talk.n_evaluated, talk.n_new))
        talk.messages[-1]["content"] = talk.messages[-1]["content"][-40:]  # what came before was thought
    assert len(talk.text) > 2000
    assert all(n <= n_new + 64 for n, n_new in evaluated[1:]), evaluated


class TestDefaults:
    def test_checkpoints_are_as_many_as_memory_allows_and_near(self, start_server, tiny_llama):
        props = start_server(tiny_llama(), *FLAGS).get("/props")["morphkv"]
        assert (props["ctx_checkpoints"], props["checkpoint_min_step"], props["cache_ram_mib"]) == (32, 32, 8192)

    def test_what_is_asked_for_is_given(self, start_server, tiny_llama):
        asked = ["--ctx-checkpoints", 7, "-cms", 300, "--cache-ram", 16]
        props = start_server(tiny_llama(), *FLAGS, *asked).get("/props")["morphkv"]
        assert (props["ctx_checkpoints"], props["checkpoint_min_step"], props["cache_ram_mib"]) == (7, 300, 16)

    @pytest.mark.demo  # whose template llama-server knows the user's messages of
    @pytest.mark.parametrize("flags, n_more", [([], 512), (["--morphkv-archive", "auto"], 256)], ids=["", "archive"])
    def test_a_text_that_is_read_anew_has_them_at_its_end(self, start_server, demo_model, flags, n_more):
        """Those of turns that are further back than there can be checkpoints would be made in vain."""
        server = start_server(demo_model, *FLAGS, "--ctx-checkpoints", 8, *flags)
        talk = Talk(server, n_answer=8)
        for turn in range(40):
            talk.messages.append({"role": "user", "content": f"{turn}: what about the trams and the old tiles of it"})
            talk.messages.append({"role": "assistant", "content": "nothing that anybody would know of " * 3})
        talk.say("and the river?")
        assert talk.n_evaluated > 1500
        for n_turns in (2, 4):
            edited = [dict(message) for message in talk.messages[: -2 * n_turns - 1]]
            edited[-1]["content"] = "something else, the coffee"
            talk.answer(edited)
            assert talk.n_evaluated <= talk.n_new + n_more
