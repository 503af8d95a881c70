"""Models whose layers live on RPC servers: how servers are named, and what happens where none is."""

import pickle
import re
import sys
from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV, UnsupportedError
from morphkv_cpp.rpc import answering_servers
from support.command import run
from support.rpc_process import RpcServer
from support.server_process import TIGHT, ServerProcess, free_port, program

SMALL = MorphKV(capacity=40, window=8, interval=7, prompt_room=16)
OPTIONS = {"n_threads": 1, "n_ubatch": 16, "verbose": False}


@pytest.fixture
def names(rpc_servers):
    return [server.name for server in rpc_servers]


@pytest.fixture
def open_llama():
    """Llama(), closed before the servers go, also by a test that fails: ggml would end the process."""
    opened = []

    def make(*arguments, **options) -> Llama:
        opened.append(Llama(*arguments, **options))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


class TestAnsweringServers:
    @pytest.mark.parametrize(
        "text", ["", "localhost", "localhost:", ":50052", "host:70000", "host:0", "a:1,,b:2", "a b:1"]
    )
    def test_another_form_is_refused(self, text):
        with pytest.raises(ValueError, match="an RPC server must be HOST:PORT"):
            answering_servers(text)

    def test_none_is_refused(self):
        with pytest.raises(ValueError, match="got none"):
            answering_servers([])

    def test_nobody_there_is_a_sentence_and_the_process_goes_on(self, tiny_llama):
        name = f"127.0.0.1:{free_port()}"
        with pytest.raises(ConnectionError, match=f"no RPC server answers at {name}"):
            Llama(tiny_llama(), morphkv=SMALL, rpc_servers=name, **OPTIONS)

    def test_a_sequence_and_a_text_are_the_same(self, names):
        assert answering_servers(names) == answering_servers(", ".join(names)) == ",".join(names)


def logits(llm):
    import llama_cpp

    llm.eval([1, *range(260, 300)])
    return np.array(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)))


def kv_buffers(log: str) -> list[str]:
    """Where llama.cpp says that K and V are, sorted."""
    return sorted(re.findall(r"(\S+) KV buffer size", log))


def test_layers_live_on_all_servers_that_are_named(tiny_llama, names, capfd, open_llama):
    open_llama(tiny_llama(n_layer=4), morphkv=SMALL, rpc_servers=names, **{**OPTIONS, "verbose": True})
    buffers = kv_buffers(capfd.readouterr().err)
    assert buffers == sorted(f"RPC0[{name}]" for name in names)


@pytest.mark.parametrize("morphkv", [SMALL, None])
def test_a_model_gives_the_logits_that_it_gives_here(tiny_llama, names, morphkv, open_llama):
    options = {**OPTIONS, "morphkv": morphkv, "n_ctx": 512}
    here = open_llama(tiny_llama(), **options)
    there = open_llama(tiny_llama(), rpc_servers=names, **options)
    # the same kernels of the same build
    np.testing.assert_allclose(logits(there), logits(here), rtol=0, atol=1e-4)


def test_another_model_of_the_process_stays_here(tiny_llama, names, capfd, open_llama):
    open_llama(tiny_llama(), morphkv=SMALL, rpc_servers=names[0], **OPTIONS)
    capfd.readouterr()
    open_llama(tiny_llama(), morphkv=SMALL, n_gpu_layers=-1, **{**OPTIONS, "verbose": True})
    assert "RPC" not in "".join(kv_buffers(capfd.readouterr().err))


def test_a_copy_by_pickle_lives_on_the_same_servers(tiny_llama, names, open_llama):
    llm = open_llama(tiny_llama(), morphkv=SMALL, rpc_servers=names, **OPTIONS)
    expected = logits(llm)
    data = pickle.dumps(llm)
    llm.close()
    with closing(pickle.loads(data)) as copy:
        assert (logits(copy) == expected).all()


def test_a_command_takes_the_options_of_llama_server(tiny_llama, names, capfd):
    arguments = ["generate", str(tiny_llama(n_layer=4)), "hello", "-n", "80", "-t", "1", "--capacity", "40"]
    arguments += ["--window", "8", "--interval", "7", "--prompt-room", "0", "--temp", "0", "--ignore-eos"]
    texts = []
    for where in (
        [],
        ["--rpc", ",".join(names)],
        ["--rpc", names[0], "-nkvo"],
        ["--rpc", ",".join(names), "-ts", "1,3"],
    ):
        assert run(*arguments, *where, "-v") == 0
        output = capfd.readouterr()
        texts.append((output.out, kv_buffers(output.err)))
    assert len({text for text, _ in texts}) == 1
    on = sorted(f"RPC0[{name}]" for name in names)
    assert [buffers for _, buffers in texts] == [["CPU"], on, ["CPU"], on]


def test_llama_server_takes_them_too(tiny_llama, names, tmp_path):
    if not program("llama-server").is_file():
        pytest.skip("built without llama-server")
    flags = [*TIGHT, "-np", 1, "--rpc", ",".join(names), "-ngl", 99, "-lv", 4]
    server = ServerProcess(tiny_llama(n_layer=4), *flags, log=tmp_path / "log").start()
    try:
        answer = server.complete("a long question " * 40, 40)
        assert answer["timings"]["evicted_n"] > 0
        assert set(kv_buffers(server.log.read_text(errors="replace"))) >= {f"RPC0[{name}]" for name in names}
        assert server.stop() == 0
    finally:
        server.http.close()
        if server.is_alive():
            server.kill()


def test_the_command_is_the_packaged_server(tiny_llama, tmp_path, rpc_servers):
    server = RpcServer(tmp_path / "log", [sys.executable, "-m", "morphkv_cpp.cli.app", "rpc-server"])
    try:
        with closing(Llama(tiny_llama(), morphkv=SMALL, rpc_servers=server.name, **OPTIONS)) as llm:
            assert np.isfinite(logits(llm)).all()
    finally:
        server.stop()


def test_layers_that_are_split_inside_are_refused(tiny_llama, names, open_llama):
    split_mode = 3  # LLAMA_SPLIT_MODE_TENSOR
    with pytest.raises(UnsupportedError, match="split mode tensor"):
        open_llama(tiny_llama(), morphkv=SMALL, rpc_servers=names, split_mode=split_mode, **OPTIONS)
