"""/morphkv/retained: what a slot's heads keep is what Llama.retained() says of the same state; errors; any bytes."""

import json
import threading

import llama_cpp
import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV, bridge
from support.projectors import with_image
from support.server_process import TIGHT
from support.server_process import some_tokens as tokens
from support.tiny import QUIET
from support.vision import KINDS

SAME = MorphKV(capacity=128, window=16, interval=16, prompt_room=64)
FLAGS = [*TIGHT, "-np", 2, "--morphkv-archive", "ram"]


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama, tmp_path_factory):
    return start_shared(tiny_llama(), *FLAGS, "--slot-save-path", tmp_path_factory.mktemp("saved"), "--slots")


def retained(server, id_slot: int = 0, **more) -> dict:
    query = "&".join(f"{name}={value}" for name, value in {"id_slot": id_slot, **more}.items())
    return server.get(f"/morphkv/retained?{query}")


def ascending(steps: list[int]) -> list[int]:
    return np.cumsum(steps, dtype=int).tolist()


def test_layers_are_those_of_retained(server, tiny_llama, tmp_path):
    server.complete(tokens(500), 8, id_slot=0)
    seen = retained(server, layers=1)
    saved = server.slot_action(0, "save", filename="a")
    assert saved.status_code == 200
    path = server.command[server.command.index("--slot-save-path") + 1] + "/a"
    with Llama(str(tiny_llama()), morphkv=SAME, archive="ram", **QUIET) as llm:
        ids, n = (llama_cpp.llama_token * 2000)(), (llama_cpp.ctypes.c_size_t * 1)()
        n_read = llama_cpp.llama_state_seq_load_file(llm.ctx, path.encode(), 0, ids, 2000, n)
        assert n_read > 0, bridge.last_error()
        stats = llm.cache_stats()
        assert seen["n_tokens"] == stats.logical_pos + 1 == 507
        assert seen["first_recent"] == seen["n_tokens"] - (stats.n_used - stats.n_distant)
        counts = np.zeros(seen["n_tokens"], dtype=int)
        for layer in seen["layers"]:
            mine = llm.retained(layer["layer"])
            assert layer["n_heads"] == len(layer["heads"]) == len(mine)
            for said, held in zip(layer["heads"], mine):
                assert ascending(said) == sorted(held.tolist())
                counts[held] += 1
        assert len(seen["layers"]) == 2
        kept = ascending(seen["kept"]["tokens"])
        assert kept == np.flatnonzero(counts).tolist()
        assert seen["kept"]["heads"] == counts[kept].tolist()
        assert seen["n_kept"] == len(kept) + stats.n_used - stats.n_distant
        assert seen["n_heads"] == sum(layer["n_heads"] for layer in seen["layers"])


def test_all_is_kept_before_the_first_eviction(server):
    server.complete(tokens(40, seed=1), 2, id_slot=1)
    seen = retained(server, 1, layers=1)
    assert (seen["n_tokens"], seen["n_kept"], seen["first_recent"]) == (41, 41, 0)
    assert [layer["has_all"] for layer in seen["layers"]] == [True, True]
    assert seen["n_heads_with_all"] == seen["n_heads"]


def test_recalled_pages_are_marked(server):
    server.complete(tokens(500, seed=2), 4, id_slot=0)
    seen = retained(server)
    assert seen["cache"]["n_recalls"] == 2
    pages = [page for page, _ in seen["recalled"]]
    assert pages == sorted(set(pages))
    assert pages
    assert all(page % 16 == 0 and page < seen["first_recent"] for page in pages)
    assert {by for _, by in seen["recalled"]} <= {1, 2}
    # another text has none of them
    server.complete(tokens(40, seed=3), 2, id_slot=0, cache_prompt=False)
    assert retained(server)["recalled"] == []


def test_pieces_that_a_client_has_are_left_out(server):
    server.complete(tokens(60, seed=4), 2, id_slot=1)
    first = retained(server, 1, n=50)
    assert (first["from"], len(first["pieces"]), first["n_tokens"]) == (0, 50, 61)
    rest = retained(server, 1, **{"from": 50, "text": first["text"]})
    assert (rest["from"], len(rest["pieces"])) == (50, 11)
    assert first["pieces"] + rest["pieces"] == retained(server, 1)["pieces"]
    assert retained(server, 1, **{"from": 61, "text": rest["text"]})["pieces"] == []
    # of another text, all comes again
    server.complete(tokens(60, seed=5), 2, id_slot=1)
    other = retained(server, 1, **{"from": 50, "text": first["text"]})
    assert (other["from"], len(other["pieces"])) == (0, 61)


@pytest.mark.parametrize("text", ["ü 漢字 🙂", "</script><img src=x onerror=alert(1)>", '"\\\x07'])
def test_pieces_are_the_text(server, text):
    server.complete(text * 3, 1, id_slot=1)
    assert "".join(retained(server, 1)["pieces"]).endswith(text * 3)


def test_bytes_that_are_no_text_are_still_utf8(server):
    # a token for each byte: the first byte of a character without its second, a half of a pair, one beyond Unicode
    wild = [byte + 3 for byte in b"a\xc3(\xed\xa0\x80\xf4\x90\x80\x80\xff\xe2\x82"]
    server.complete([1, *wild], 1, id_slot=1)
    answer = server.http.get("/morphkv/retained?id_slot=1")
    pieces = json.loads(answer.content.decode("utf-8"))["pieces"]
    assert "".join(pieces).endswith("a\ufffd(" + "\ufffd" * 8)  # what may go on is not there yet


