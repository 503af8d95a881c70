"""Stock llama_cpp and ours, side by side."""

import numpy as np
import pytest

from morphkv_cpp import Llama
from support.replay import OPTIONS, SMALL, Replay

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp


@pytest.fixture(scope="module")
def stock_and_ours(tiny_llama):
    models = [llama_cpp.Llama(str(tiny_llama()), **OPTIONS), Llama(tiny_llama(), morphkv=SMALL, **OPTIONS)]
    logits = np.random.default_rng(0).normal(scale=3, size=models[0].scores.shape)
    for llm in models:
        llm.scores[:] = logits
    yield [Replay(llm) for llm in models]
    for llm in models:
        llm.close()


@pytest.fixture(scope="module")
def stock(stock_and_ours):
    return stock_and_ours[0]


@pytest.fixture(scope="module")
def ours(stock_and_ours):
    return stock_and_ours[1]
