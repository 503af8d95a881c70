"""The work that a completion takes for each token."""

import tracemalloc

import numpy as np
import pytest

from morphkv_cpp import Llama
from morphkv_cpp.text import pieces
from support.replay import EOS, SMALL, Replay
from support.tiny import QUIET, bytes_of


class Counted(bytearray):
    """Counts the bytes that are looked at."""

    n_bytes = 0

    def find(self, sub, start=0):
        Counted.n_bytes += len(self) - start
        return super().find(sub, start)

    def __getitem__(self, key):
        got = super().__getitem__(key)
        Counted.n_bytes += len(got) if isinstance(key, slice) else 1
        return got


class TestWorkPerToken:
    N = 5000

    @pytest.fixture
    def ours(self, tiny_llama):
        llm = Llama(tiny_llama(), morphkv=SMALL, **QUIET)
        yield Replay(llm)
        llm.close()

    @pytest.fixture
    def long(self) -> list[int]:
        return [*(bytes_of("some words and a sign: \u20ac. ") * 200)[: self.N], EOS]

    @pytest.mark.parametrize("stream", [False, True])
    def test_each_token_is_turned_into_text_once_and_searched_once(self, ours, monkeypatch, long, stream):
        turned = []
        monkeypatch.setattr(ours.llm._model, "detokenize", lambda tokens, special=False: turned.extend(tokens) or b"x")
        monkeypatch.setattr(pieces, "bytearray", Counted, raising=False)
        monkeypatch.setattr(Counted, "n_bytes", 0)
        piece = ours.llm._piece
        monkeypatch.setattr(ours.llm, "_piece", lambda token: turned.append(token) or piece(token))
        stops = ["never here", "nor here"]
        if stream:
            assert len(ours.chunks(long, max_tokens=None, stop=stops)) > self.N / 2
        else:
            assert ours.whole(long, max_tokens=None, stop=stops)["usage"]["completion_tokens"] == len(long) - 1
        assert turned == long[:-1]
        n_text = len(long) - 1
        # each token: the last 3 bytes, twice a stop text, and the tail that may begin one; then the whole answer once
        assert Counted.n_bytes < n_text * (3 + 2 * len("never here") + len("never here") + 10) + n_text

    def test_a_token_late_in_an_answer_allocates_as_little_as_an_early_one(self, ours):
        """Through the real `generate` as well."""
        chunks = ours.llm.create_completion(
            "ab", max_tokens=None, temperature=0.0, stop=["never here"], logit_bias={EOS: -np.inf}, stream=True
        )
        peaks = []
        for n_tokens in (1000, 8000):
            while ours.llm.n_tokens < n_tokens:
                next(chunks)
            tracemalloc.start()
            rises = []
            for _ in range(101):
                before, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
                next(chunks)
                rises.append(tracemalloc.get_traced_memory()[1] - before)
            tracemalloc.stop()
            peaks.append(sorted(rises)[50])
        assert peaks[1] < peaks[0] + 2000  # a list of 8,000 tokens has 64,000 bytes