@pytest.mark.parametrize(
    "query, rule",
    [
        ("", "id_slot must be in 0..1, got ''"),
        ("id_slot=2", "id_slot must be in 0..1, got '2'"),
        ("id_slot=-1", "id_slot must be in 0..1, got '-1'"),
        ("id_slot=0&layers=yes", "layers must be in 0..1, got 'yes'"),
        ("id_slot=0&from=99999999999", "from must be in 0..2147483647, got '99999999999'"),
    ],
)
def test_a_wrong_query_is_told(server, query, rule):
    answer = server.http.get(f"/morphkv/retained?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"] == {"code": 400, "message": rule, "type": "invalid_request_error"}


def test_it_can_be_asked_for_while_an_answer_is_written(server):
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(retained(server, layers=1))

    watcher = threading.Thread(target=watch)
    alone = server.complete(tokens(300, seed=6), 3000, id_slot=0, cache_prompt=False)["tokens"]
    watcher.start()
    watched = server.complete(tokens(300, seed=6), 3000, id_slot=0, cache_prompt=False)["tokens"]
    done.set()
    watcher.join()
    assert watched == alone
    assert any(one["is_processing"] for one in seen)
    assert len({one["n_tokens"] for one in seen}) > 2
    for one in seen:  # each is of one moment
        assert all(len(head) == 112 for layer in one["layers"] if not layer["has_all"] for head in layer["heads"])


def test_nobody_looks_at_a_slot_but_for_those_who_ask(server):
    server.complete(tokens(300, seed=7), 2, id_slot=0)
    before = retained(server)["n_looks"]
    server.complete(tokens(300, seed=7), 100, id_slot=0)  # a hundred decodes, several evictions
    after = retained(server)
    assert after["n_looks"] == before + 1
    assert after["cache"]["n_evictions"] > 5


def test_what_is_held_is_reckoned_once_for_all_who_ask(server):
    server.complete(tokens(300, seed=8), 2, id_slot=0)
    first = retained(server)
    again = [retained(server) for _ in range(3)]
    assert {one["n_reckoned"] for one in again} == {first["n_reckoned"]}
    assert all(one["kept"] == first["kept"] for one in again)
    layers = [retained(server, layers=1) for _ in range(3)]
    assert {one["n_reckoned"] for one in layers} == {first["n_reckoned"] + 1}  # the first is written down
    # tokens without an eviction change nothing, a thing that leaves does
    n_evictions, n_tokens = first["cache"]["n_evictions"], first["n_tokens"]
    prompt = tokens(300, seed=8)
    for n in range(4, 60, 2):
        server.complete(prompt, n, id_slot=0)
        seen = retained(server)
        assert seen["n_tokens"] > n_tokens
        if seen["cache"]["n_evictions"] > n_evictions:
            break
        assert seen["n_reckoned"] == first["n_reckoned"] + 1
    assert seen["n_reckoned"] == first["n_reckoned"] + 2


@pytest.mark.parametrize("kind", ["gemma3", "qwen2vl_merger"])
def test_an_image_is_told_and_words_around_it_keep_their_places(start_server, tiny_vision, kind):
    model, projector = tiny_vision(kind)
    flags = ("--morphkv", "--morphkv-capacity", 256, "--morphkv-prompt-room", 128, "--morphkv-interval", 32, "-np", 1)
    server = start_server(model, "--mmproj", projector, *flags)
    messages = []
    for i in range(8):
        messages.append({"role": "user", "content": with_image("word " * 30, i)})
        messages.append(server.chat(messages, 8, ignore_eos=True)["choices"][0]["message"])
    seen = retained(server, layers=1)
    media = seen["media"]
    assert [(n, what) for _, n, what in media] == [(KINDS[kind].n_tokens, "image")] * 8
    assert all(seen["pieces"][first : first + n] == [""] * n for first, n, _ in media)
    assert all(seen["pieces"][first - 1] != "" for first, _, _ in media)
    assert seen["cache"]["n_evictions"] > 0
    in_media = {first + i for first, n, _ in media for i in range(n)}
    firsts = {first for first, _, _ in media}
    n_shared = KINDS[kind].n_tokens - KINDS[kind].n_positions
    n_distant = 0
    for head in (head for layer in seen["layers"] if not layer["has_all"] for head in layer["heads"]):
        held = ascending(head)
        assert held == sorted(set(held))
        assert held[-1] < seen["first_recent"]
        if n_shared:  # all tokens of an image that are held are its first
            assert set(held) & in_media <= firsts
        else:
            n_distant = n_distant or len(held)
            assert len(held) == n_distant  # no two tokens at one place
    assert any(set(ascending(head)) - in_media for layer in seen["layers"] for head in layer.get("heads", []))


def test_without_morphkv_there_is_none(start_server, tiny_llama):
    stock = start_server(tiny_llama(), "-c", 256, "-np", 1)
    answer = stock.http.get("/morphkv/retained?id_slot=0")
    assert answer.status_code == 501
    assert answer.json()["error"]["message"].endswith("Start it with `--morphkv`")


def test_it_wants_the_key(start_server, tiny_llama):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--api-key", "secret")
    assert server.http.get("/morphkv/retained?id_slot=0").status_code == 401
    with_key = server.http.get("/morphkv/retained?id_slot=0", headers={"Authorization": "Bearer secret"})
    assert with_key.status_code == 200
    assert with_key.json()["n_tokens"] == 0
    assert server.http.get("/morphkv").status_code == 200  # where the key is asked for
