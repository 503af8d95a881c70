"""What people do with llama_cpp.Llama, with a real model and past many evictions."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV
from support.tiny import QUIET

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

pytestmark = pytest.mark.demo

SMALL = MorphKV(capacity=96, window=16, interval=16, keep=4, prompt_room=32)
# one thread: threads that wait for each other crawl where the cores are shared
MESSAGES = [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and her three dogs."}]


@pytest.fixture(scope="module")
def small(demo_model):
    """A model whose cache is full after 128 tokens."""
    llm = Llama(str(demo_model), morphkv=SMALL, **QUIET)
    yield llm
    llm.close()


@pytest.fixture
def llm(small):
    small.reset()
    small.set_cache(None)
    return small


def text_of(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


class TestChat:
    def test_an_answer_goes_on_past_evictions(self, llm):
        answer = llm.create_chat_completion(MESSAGES, max_tokens=200, temperature=0.0)
        assert answer["usage"]["completion_tokens"] == 200
        assert answer["choices"][0]["finish_reason"] == "length"
        assert len(set(text_of(answer).split())) > 50  # words, not one word over and over
        stats = llm.cache_stats()
        assert stats.n_evictions >= 5
        assert stats.n_used <= stats.n_limit == 128
        # the last token drawn is not decoded any more
        assert stats.logical_pos == answer["usage"]["total_tokens"] - 2

    def test_streamed_pieces_make_the_same_answer(self, llm):
        whole = llm.create_chat_completion(MESSAGES, max_tokens=150, temperature=0.0)
        llm.reset()
        pieces = list(llm.create_chat_completion(MESSAGES, max_tokens=150, temperature=0.0, stream=True))
        assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == text_of(whole)
        assert pieces[-1]["choices"][0]["finish_reason"] == "length"
        assert llm.cache_stats().n_evictions > 0

    def test_a_chat_of_several_turns(self, llm):
        messages = [{"role": "system", "content": "You answer briefly."}]
        for question in ("Name a river.", "Name a mountain.", "Name a sea.", "Name a desert."):
            messages.append({"role": "user", "content": question})
            answer = llm.create_chat_completion(messages, max_tokens=40, temperature=0.0)
            messages.append(answer["choices"][0]["message"])
            assert text_of(answer).strip()
        assert llm.cache_stats().n_evictions > 0

    def test_a_seed_repeats_an_answer(self, llm):
        def sample(seed):
            llm.reset()
            return text_of(llm.create_chat_completion(MESSAGES, max_tokens=120, temperature=1.0, seed=seed))

        assert sample(3) == sample(3)
        assert sample(3) != sample(4)

    def test_an_answer_follows_a_json_schema(self, llm):
        schema = {
            "type": "object",
            "properties": {
                "words": {"type": "array", "items": {"enum": ["sea", "dog"]}, "minItems": 60, "maxItems": 60}
            },
            "required": ["words"],
        }
        answer = llm.create_chat_completion(
            MESSAGES, max_tokens=500, temperature=0.0, response_format={"type": "json_object", "schema": schema}
        )
        assert len(json.loads(text_of(answer))["words"]) == 60
        assert llm.cache_stats().n_evictions > 0


class TestCompletion:
    def test_a_grammar_holds_past_evictions(self, llm):
        grammar = llama_cpp.LlamaGrammar.from_string('root ::= ([0-9] " ")+', verbose=False)
        answer = llm.create_completion("Some digits:", max_tokens=160, temperature=1.0, seed=1, grammar=grammar)
        assert re.fullmatch(r"([0-9] )+[0-9]?", answer["choices"][0]["text"])
        assert llm.cache_stats().n_evictions > 0

    def test_logits_processors_see_all_tokens_and_decide(self, llm):
        wanted = llm.tokenize(b" " + b"one two three four " * 40, add_bos=False)[:150]
        prompt = llm.tokenize(b"Count with me:")
        seen = []

        def force(input_ids, scores):
            seen.append(input_ids.tolist())
            scores[:] = -np.inf
            scores[wanted[len(input_ids) - len(prompt)]] = 0.0
            return scores

        processors = llama_cpp.LogitsProcessorList([force])
        answer = llm.create_completion(prompt, max_tokens=150, temperature=0.0, logits_processor=processors)
        assert answer["choices"][0]["text"] == llm.detokenize(wanted).decode()
        assert seen[-1] == prompt + wanted[:-1]
        assert llm.cache_stats().n_evictions > 0

    def test_a_stop_text_ends_the_answer(self, llm):
        answer = llm.create_completion("A B C " * 60, max_tokens=50, temperature=0.0, stop=["C"])
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert "C" not in answer["choices"][0]["text"]

    def test_a_prompt_longer_than_all_cells(self, llm):
        prompt = "The keeper of the old lighthouse wrote down every ship that passed. " * 60
        answer = llm.create_completion(prompt, max_tokens=40, temperature=0.0)
        assert answer["usage"]["prompt_tokens"] > 5 * llm.cache_stats().n_limit
        assert "lighthouse" in answer["choices"][0]["text"]
        assert llm.cache_stats().n_used <= 128

    def test_a_prompt_longer_than_the_logical_limit_is_refused(self, demo_model):
        llm = Llama(str(demo_model), morphkv=SMALL, n_ctx=256, **QUIET)
        with pytest.raises(ValueError, match="exceed context window of 256"):
            llm.create_completion("one two three " * 200)
        assert llm.create_completion("one two three", max_tokens=3)["usage"]["completion_tokens"] == 3
        llm.close()

    def test_logprobs_with_logits_all(self, demo_model):
        llm = Llama(str(demo_model), morphkv=SMALL, logits_all=True, n_ctx=512, **QUIET)
        answer = llm.create_completion("one two three " * 20, max_tokens=100, temperature=0.0, logprobs=2)
        assert len(answer["choices"][0]["logprobs"]["token_logprobs"]) == 100
        assert llm.cache_stats().n_evictions > 0
        llm.close()

    def test_a_prompt_cache_restores_what_was_evicted(self, llm):
        first = llm.create_completion("A B C D " * 60, max_tokens=20, temperature=0.0)
        llm.reset()
        llm.set_cache(llama_cpp.LlamaRAMCache())
        for prompt in ("A B C D " * 60, "Another text. " * 40, "A B C D " * 60):
            again = llm.create_completion(prompt, max_tokens=20, temperature=0.0)
        assert again["choices"][0]["text"] == first["choices"][0]["text"]


class TestDraft:
    """Prompt lookup on a text that repeats itself."""

    PROMPT = "Count in words: one, two, three, four, five, six, seven, eight, nine, ten. " * 3 + "Count in words:"

    @pytest.mark.parametrize("prompt_room", [0, 64])
    def test_prompt_lookup_gives_the_same_greedy_text(self, demo_model, prompt_room):
        morphkv = replace(SMALL, prompt_room=prompt_room)
        texts, n_decodes, evictions = [], [], []
        for draft_model in (None, LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=8)):
            llm = Llama(str(demo_model), morphkv=morphkv, n_ctx=1024, draft_model=draft_model, **QUIET)
            batches, decode = [], llm._ctx.decode
            llm._ctx.decode = lambda batch, batches=batches, decode=decode: (batches.append(batch), decode(batch))
            texts.append(llm.create_completion(self.PROMPT, max_tokens=400, temperature=0.0)["choices"][0]["text"])
            n_decodes.append(len(batches))
            evictions.append(llm.cache_stats().n_evictions)
            llm.close()
        assert texts[1] == texts[0]
        assert evictions[1] == evictions[0] > 15
        assert n_decodes[1] < 0.6 * n_decodes[0]  # drafts were accepted, many tokens in one decode


class TestAgainstStock:
    @pytest.fixture(scope="class")
    @classmethod
    def stock(cls, demo_model):
        llm = llama_cpp.Llama(str(demo_model), n_ctx=1024, flash_attn=True, **QUIET)
        yield llm
        llm.close()

    def test_without_morphkv_answers_are_the_same(self, stock, demo_model):
        llm = Llama(str(demo_model), n_ctx=1024, flash_attn=True, **QUIET)
        for sampling in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 5}):
            ours, theirs = (one.create_chat_completion(MESSAGES, max_tokens=60, **sampling) for one in (llm, stock))
            assert text_of(ours) == text_of(theirs)
        llm.close()

    def test_before_the_first_eviction_answers_are_the_same(self, stock, demo_model):
        llm = Llama(str(demo_model), morphkv=MorphKV(capacity=512), **QUIET)
        for sampling in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 5}):
            ours, theirs = (one.create_chat_completion(MESSAGES, max_tokens=60, **sampling) for one in (llm, stock))
            assert text_of(ours) == text_of(theirs)
        assert llm.cache_stats().n_evictions == 0
        llm.close()
