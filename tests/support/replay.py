"""Completions of recorded tokens, by stock llama_cpp and by ours."""

import os
from contextlib import contextmanager

from morphkv_cpp import MorphKV
from support.tiny import QUIET

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
OPTIONS = {**QUIET, "n_ctx": 512, "logits_all": True}
BOS, EOS, FIRST = 1, 2, 3  # token ids of tiny_llama; FIRST is that of the byte 0


def plain(response: dict, *more: str) -> dict:
    """What stock has too, and does not depend on when it was made; more: keys to leave out."""
    kept = {key: value for key, value in response.items() if key not in ("id", "created", "timings", *more)}
    if "usage" in kept:
        kept["usage"] = {key: n for key, n in kept["usage"].items() if key != "prompt_tokens_details"}
    # stock names a model by its path
    return {**kept, "model": os.path.basename(kept["model"])}


def texts(chunks: list[dict]) -> list[str]:
    return [chunk["choices"][0]["text"] for chunk in chunks]


class Replay:
    """A model that "generates" recorded tokens and, where given, says that they are those pieces of text."""

    def __init__(self, llm):
        self.llm = llm
        self.prompts: list[list[int]] = []

    @contextmanager
    def recorded(self, tokens: list[int], pieces: "list[bytes] | None" = None):
        def generate(prompt, **sampling):
            self.prompts.append(prompt)
            self.llm.n_tokens = len(prompt)
            for token in tokens:
                yield token
                self.llm.n_tokens += 1

        def piece(token):
            return pieces[token - FIRST] if 0 <= token - FIRST < len(pieces) else b""

        def detokenize(tokens, prev_tokens=None, special=False):
            text = b"".join(map(piece, tokens))
            return text[1:] if tokens and tokens[0] == BOS and text.startswith(b" ") else text

        patched = {"generate": generate}
        if pieces is not None:
            patched |= {"detokenize": detokenize, "_piece": piece}
        vars(self.llm).update(patched)
        try:
            yield
        finally:
            for name in patched:
                del vars(self.llm)[name]

    def whole(self, tokens, pieces=None, **request) -> dict:
        with self.recorded(tokens, pieces):
            return plain(self.llm.create_completion(**({"prompt": "ab"} | request)))

    def chunks(self, tokens, pieces=None, **request) -> list[dict]:
        with self.recorded(tokens, pieces):
            return [
                plain(chunk, "usage")
                for chunk in self.llm.create_completion(**({"prompt": "ab"} | request), stream=True)
            ]
