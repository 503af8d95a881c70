"""A model that cannot be loaded: ValueError with llama.cpp's reason, and its log goes where it went before."""

import ctypes
import threading

import numpy as np
import pytest

from morphkv_cpp import Llama, bridge
from support.log import log_address, silent_log

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import gguf
import llama_cpp

QUIET = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1}


def no_gguf(model, path):
    path.write_bytes(b"nope" + model.read_bytes()[4:])


def cut_in_a_tensor(model, path):
    path.write_bytes(model.read_bytes()[:-1000])


def cut_in_the_header(model, path):
    path.write_bytes(model.read_bytes()[:300])


def without_a_tensor(model, path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SPOILT = {
    no_gguf: r"invalid magic characters: 'nope', expected 'GGUF'",
    cut_in_a_tensor: r"tensor '.*' data is not within the file bounds, model is corrupted or incomplete",
    cut_in_the_header: r"failed to read",
    without_a_tensor: r"key not found in model: llama",
}


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("morphkv", [True, None], ids=["morphkv", "stock"])
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_the_reason_and_the_path_are_in_the_error(tiny_llama, tmp_path, capfd, spoil, morphkv, verbose):
    path, before = tmp_path / "model.gguf", log_address()
    spoil(tiny_llama(), path)
    with pytest.raises(ValueError, match=SPOILT[spoil]) as caught:
        Llama(path, morphkv=morphkv, verbose=verbose, **({**QUIET, "n_ctx": 0} if morphkv else QUIET))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert log_address() == before
    assert ("error loading model" in capfd.readouterr().err) == verbose


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"Model path does not exist: .*model\.gguf$"):
        Llama(tmp_path / "model.gguf", verbose=False)


def test_threads_hear_their_own_errors(tiny_llama, tmp_path):
    model, heard, before = tiny_llama(), {}, log_address()
    for spoil in SPOILT:
        spoil(model, tmp_path / spoil.__name__)

    def load(spoil) -> None:
        for _ in range(20):
            try:
                Llama(tmp_path / spoil.__name__, verbose=True, **QUIET)
            except ValueError as error:
                heard.setdefault(spoil, set()).add(str(error))

    threads = [threading.Thread(target=load, args=(spoil,)) for spoil in SPOILT]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {spoil: len(errors) for spoil, errors in heard.items()} == dict.fromkeys(SPOILT, 1)
    assert log_address() == before


def test_a_log_that_somebody_sets_meanwhile_stays():
    @llama_cpp.llama_log_callback
    def mine(_level, _text, _data):
        pass

    with silent_log():
        with bridge.heard_errors():
            llama_cpp.llama_log_set(mine, None)
        assert log_address() == ctypes.cast(mine, ctypes.c_void_p).value


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ([], ""),
        (["llama_model_load_from_file_impl: failed to load model\n"], ""),
        (["llama_model_load: error loading model: a: b\n", "llama_model_load_x: failed to load model\n"], "a: b"),
        (["f: one\n", "g: o", "ne\n", "h: two\n", "h: two\n"], "one; two"),
    ],
)
def test_the_reason_is_what_says_more_than_that_it_failed(log, reason):
    assert bridge.as_reason(log) == reason
