"""An interrupted answer leaves the same next answer as one of the same length that ended by itself."""

import pytest

from morphkv_cpp import Archive, Llama, MorphKV
from support.chats import no_end, talk
from support.tiny import greedy

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=96)
FACTS = " ".join(f"fact {a}{b} is {b}{a}" for a in "abcdef" for b in "ghijk")
ANSWERS = range(1, 25)  # over evictions, and recalls while an answer is written


def interrupt(patch, llm: Llama, n_tokens: int, place: str) -> None:
    """Ctrl-C once n_tokens were sampled."""
    sample, decode, n_sampled = llm.sample, llm._ctx.decode, 0

    def sample_or_stop(*arguments, **options):
        nonlocal n_sampled
        if n_sampled == n_tokens and place == "while the next one is sampled":
            raise KeyboardInterrupt
        token = sample(*arguments, **options)
        n_sampled += 1
        return token

    def decode_or_stop(batch):
        if n_sampled == n_tokens and place == "before the last one is decoded":
            raise KeyboardInterrupt
        decode(batch)
        if n_sampled == n_tokens and place == "behind its decoding":
            raise KeyboardInterrupt

    patch.setattr(llm, "sample", sample_or_stop)
    patch.setattr(llm._ctx, "decode", decode_or_stop)


@pytest.mark.parametrize(
    "place", ["before the last one is decoded", "behind its decoding", "while the next one is sampled"]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"archive": Archive(recall="off")},
        {"archive": Archive(recall="prompt")},
        {"archive": "ram"},
        {"archive": Archive(recall=2)},
    ],
    ids=["no archive", "off", "prompt", "auto", "2"],
)
def test_the_next_answer_is_that_behind_an_answer_as_long(open_llama, monkeypatch, options, place):
    llm = open_llama(**options)
    with llm.session() as root:
        talk(root, FACTS, 30)
        differing = []
        for n_tokens in ANSWERS:
            with root.fork() as whole, root.fork() as cut:
                talk(whole, "what is fact ah", n_tokens)
                wanted = talk(whole, "why", 12)
                with monkeypatch.context() as patch:
                    interrupt(patch, llm, n_tokens, place)
                    with pytest.raises(KeyboardInterrupt):
                        talk(cut, "what is fact ah", None)
                assert cut.last.completion_tokens == n_tokens
                if talk(cut, "why", 12) != wanted:
                    differing.append(n_tokens)
    assert not differing


@pytest.mark.parametrize("place", ["behind its decoding", "while the next one is sampled"])
@pytest.mark.parametrize("options", [{}, {"archive": "ram"}], ids=["no archive", "prompt"])
def test_the_same_for_a_history_that_comes_back_as_a_prompt(open_llama, monkeypatch, options, place):
    llm = open_llama(**options)
    facts = llm.tokenize(FACTS.encode())
    question = llm.tokenize(b"what is fact ah", add_bos=False)

    def write(prompt: list[int], n_tokens: int) -> list[int]:
        return greedy(llm, prompt, n_tokens, logits_processor=no_end(llm))

    differing = []
    for n_tokens in ANSWERS:
        llm.reset()
        history = [*facts, *write(facts, n_tokens), *question]
        wanted = write(history, 8)
        llm.reset()
        with monkeypatch.context() as patch:
            interrupt(patch, llm, n_tokens, place)
            with pytest.raises(KeyboardInterrupt):
                write(facts, n_tokens + 1)
        assert llm.n_tokens == len(facts) + n_tokens
        if write(history, 8) != wanted:
            differing.append(n_tokens)
    assert not differing
