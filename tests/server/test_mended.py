"""What patches mend of llama-server itself: right with MorphKV off as well."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.server_process import TIGHT
from support.server_process import some_tokens as tokens

# F32, as a draft's tokens are multiplied by other kernels than one token
F32 = ["-ctk", "f32", "-ctv", "f32", "--flash-attn", "on"]


@pytest.fixture(params=["off", "on"])
def start(request, start_server, tiny_llama, tmp_path):
    """start(n_slots, *flags) -> a server, with MorphKV off or on, whose slots can hold 1,024 tokens."""

    def begin(n_slots, *flags):
        of_cache = TIGHT if request.param == "on" else ["-c", n_slots * 1024]
        return start_server(tiny_llama(), *of_cache, "-np", n_slots, "--slot-save-path", tmp_path, *flags)

    return begin


def test_a_task_for_a_busy_slot_waits(start):
    server = start(2)
    short = server.complete(tokens(50, seed=9), 4, id_slot=0)[
        "tokens"
    ]  # goes to the prompt cache, and comes from there
    body = {"prompt": tokens(300), "n_predict": 300, "ignore_eos": True, "temperature": 0, "id_slot": 0}
    expected = server.complete(tokens(300), 300, id_slot=0)["content"]
    events = server.stream("/completion", body)
    text = json.loads(next(events))["content"]
    other = server.complete(tokens(50, seed=9), 4, id_slot=0)["tokens"]
    text += "".join(json.loads(event)["content"] for event in events)
    assert text == expected
    assert other == short


def test_all_that_wait_for_a_slot_are_woken(start):
    server = start(1)
    events = server.stream("/completion", {"prompt": tokens(300), "n_predict": 600, "ignore_eos": True})
    next(events)
    with ThreadPoolExecutor(4) as pool:
        saves = [pool.submit(server.slot_action, 0, "save", filename=f"{i}.bin") for i in range(4)]
        assert len(list(events)) > 100
        assert [save.result().status_code for save in saves] == [200] * 4


@pytest.mark.parametrize("body", [b"{", b"", b"[1"])
def test_a_body_that_is_no_json_is_the_clients_fault(start, body):
    server = start(1)
    for path in ("/completion", "/v1/chat/completions", "/tokenize"):
        answer = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_file_without_a_state_leaves_the_slot_as_it_was(start, tmp_path):
    server = start(1)
    text = tokens(400)
    text += server.complete(text, 4)["tokens"]
    (tmp_path / "other.bin").write_bytes(b"something else")
    for name in ("missing.bin", "other.bin"):
        refused = server.slot_action(0, "restore", filename=name)
        assert refused.status_code == 400
        assert "Unable to restore slot" in refused.json()["error"]["message"]
    assert server.complete([*text, 260], 4)["timings"]["cache_n"] == len(text) - 1


def test_a_state_that_is_cut_off_leaves_no_half_of_a_text(start, tmp_path):
    server = start(1)
    text = tokens(400)
    expected = server.complete(text, 20)["tokens"]
    assert server.slot_action(0, "save", filename="a.bin").status_code == 200
    data = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "half.bin").write_bytes(data[: len(data) // 2])
    assert server.slot_action(0, "restore", filename="half.bin").status_code == 400
    assert server.complete(text, 20)["tokens"] == expected


def test_a_restored_slot_drafts_for_its_own_text(start, tiny_llama):
    draft = ["--spec-draft-model", tiny_llama(), "--spec-type", "draft-simple", "--spec-draft-p-min", 0.0]
    server = start(1, *F32, *draft)
    text = tokens(400)
    text += server.complete(text, 60)["tokens"]
    assert server.slot_action(0, "save", filename="a.bin").status_code == 200
    expected = server.complete([*text, 263], 60)["tokens"]
    server.complete(tokens(50, seed=3), 30)
    assert server.slot_action(0, "restore", filename="a.bin").status_code == 200
    again = server.complete([*text, 263], 60)
    assert again["tokens"] == expected
    assert again["timings"]["cache_n"] >= len(text) - 1
