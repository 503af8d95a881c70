"""Drafts on tiny models."""

import pickle

import numpy as np

from morphkv_cpp import MorphKV
from support.tiny import some_tokens

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

    def test_without_morphkv_a_draft_model_is_as_given(self, open_llama):
        draft = llama_cpp.llama_speculative.LlamaPromptLookupDecoding()
        assert open_llama(None, draft_model=draft).draft_model is draft

    def test_a_model_with_a_draft_model_can_be_pickled(self, open_llama):
        llm = open_llama(draft_model=llama_cpp.llama_speculative.LlamaPromptLookupDecoding(num_pred_tokens=3))
        copy = pickle.loads(pickle.dumps(llm))
        assert copy._draft_model.num_pred_tokens == 3
        assert copy.morphkv == SMALL
        copy.close()
