"""Completions against stock llama_cpp's for the same recorded tokens, chunk by chunk."""

import os

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV
from support.replay import BOS, EOS, FIRST, SMALL, Replay, plain, texts
from support.tiny import QUIET, bytes_of

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp


class TestSameTokens:
    """Equal to stock in every value of every chunk."""

    @pytest.mark.parametrize("max_tokens", [None, 0, -1, 1, 4, 5, 6, 7, 30])
    @pytest.mark.parametrize(
        "text", ["abcde", "\U0001f600ab", "ab\u6f22\u5b57", "a\u00e9\u20acb\u00e9", "ab\U0001f600", " a b "]
    )
    def test_texts_and_lengths(self, stock, ours, text, max_tokens):
        tokens = [*bytes_of(text), EOS, FIRST]
        for request in ({}, {"logprobs": 2}):
            request |= {"max_tokens": max_tokens}
            assert ours.whole(tokens, **request) == stock.whole(tokens, **request)
        assert ours.chunks(tokens, max_tokens=max_tokens) == stock.chunks(tokens, max_tokens=max_tokens)

    @pytest.mark.parametrize(
        "stop",
        [
            [],
            None,
            "cd",
            ["cd"],
            ["zz", "de", "bcd"],
            ["de", "bcde"],
            ["bcde", "de"],
            ["abcdef", "abcdeg"],
            ["e\u20ac"],
            ["\u20ac"],
            ["f"],
            ["g"],
            [""],
            ["cde", ""],
        ],
    )
    def test_stop_texts(self, stock, ours, stop):
        pieces = [b"a", b"bc", b"d", b"e\xe2", b"\x82", b"\xac", b"f", b"abc", b"deg", b"x"]
        for order in ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 7, 8, 9], [7, 7, 7, 8], [1, 2, 1, 2]):
            tokens = [*(FIRST + i for i in order), EOS]
            assert ours.whole(tokens, pieces, stop=stop) == stock.whole(tokens, pieces, stop=stop)
            assert ours.chunks(tokens, pieces, stop=stop) == stock.chunks(tokens, pieces, stop=stop)

    @pytest.mark.parametrize("echo", [False, True])
    @pytest.mark.parametrize("logprobs", [0, 1, 5, 320, 999, -3])
    def test_logprobs(self, stock, ours, logprobs, echo):
        tokens = [*bytes_of("abcdef"), EOS]
        request = {"logprobs": logprobs, "echo": echo, "stop": ["efg", "de"]}
        assert ours.whole(tokens, **request) == stock.whole(tokens, **request)
        assert ours.chunks(tokens, **request) == stock.chunks(tokens, **request)

    @pytest.mark.parametrize("prompt", ["", "a", "a\u20acb", "a<s>b", [5, 6, 7], [1, 1, 5]])
    @pytest.mark.parametrize("suffix", [None, "", "ba", " b"])
    @pytest.mark.parametrize("spm_infill", [False, True])
    @pytest.mark.filterwarnings("ignore:Detected duplicate leading:RuntimeWarning")
    def test_prompts(self, stock, ours, monkeypatch, prompt, suffix, spm_infill):
        for replay in (stock, ours):
            monkeypatch.setattr(replay.llm, "spm_infill", spm_infill)
        tokens = [*bytes_of(" ab"), EOS]
        request = {"prompt": prompt, "suffix": suffix, "model": "a name"}
        assert ours.whole(tokens, **request) == stock.whole(tokens, **request)
        assert ours.prompts[-1] == stock.prompts[-1]

    def test_the_model_is_named_by_its_file_or_as_it_is_asked_for(self, ours):
        name = os.path.basename(ours.llm.model_path)
        with ours.recorded([EOS]):
            assert ours.llm.create_completion("ab")["model"] == name != ours.llm.model_path
            assert ours.llm.create_completion("ab", model="a name")["model"] == "a name"

    def test_end_tokens_come_first(self, stock, ours):
        for request in ({}, {"stop": ["a"]}, {"logprobs": 1}, {"echo": True}):
            assert ours.whole([EOS], **request) == stock.whole([EOS], **request)
            assert ours.chunks([EOS], **request) == stock.chunks([EOS], **request)

    @pytest.mark.parametrize("seed", [None, 5])
    def test_seeds(self, stock, ours, seed):
        for replay in (stock, ours):
            replay.llm.set_seed(3)
            replay.whole([EOS], seed=seed)
        assert ours.llm._seed == stock.llm._seed

    @pytest.mark.parametrize("holds", [False, True])
    def test_stopping_criteria(self, stock, ours, holds):
        criteria = llama_cpp.StoppingCriteriaList([lambda input_ids, logits: holds])
        request = {"max_tokens": 2, "stopping_criteria": criteria}
        assert ours.whole(bytes_of("abc"), **request) == stock.whole(bytes_of("abc"), **request)
        assert ours.chunks(bytes_of("abc"), **request) == stock.chunks(bytes_of("abc"), **request)

    def test_what_is_saved_in_a_cache(self, stock, ours):
        keys = []
        for replay in (stock, ours):
            replay.llm.set_cache(llama_cpp.LlamaRAMCache())
            replay.whole([*bytes_of("abc"), EOS])
            replay.chunks([*bytes_of("abcd"), EOS])
            keys.append(list(replay.llm.cache.cache_state))
            replay.llm.set_cache(None)
        assert keys[0] == keys[1]
        assert len(keys[0]) == 2

    @pytest.mark.parametrize(
        ("known", "prompt", "told"),
        [
            ([5, 6], [5, 6, 7, 8], "hit"),
            ([5, 6, 7], [5, 6, 7, 8], None),
            ([5, 6, 7, 8], [5, 6, 7, 8], None),
            ([5, 6], [9], "miss"),
            ([], [5, 3], "hit"),
        ],
    )
    def test_a_saved_state_is_loaded_where_it_holds_more_of_the_prompt(
        self, stock, ours, caplog, monkeypatch, known, prompt, told
    ):
        caplog.set_level("INFO", logger="morphkv_cpp")
        for replay in (stock, ours):
            llm, loaded = replay.llm, []
            llm.input_ids[:3] = [5, 6, 7]
            llm.n_tokens = 3
            state = llm.save_state()
            llm.input_ids[: len(known)] = known
            llm.n_tokens = len(known)
            monkeypatch.setattr(llm, "load_state", loaded.append)
            llm.set_cache(llama_cpp.LlamaRAMCache())
            llm.cache[[5, 6, 7]] = state
            replay.whole([EOS], prompt=prompt)
            llm.set_cache(None)
            assert loaded == ([state] if told == "hit" else [])
        said = [word for word in ("hit", "miss", "save") if f"completion: cache {word}\n" in caplog.text]
        assert said == ([told, "save"] if told else ["save"])

    def test_chat(self, stock, ours):
        tokens = [*bytes_of("a\u20acb"), EOS]
        results = []
        for replay in (stock, ours):
            with replay.recorded(tokens):
                request = {"messages": [{"role": "user", "content": "ab"}], "logprobs": True, "top_logprobs": 2}
                whole = plain(replay.llm.create_chat_completion(**request))
                request["logprobs"] = False
                chunks = [plain(chunk, "usage") for chunk in replay.llm.create_chat_completion(**request, stream=True)]
                results.append((whole, chunks))
        assert results[1] == results[0]
        assert results[1][0]["choices"][0]["message"]["content"] == "a\u20acb"

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            ({"prompt": [5] * 512}, ValueError),
            ({"prompt": [5], "echo": True}, TypeError),
            ({"stop": [b"a"]}, AttributeError),
        ],
    )
    def test_errors(self, stock, ours, request_, error):
        messages = []
        for replay in (stock, ours):
            with pytest.raises(error) as caught:
                replay.whole([EOS], **request_)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


