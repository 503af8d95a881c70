"""Llama.tokenize: what llama.cpp gives, and a sentence where llama.cpp would end the process."""

import random
import subprocess
import sys
from string import ascii_lowercase

import pytest

from morphkv_cpp import InvalidError, Llama, MorphKV, bridge
from support.tiny import QUIET

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import gguf
import llama_cpp

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)
OPTIONS = {"n_ctx": 512, **QUIET}
TOO_HIGH = [b"\xf4\x90\x80\x80", b"abc \xf5\x80\x80\x80", b"\xf7\xbf\xbf\xbf"]  # above U+10FFFF, else well formed
INVALID = [*TOO_HIGH, b"\xff", b"abc\x80", b"\xe2\x8c", b"\xed\xa0\x80", b"\xc0\x80", b"\xf0\x80\x80\x80"]
VALID = ["", "a", "the cat", "  two\n\tlines ", "héllo wörld", "日本語 text", "😀😀", "\0", "a" * 3000, "<s>x</s>"]
# Tokenizers of llama.cpp by their name in a GGUF: SPM, BPE, WPM, UGM as of T5, PLaMo 2.
TOKENIZERS = ["llama", "gpt2", "bert", "t5", "plamo2"]


@pytest.fixture(scope="module")
def model_with(tiny_llama, tmp_path_factory):
    """The tiny model with another kind of tokenizer."""
    folder, source = tmp_path_factory.mktemp("tokenizers"), tiny_llama()

    def make(tokenizer: str, n_bytes: int = 256):
        path = folder / f"{tokenizer}-{n_bytes}.gguf"
        if not path.exists():
            _copy(source, path, tokenizer, n_bytes)
        return path

    return make


def _copy(source, target, tokenizer: str, n_bytes: int) -> None:
    """n_bytes: how many bytes have tokens of their own."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    replaced = {"tokenizer.ggml.model": tokenizer, "tokenizer.ggml.pre": "gpt-2" if tokenizer == "gpt2" else "default"}
    n_vocab = len(reader.get_field("tokenizer.ggml.tokens").data)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, items = replaced.get(name, field.contents()), None
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            items = field.types[-1]
        if name == "tokenizer.ggml.tokens":
            value = [f"<gone{i}>" if 3 + n_bytes <= i < 3 + 256 else token for i, token in enumerate(value)]
            if tokenizer == "gpt2":  # each byte as the letter that stands for it
                value = [_letter(i - 3) if 3 <= i < 259 else f"tok{i}" for i in range(len(value))]
            elif tokenizer == "bert":
                value = [*(f"tok{i}" for i in range(259)), *(f"\u2581{letter}" for letter in ascii_lowercase)]
                value += [f"word{i}" for i in range(len(value), n_vocab)]
        if name == "tokenizer.ggml.token_type" and tokenizer in ("gpt2", "bert"):
            value = [gguf.TokenType.NORMAL] * n_vocab
        writer.add_key_value(name, value, field.types[0], items)
    if tokenizer == "gpt2":
        writer.add_token_merges(["t h"])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _letter(byte: int) -> str:
    """GPT-2's for a byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [other for other in range(256) if other not in shown]
    return chr(byte) if byte in shown else chr(0x100 + hidden.index(byte))


def stock(llm: Llama, text: bytes, **options) -> list[int]:
    return llama_cpp.Llama.tokenize(llm, text, **options)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("morphkv", [SMALL, None], ids=["morphkv", "stock"])
def test_valid_text_is_as_with_llama_cpp(model_with, tokenizer, morphkv):
    llm = Llama(model_with(tokenizer), morphkv=morphkv, **OPTIONS)
    for text in VALID:
        for options in ({}, {"add_bos": False}, {"special": True}):
            assert llm.tokenize(text.encode(), **options) == stock(llm, text.encode(), **options)
    llm.close()


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_with_morphkv_all_that_is_no_utf8_is_refused(model_with, tokenizer):
    llm = Llama(model_with(tokenizer), morphkv=SMALL, **OPTIONS)
    for text in INVALID:
        with pytest.raises(ValueError, match=r"a text must be UTF-8, got 0x.. at byte"):
            llm.tokenize(text)
    llm.close()


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_without_morphkv_only_what_would_end_the_process_is(model_with, tokenizer):
    llm = Llama(model_with(tokenizer), **OPTIONS)
    fatal = TOO_HIGH if tokenizer in ("gpt2", "bert") else []
    for text in INVALID:
        if text in fatal:
            with pytest.raises(InvalidError, match="the model's vocabulary cannot take this text"):
                llm.tokenize(text)
        else:
            assert llm.tokenize(text) == stock(llm, text)
    llm.close()


def test_random_bytes_end_no_process(model_with, demo_model):
    randomness = random.Random(1)
    for model in (*map(model_with, TOKENIZERS), demo_model):
        llm = Llama(model, **OPTIONS)
        for _ in range(200):
            text = randomness.randbytes(randomness.randrange(1, 200))
            try:
                llm.tokenize(text)
            except InvalidError:
                pass
        llm.close()


def test_a_vocabulary_without_bytes_says_so(model_with):
    """Of a valid text, too: llama.cpp throws where a byte has no token."""
    llm = Llama(model_with("llama", n_bytes=128), **OPTIONS)
    assert llm.tokenize(b"the cat")
    with pytest.raises(InvalidError, match="the model's vocabulary cannot take this text"):
        llm.tokenize("日本".encode())
    llm.close()


def test_more_tokens_than_bytes(model_with):
    llm = Llama(model_with("llama"), **OPTIONS)
    assert bridge.tokenize(llm._model.vocab, b"", add_special=True, parse_special=False) == [llm.token_bos()]
    assert llm.tokenize(b"\n" * 50, add_bos=False) == stock(llm, b"\n" * 50, add_bos=False)
    llm.close()


@pytest.mark.parametrize("model", ["demo_model", "gemma_model"])
def test_real_vocabularies(request, model):
    llm = Llama(request.getfixturevalue(model), **OPTIONS)
    for text in map(str.encode, VALID):
        assert llm.tokenize(text) == stock(llm, text)
    try:
        assert llm.tokenize(TOO_HIGH[0]) == stock(llm, TOO_HIGH[0])
    except InvalidError:
        assert model == "demo_model"
    llm.close()


@pytest.mark.parametrize("content", [b"\x7fELF\x02\xf5\x80\x80\x80" * 1000, b"a text \xff" * 1000])
def test_perplexity_of_a_binary_file_is_an_error(tiny_llama, tmp_path, content):
    (tmp_path / "program").write_bytes(content)
    command = [sys.executable, "-m", "morphkv_cpp", "eval", "perplexity", str(tiny_llama()), "program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: program must be UTF-8, got 0xf" in done.stderr
