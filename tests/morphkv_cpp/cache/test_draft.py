"""Drafts on tiny models."""

import pickle
from dataclasses import replace

import numpy as np

from morphkv_cpp import Archive, MorphKV
from support.tiny import greedy, some_tokens

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
OPEN = {"n_ctx": 512}


class TestDraft:
    def test_a_draft_ends_where_an_eviction_falls_due(self, open_llama):
        llm = open_llama(draft_model=lambda input_ids: np.arange(3, 13, dtype=np.intc))
        llm.eval(some_tokens(30))
        seen = []
        for n_used in (30, 33, 34, 35, 36):
            llm.eval(some_tokens(n_used - llm.cache_stats().n_used))
            seen.append(len(llm.draft_model(llm.input_ids[: llm.n_tokens + 1])))
        assert seen == [5, 2, 1, 0, 0]

    def test_it_ends_where_a_rebase_or_a_recall_falls_due(self, open_llama):
        options = {"draft_model": lambda input_ids: np.arange(3, 63, dtype=np.intc), "n_ctx": 1024}
        roomy = MorphKV(capacity=100, window=8, interval=50, keep=2, prompt_room=0)
        llm = open_llama(replace(roomy, rope_limit=160), **options)
        llm.decode(some_tokens(100))
        assert len(llm.draft_model(llm.input_ids[:101])) == 31  # as many as are a draft to the native library
        llm.decode(some_tokens(55))
        assert llm.cache_stats().n_used == 105
        assert len(llm.draft_model(llm.input_ids[:156])) == 4

        asking = open_llama(roomy, archive=Archive(recall=1), **options)
        seen = []
        for n_tokens in (120, 147, 148, 149, 150):
            asking.decode(some_tokens(n_tokens - asking.n_tokens))
            seen.append(len(asking.draft_model(asking.input_ids[: asking.n_tokens + 1])))
        assert seen == [28, 1, 0, 0, 0]

    def test_recalls_come_between_the_same_tokens(self, open_llama):
        """Of text that repeats itself some drafts are right."""
        archive = Archive(recall=4)
        words = [5, 6, 7, 8, 9, 10, 11, 12] * 40
        texts = []
        for draft_model in (None, llama_cpp.llama_speculative.LlamaPromptLookupDecoding(num_pred_tokens=6)):
            llm = open_llama(archive=archive, draft_model=draft_model, logits_all=True, n_ctx=1024, n_ubatch=1)
            texts.append(greedy(llm, words, 150))
            texts.append(llm.cache_stats().n_recalls)
            texts.append(llm.cache_stats().n_evictions)
        assert texts[:3] == texts[3:]
        assert texts[1] > 3

    def test_without_morphkv_a_draft_model_is_as_given(self, open_llama):
        draft = llama_cpp.llama_speculative.LlamaPromptLookupDecoding()
        assert open_llama(None, draft_model=draft).draft_model is draft

    def test_a_model_with_a_draft_model_can_be_pickled(self, open_llama):
        llm = open_llama(draft_model=llama_cpp.llama_speculative.LlamaPromptLookupDecoding(num_pred_tokens=3))
        copy = pickle.loads(pickle.dumps(llm))
        assert copy._draft_model.num_pred_tokens == 3
        assert copy.morphkv == SMALL
        copy.close()