class TestBetterThanStock:
    """Where stock loses text or breaks: first what it does, then what is right."""

    SPLIT = ([b"a", b"\xf0\x9f", b"\x98\x80"], "a\U0001f600")  # as the demo model's vocabulary splits it, and others

    def test_a_character_of_several_tokens_at_the_end_of_a_stream(self, stock, ours):
        pieces, text = self.SPLIT
        tokens = [FIRST, FIRST + 1, FIRST + 2, EOS]
        assert texts(stock.chunks(tokens, pieces)) == ["a", "", "", ""]
        assert texts(ours.chunks(tokens, pieces)) == ["a", "", "\U0001f600", ""]
        assert stock.whole(tokens, pieces)["choices"][0]["text"] == text

    def test_a_character_of_several_tokens_with_logprobs(self, stock, ours):
        tokens = bytes_of("\u20aca")
        assert "".join(texts(stock.chunks(tokens, logprobs=1, max_tokens=4))) == "a"
        assert texts(ours.chunks(tokens, logprobs=1, max_tokens=4)) == ["", "", "\u20ac", "a", ""]

    def test_a_stream_goes_on_after_bytes_that_are_no_text(self, stock, ours):
        tokens = [*bytes_of("a"), FIRST + 0x80, *bytes_of("bcdefgh"), EOS]
        n_written = []
        for replay in (stock, ours):
            with replay.recorded(tokens):
                chunks = replay.llm.create_completion("ab", stream=True)
                while "b" not in texts([next(chunks)]):
                    pass
                n_written.append(replay.llm.n_tokens - len(replay.prompts[-1]))
        assert n_written == [9, 2]

    @pytest.mark.demo
    @pytest.mark.parametrize("n_piece", [64, 40])
    def test_a_long_token(self, demo_model, monkeypatch, n_piece):
        monkeypatch.setattr("morphkv_cpp.bridge.llama.N_PIECE", n_piece)
        replays = [
            Replay(llama_cpp.Llama(str(demo_model), n_ctx=256, **QUIET)),
            Replay(Llama(demo_model, morphkv=SMALL, **QUIET)),
        ]
        line = b"-" * 64
        tokens = replays[0].llm.tokenize(line, add_bos=False)
        assert len(tokens) == 1
        seen = [replay.whole([*tokens, EOS])["choices"][0]["text"] for replay in replays]
        assert seen == ["", line.decode()]
        for replay in replays:
            replay.llm.close()

    def test_a_stop_text_that_ends_an_answer_while_a_character_is_awaited(self, stock, ours):
        pieces = [b"abc", b"\xf0", b"\x9f\x98\x80", b"stop"]
        tokens = [*range(FIRST, FIRST + 4), EOS]
        assert stock.whole(tokens, pieces, stop="stop")["choices"][0]["text"] == "abc\U0001f600stop"
        assert ours.whole(tokens, pieces, stop="stop")["choices"][0]["text"] == "abc\U0001f600"

    def test_max_tokens_where_each_token_leaves_a_character_open(self, stock, ours):
        pieces = [b"abc", b"\xc3", b"\xa9\xc3"]
        tokens = [*([FIRST, FIRST + 1] + [FIRST + 2] * 100), EOS]
        assert stock.whole(tokens, pieces, max_tokens=2)["usage"]["completion_tokens"] == 102
        whole = ours.whole(tokens, pieces, max_tokens=2)
        assert whole["usage"]["completion_tokens"] == 5
        assert whole["choices"][0]["text"] == "abc\u00e9\u00e9\u00e9"

    def test_a_stream_moves_where_each_token_leaves_a_character_open(self, stock, ours):
        pieces = [b"\xc3", b"\xa9\xc3"]
        tokens = [FIRST] + [FIRST + 1] * 200
        with ours.recorded(tokens, pieces):
            chunks = ours.llm.create_completion("ab", max_tokens=None, stream=True)
            assert texts([next(chunks)])[0] == "\u00e9" * 63
            assert texts([next(chunks)])[0] == "\u00e9" * 64
            assert "".join(texts(chunks)) == "\u00e9" * (200 - 63 - 64)

    def test_an_answer_that_a_criterion_ends_once(self, stock, ours):
        never = llama_cpp.StoppingCriteriaList([lambda input_ids, logits: False])
        seen = [one.whole(bytes_of("abc"), stopping_criteria=never)["choices"][0] for one in (stock, ours)]
        assert [choice["text"] for choice in seen] == ["", "abc"]
        assert seen[0]["finish_reason"] == seen[1]["finish_reason"] == "length"

    def test_the_answer_to_an_empty_prompt(self, stock, ours):
        pieces = [b" a", b" b"]
        tokens = [FIRST, FIRST + 1, EOS]
        whole = ours.whole(tokens, pieces, prompt="")
        assert whole == stock.whole(tokens, pieces, prompt="")
        assert whole["choices"][0]["text"] == "a b"
        assert texts(stock.chunks(tokens, pieces, prompt="")) == ["", " a", " b", ""]
        assert texts(ours.chunks(tokens, pieces, prompt="")) == ["", "a", " b", ""]

    def test_logprobs_of_the_answer_to_an_empty_prompt_are_those_it_was_drawn_with(self, stock, ours):
        tokens = [*bytes_of("ab"), EOS]
        expected = [float(Llama.logits_to_logprobs(ours.llm.scores[i])[tokens[i]]) for i in range(2)]
        assert ours.whole(tokens, prompt="", logprobs=0)["choices"][0]["logprobs"]["token_logprobs"] == expected
        assert stock.whole(tokens, prompt="", logprobs=0)["choices"][0]["logprobs"]["token_logprobs"] != expected
        chunks = ours.chunks(tokens, prompt="", logprobs=0)
        assert [chunk["choices"][0]["logprobs"]["token_logprobs"][0] for chunk in chunks[:-1]] == expected
        assert texts(stock.chunks(tokens[:1], prompt="", logprobs=0)) == ["a", "a", ""]
        with pytest.raises(IndexError):
            stock.chunks(tokens, prompt="", logprobs=0)

    def test_logprobs_of_an_echoed_prompt_without_bos(self, stock, ours, monkeypatch):
        for replay in (stock, ours):
            monkeypatch.setattr(replay.llm._model, "add_bos_token", lambda: False)
        tokens, prompt = bytes_of("cd"), ours.llm.tokenize(b"ab", add_bos=False)
        seen = ours.whole(tokens, max_tokens=2, logprobs=0, echo=True)["choices"][0]["logprobs"]
        logprobs = Llama.logits_to_logprobs(ours.llm.scores)
        everything = [*prompt, *tokens]
        assert seen["token_logprobs"] == [
            None,
            *(float(logprobs[i, everything[i + 1]]) for i in range(len(everything) - 1)),
        ]
        assert seen["text_offset"] == [
            0,
            *(len(ours.llm.detokenize(everything[: i + 1])) for i in range(len(everything) - 1)),
        ]

    def test_offsets_at_the_end_of_a_stream_count_characters(self, stock, ours):
        pieces = ["\u00e9".encode(), b"s", b"t", b"x"]
        tokens = [*range(FIRST, FIRST + 3), EOS]
        offsets = []
        for replay in (stock, ours):
            chunks = replay.chunks(tokens, pieces, logprobs=0, stop="stop")
            offsets.append([chunk["choices"][0]["logprobs"]["text_offset"][0] for chunk in chunks[:-1]])
        assert offsets == [[2, 4, 5], [2, 3, 4]]

    def test_a_bias_beside_a_processor(self, ours):
        got = []

        def generate(prompt, logits_processor, **sampling):
            got.append(logits_processor(np.array([1]), np.zeros(4, dtype=np.float32)).tolist())
            return iter([EOS])

        doubled = llama_cpp.LogitsProcessorList([lambda input_ids, scores: scores + 2])
        with ours.recorded([]):
            ours.llm.generate = generate
            for processors in (None, doubled):
                ours.llm.create_completion("ab", logit_bias={"1": 0.5, 3: -4}, logits_processor=processors)
        assert got == [[0, 0.5, 0, -4], [2, 2.5, 2, -2]]
        assert len(doubled) == 1


