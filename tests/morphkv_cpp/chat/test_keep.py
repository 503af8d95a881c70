"""create_chat_completion never evicts the system prompt; on tiny models."""

import itertools
import warnings

import numpy as np
import pytest

from morphkv_cpp import MorphKV

# isort: split
import llama_cpp

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)
SYSTEM = "You are a tiny model."
START = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"


class Chat:
    """A chat whose history is sent each time. No end token, else the tiny model would end an answer anywhere."""

    def __init__(self, llm, system: str = SYSTEM):
        self.llm = llm
        self.messages = [{"role": "system", "content": system}]
        ends = [token for token in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token)]
        self.options = {"max_tokens": 12, "temperature": 0.0, "logit_bias": dict.fromkeys(ends, -100.0)}

    def ask(self, question: str, **options) -> str:
        self.messages.append({"role": "user", "content": question})
        if options.get("stream"):
            chunks = self.llm.create_chat_completion(self.messages, **self.options, **options)
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        else:
            done = self.llm.create_chat_completion(self.messages, **self.options, **options)
            text = done["choices"][0]["message"]["content"]
        self.messages.append({"role": "assistant", "content": text})
        return text


def n_first(llm) -> int:
    """First positions that every head of every layer retains, without a gap."""
    sets = [set(head.tolist()) for layer in range(2) for head in llm.retained(layer)]
    common = set.intersection(*sets)
    return len(list(itertools.takewhile(lambda pos: pos in common, itertools.count())))


def n_start(llm, system: str = SYSTEM) -> int:
    return len(llm.tokenize(START.format(system).encode(), add_bos=True, special=True))


@pytest.mark.parametrize("stream", [False, True])
def test_the_system_prompt_stays_however_long_the_chat(open_llama, stream):
    llm = open_llama()
    chat = Chat(llm)
    for i in range(12):
        chat.ask(f"question {i}", stream=stream)
    stats = llm.cache_stats()
    assert stats.n_evictions > 10
    assert stats.keep == n_start(llm)
    assert n_first(llm) >= n_start(llm)


def test_answers_are_those_of_a_cache_that_is_told_how_much_to_keep(open_llama):
    llm = open_llama()
    told = open_llama(MorphKV(capacity=128, window=16, interval=16, keep=n_start(llm), prompt_room=32), keep=None)
    mine, theirs = Chat(llm), Chat(told)
    for i in range(8):
        assert mine.ask(f"question {i}") == theirs.ask(f"question {i}")
        assert llm.last_prompt == told.last_prompt


def test_each_chat_has_its_own_and_a_completion_the_settings(open_llama):
    llm = open_llama()
    for system in (SYSTEM, "abc", SYSTEM * 2):
        chat = Chat(llm, system)
        for i in range(4):
            chat.ask(f"question {i}")
        assert llm.cache_stats().keep == n_start(llm, system)
    llm.create_completion("abc" * 30, max_tokens=5)
    assert llm.cache_stats().keep == SMALL.keep


def test_a_stream_that_is_read_later_has_its_own(open_llama):
    llm = open_llama()
    streams = [
        (n_start(llm, system), llm.create_chat_completion(Chat(llm, system).messages, max_tokens=2, stream=True))
        for system in ("abc", SYSTEM)
    ]
    llm.create_completion("abc", max_tokens=1)
    for n_keep, stream in reversed(streams):
        list(stream)
        # a system text alone is no question
        assert llm.cache_stats().keep <= n_keep
    other = open_llama()
    messages = [*Chat(other).messages, {"role": "user", "content": "x"}]
    stream = other.create_chat_completion(messages, max_tokens=2, stream=True)
    other.create_completion("abc", max_tokens=1)
    assert other.cache_stats().keep == SMALL.keep
    list(stream)
    assert other.cache_stats().keep == n_start(other)


