"""Files of texts that were read once, attached to a server: all slots recall from them."""

import pytest

from morphkv_cpp import Llama, MorphKV
from support.server_process import TIGHT, run_program
from support.server_process import some_tokens as tokens
from support.tiny import QUIET

TEXT = " ".join(f"line {i} says {i * 37 % 101}." for i in range(200))


@pytest.fixture
def file(tiny_llama, tmp_path):
    """Its path, and the model's."""
    model, into = tiny_llama(), tmp_path / "manual.archive"
    with Llama(str(model), morphkv=MorphKV(capacity=128, window=16, interval=16), **QUIET) as llm:
        llm.read(text=TEXT, into=into, progress=False)
    return model, into


def test_each_slot_recalls_from_it_and_says_so(start_server, file):
    model, path = file
    server = start_server(model, *TIGHT, "-np", 2, "--slots", "--morphkv-attach", path)
    props = server.http.get("/props").json()["morphkv"]
    assert props["attached"] == [str(path)]
    assert props["archive"] == "auto"
    for slot in (0, 1):
        timings = server.complete(tokens(30, slot), 8, id_slot=slot)["timings"]
        assert timings["recalled_from"] == {str(path): timings["recalled_n"]}
        assert timings["recalled_n"] > 0
        assert timings["reread_n"] % 16 == 0 < timings["reread_n"] <= 240
    # once more, after the slot has had another text
    first = server.complete(tokens(30, 5), 8, id_slot=0, cache_prompt=False)
    server.complete(tokens(500, 9), 4, id_slot=0, cache_prompt=False)
    again = server.complete(tokens(30, 5), 8, id_slot=0, cache_prompt=False)
    assert again["tokens"] == first["tokens"]
    assert "attached (" in server.log.read_text()


def test_chats_on_disk_are_of_what_is_attached(start_server, file, tmp_path):
    model, path = file
    flags = [*TIGHT, "-np", 1, "--morphkv-state-dir", tmp_path / "chats"]
    server = start_server(model, *flags, "--morphkv-attach", path)
    text = tokens(60)
    done = server.complete(text, 8)
    server.stop()
    more = [*text, *done["tokens"], *tokens(20, 2)]
    assert server.start().complete(more, 4)["timings"]["cache_n"] > 60
    server.stop()
    without = start_server(model, *flags, "--morphkv-archive", "auto")
    assert without.complete(more, 4)["timings"]["cache_n"] == 0


def test_what_is_refused(file, tiny_llama, tmp_path):
    model, path = file
    damaged = tmp_path / "damaged"
    damaged.write_bytes(path.read_bytes()[:-1])
    for arguments, why in (
        (["--morphkv-attach", tmp_path / "none"], "none cannot be opened"),
        (["--morphkv-attach", damaged], "is truncated"),
        (["--morphkv-attach", path, "--morphkv-attach", path], "attached already"),
    ):
        done = run_program("llama-server", "-m", model, *TIGHT, *arguments)
        assert done.returncode != 0
        assert why in done.stdout
    done = run_program("llama-server", "-m", model, "--morphkv-attach", path)
    assert "--morphkv-attach needs --morphkv" in done.stdout