def test_what_stock_refuses_is_refused(tiny_llama):
    llm = Llama(tiny_llama(), morphkv=SMALL, n_ctx=64, **QUIET)
    with pytest.raises(ValueError, match="logprobs is not supported for models created with logits_all=False"):
        llm.create_completion("ab", logprobs=1)
    with pytest.raises(ValueError, match=r"Requested tokens \(64\) exceed context window of 64"):
        llm.create_completion([5] * 64)
    with pytest.raises(TypeError, match="suffix must be a str or None, got 3"):
        llm.create_completion("ab", suffix=3)
    with pytest.warns(RuntimeWarning, match='Detected duplicate leading "<s>" in prompt'):
        llm.create_completion([BOS, BOS, 5], max_tokens=1)
    llm.close()


def test_another_tokenizer_is_left_to_stock(tiny_llama):
    """Its text of a token may depend on the tokens before."""

    class Upper(llama_cpp.llama_tokenizer.LlamaTokenizer):
        def detokenize(self, tokens, prev_tokens=None, special=False):
            return super().detokenize(tokens, prev_tokens, special).upper()

    llm = Llama(tiny_llama(), morphkv=SMALL, **QUIET)
    llm.tokenizer_ = Upper(llm)
    replay = Replay(llm)
    assert replay.whole([*bytes_of("abc"), EOS])["choices"][0]["text"] == "ABC"
    assert "".join(texts(replay.chunks([*bytes_of("abc"), EOS]))) == "ABC"
    llm.close()


class TestSampled:
    """Through the real `generate`."""

    def test_a_seed_gives_stocks_answer_before_the_first_eviction(self, tiny_llama):
        options = {**QUIET, "flash_attn": True}
        models = [
            llama_cpp.Llama(str(tiny_llama()), n_ctx=512, **options),
            Llama(tiny_llama(), morphkv=MorphKV(capacity=256), **options),
        ]
        request = {"prompt": "abc", "max_tokens": 100, "temperature": 1.0, "seed": 4, "repeat_penalty": 1.2}
        request |= {"logit_bias": {"5": -2.0}, "top_k": 50, "stop": ["zq"]}
        stock, ours = (llm.create_completion(**request) for llm in models)
        assert ours["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert plain(ours) == plain(stock)
        assert ours["usage"]["completion_tokens"] > 50
        chunks = models[1].create_completion(**request, stream=True)
        assert "".join(texts(chunks)) == ours["choices"][0]["text"]
        for llm in models:
            llm.close()