@pytest.mark.parametrize(("keep", "n_keep"), [(None, 2), (0, 0), (7, 7)])
def test_a_number_of_tokens_or_the_settings(open_llama, keep, n_keep):
    llm = open_llama(keep=keep)
    chat = Chat(llm)
    for i in range(12):
        chat.ask(f"question {i}")
    assert llm.cache_stats().keep == n_keep
    assert n_first(llm) >= n_keep


def test_a_cache_that_kept_less_is_evaluated_from_the_start(open_llama):
    llm = open_llama()
    chat = Chat(llm)
    chat.ask("one")
    chat.ask("two", seed=1)
    text = llm.input_ids[: llm.n_tokens].tolist()
    other = open_llama()
    # the same text as a completion, evictions and all
    list(itertools.islice(other.generate([*text, *text], temp=0.0), 40))
    assert other.cache_stats().n_evictions > 0
    other.n_tokens = len(text) if other.cache_stats().complete_pos < len(text) else other.n_tokens
    other.create_chat_completion([*chat.messages, {"role": "user", "content": "three"}], max_tokens=3)
    assert other.cache_stats().keep == n_start(other)
    assert other.last_prompt.n_cached == 0


def test_one_without_room_is_told_once_with_the_capacity_that_would_do(open_llama):
    llm = open_llama()
    system = "abc " * 40
    chat = Chat(llm, system)
    n = n_start(llm, system)
    with pytest.warns(RuntimeWarning, match=rf"has {n} tokens, .* got 128 - 16: only keep=2") as told:
        chat.ask("one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chat.ask("two")
    assert llm.cache_stats().keep == 2
    capacity = int(str(told[0].message).partition("MorphKV(capacity=")[2].partition(")")[0])
    roomy = open_llama(MorphKV(capacity=capacity, window=16, interval=16, keep=2, prompt_room=32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Chat(roomy, system).ask("one")
    assert roomy.cache_stats().keep == n


def test_tools_before_the_question_stay_too(open_llama):
    llm = open_llama()
    seen = []

    def handler(*, llama, messages, tools=None, **options):
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        seen.append(tools)
        tokens = llama.tokenize(f"[{tools}]{text}<a>".encode(), add_bos=True, special=True)
        return llama.create_completion(prompt=tokens, max_tokens=3)

    llm.chat_handler = handler
    messages = [{"role": "system", "content": "abc"}, {"role": "user", "content": "x"}]
    llm.create_chat_completion(messages, tools="spade")
    assert seen[-1] == "spade"
    assert llm.cache_stats().keep == len(llm.tokenize(b"[spade]<system>abc<user>", add_bos=True, special=True))


def test_a_handler_that_does_more_than_render_is_told_once(open_llama):
    llm = open_llama()

    def handler(*, llama, messages, **options):
        llama.reset()
        return llama.create_completion(prompt="abc", max_tokens=2)

    llm.chat_handler = handler
    with pytest.warns(RuntimeWarning, match="cannot be told, and only keep=2 first tokens stay: .*chat_handler"):
        llm.create_chat_completion([{"role": "user", "content": "x"}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.create_chat_completion([{"role": "user", "content": "x"}])
    assert llm.cache_stats().keep == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "all"}, "keep must be \"system\", a number of tokens or None, got 'all'"),
        ({"keep": True}, 'keep must be "system", a number of tokens or None, got True'),
        ({"keep": -1}, r"keep must be in 0\.\.capacity - window - 1, got -1 with 128 - 16"),
        ({"keep": 112}, r"keep must be in 0\.\.capacity - window - 1, got 112 with 128 - 16"),
        ({"keep": 3, "morphkv": None}, r"keep needs MorphKV: .*, got keep=3"),
    ],
)
def test_what_is_refused(open_llama, options, message):
    with pytest.raises(ValueError, match=message):
        open_llama(**options)


def test_without_morphkv_nothing_is_asked(open_llama, monkeypatch):
    llm = open_llama(None, n_ctx=512)
    assert llm._chat_keep is None
    assert np.isfinite(len(Chat(llm).ask("one")))
