"""llama-server --morphkv with a projector: images and sounds in chats that are longer than the cache."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import openai
import pytest

from morphkv_cpp.models.synthetic import N_BYTE_TOKENS
from support import TESTS
from support.hub import Hub
from support.projectors import write_projector
from support.server_process import program, run_program
from support.vision import ALL_KINDS, BY_SAM, KINDS, MORE_KINDS, MORE_SOUNDS, NOT_RUN, RECURRENT, SOUNDS, kinds, shown

SETTINGS = ("--morphkv", "--morphkv-capacity", 256, "--morphkv-prompt-room", 128, "--morphkv-interval", 32, "-np", 1)


def ask(kind: str, i: int, words: str = "what is this") -> dict:
    return {"role": "user", "content": shown(kind, f"{words} {i}", i)}


# What is written is what is read with the next turn: letters, but no byte that is one.
LETTERS = {
    "grammar": "root ::= [a-z]+",
    "logit_bias": [[i, False] for i in range(3, 3 + N_BYTE_TOKENS)],
    "ignore_eos": True,
}


def history(server, kind: str, n_turns: int, n_words: int = 40) -> list[dict]:
    """A chat with an image, or a sound, in each question; all is asked of the server."""
    messages = [{"role": "system", "content": "you see"}]
    for i in range(n_turns):
        messages.append(ask(kind, i, "word " * n_words))
        answer = server.chat(messages, 8, **LETTERS)
        messages.append(answer["choices"][0]["message"])
    return messages


@pytest.mark.parametrize("kind", kinds(MORE_SOUNDS, of=KINDS | MORE_KINDS | SOUNDS))
def test_before_the_first_eviction_answers_are_those_of_stock(start_server, tiny_vision, kind):
    model, projector = tiny_vision(kind)
    flags = ["--mmproj", projector, "-np", 1, "-fa", "on"]
    if ALL_KINDS[kind].text not in RECURRENT:
        # they part a prompt, in stock only where layers are recurrent, and other batches are rounded otherwise
        flags += ["--ctx-checkpoints", 0]
    large = ("--morphkv", "--morphkv-capacity", 2048)
    asked = [ask(kind, 1), ask(kind, 2)]
    answers = []
    for more in (large, ("-c", 4096)):
        server = start_server(model, *flags, *more)
        answers.append(server.chat(asked, 24, ignore_eos=True, logprobs=True, top_logprobs=3))
        server.stop()
    assert answers[0]["choices"][0]["logprobs"] == answers[1]["choices"][0]["logprobs"]
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["usage"]["prompt_tokens"] > 2 * ALL_KINDS[kind].n_tokens


@pytest.mark.parametrize(
    "kind", kinds(BY_SAM, SOUNDS, MORE_SOUNDS, of=[kind for kind in KINDS | MORE_KINDS if kind not in BY_SAM])
)
def test_twenty_images_in_one_chat_take_constant_cells(start_server, tiny_vision, kind):
    model, projector = tiny_vision(kind)
    server = start_server(model, "--mmproj", projector, "--morphkv-archive", "ram", *SETTINGS)
    messages = [{"role": "system", "content": "you see"}]
    for i in range(20):
        messages.append(ask(kind, i, "word " * 20))
        answer = server.chat(messages, 8, ignore_eos=True)
        messages.append(answer["choices"][0]["message"])
        timings = answer["timings"]
        assert timings["media_n"] == ALL_KINDS[kind].n_pieces
        assert 0 <= timings["media_tokens_n"] - ALL_KINDS[kind].n_tokens <= ALL_KINDS[kind].n_fill
        # the next turn is the turn
        assert i == 0 or timings["prompt_n"] < 20 * 8 + ALL_KINDS[kind].n_tokens + 128 + 40, (i, timings)
    cells = server.slot()["morphkv"]
    assert cells["n_evictions"] > 3
    assert cells["n_used"] <= 256 + 128


@pytest.mark.parametrize("kind", kinds(MORE_KINDS, MORE_SOUNDS, of=KINDS | SOUNDS))
def test_a_saved_slot_with_images_goes_on_in_another_process(start_server, tiny_vision, tmp_path, kind):
    model, projector = tiny_vision(kind)
    flags = ("--mmproj", projector, "--slot-save-path", tmp_path, *SETTINGS)
    one = start_server(model, *flags)
    messages = history(one, kind, 6)
    saved = one.slot_action(0, "save", filename="chat.bin")
    assert saved.status_code == 200, saved.text
    messages.append(ask(kind, 7))
    expected = one.chat(messages, 16, ignore_eos=True, logprobs=True, top_logprobs=3)
    one.stop()
    two = start_server(model, *flags)
    restored = two.slot_action(0, "restore", filename="chat.bin")
    assert restored.status_code == 200, restored.text
    got = two.chat(messages, 16, ignore_eos=True, logprobs=True, top_logprobs=3)
    assert got["choices"][0]["logprobs"] == expected["choices"][0]["logprobs"]
    assert got["timings"]["prompt_n"] == expected["timings"]["prompt_n"] < 200 + ALL_KINDS[kind].n_tokens


@pytest.mark.parametrize("kind", kinds(MORE_KINDS, MORE_SOUNDS, of=KINDS | SOUNDS))
def test_chats_with_images_take_turns_in_one_slot(start_server, tiny_vision, kind):
    """The prompt cache keeps the one that waits, and a question asked again costs the question.

    Its first answer was written before tokens were evicted behind it, so it may be another one.
    """
    model, projector = tiny_vision(kind)
    server = start_server(model, "--mmproj", projector, *SETTINGS)
    one = [*history(server, kind, 4), ask(kind, 5)]
    options = {"ignore_eos": True, "logprobs": True, "top_logprobs": 3}
    server.chat(one, 12, **options)
    again = server.chat(one, 12, **options)
    assert again["timings"]["prompt_n"] < 100 + ALL_KINDS[kind].n_tokens
    server.chat([ask(kind, 9, "something else")], 12, ignore_eos=True)
    back = server.chat(one, 12, **options)
    assert back["choices"][0]["logprobs"] == again["choices"][0]["logprobs"]
    assert back["timings"]["prompt_n"] < 100 + ALL_KINDS[kind].n_tokens


def test_an_image_that_does_not_fit_is_an_error_of_the_request(start_server, tiny_vision):
    model, projector = tiny_vision("gemma3")
    server = start_server(
        model, "--mmproj", projector, "--morphkv", "--morphkv-capacity", 256, "--morphkv-interval", 32, "-np", 1
    )
    body = {"messages": [ask("gemma3", 1)], "max_tokens": 4}
    assert server.post("/v1/chat/completions", body).status_code == 200
    server.stop()
    server = start_server(
        model,
        *("--mmproj", projector, "--morphkv", "--morphkv-capacity", 256, "--morphkv-interval", 32, "-np", 1),
        *("--morphkv-prompt-room", 16),
    )
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert "must fit max(interval, prompt_room) = 32 cells" in answer.json()["error"]["message"]
    assert server.chat([{"role": "user", "content": "still there"}], 4)["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("kind", kinds(ALL_KINDS, of=("janus_pro", "qwen2vl_merger", "ultravox")))
def test_the_openai_client_shows_more_than_the_cache_holds(start_server, tiny_vision, kind):
    model, projector = tiny_vision(kind)
    server = start_server(model, "--mmproj", projector, *SETTINGS)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages, n_seen = [], 0
    while server.slot()["morphkv"]["n_evictions"] < 3 or len(messages) < 6:
        messages.append(ask(kind, len(messages), "word " * 20))
        answer = client.chat.completions.create(model="any", messages=messages, max_tokens=8)
        n_seen += ALL_KINDS[kind].n_tokens
        assert answer.usage.prompt_tokens > n_seen
        assert answer.usage.completion_tokens > 0
        messages.append({"role": "assistant", "content": "so"})
    assert server.slot()["morphkv"]["n_used"] <= 256 + 128


@pytest.mark.parametrize("kind", ["qwen2vl_merger", "hunyuanvl"])
def test_a_vision_model_of_the_hub_starts(start_server, tiny_vision, tmp_path, kind):
    """Its projector comes by itself; one that cannot be served is left out, and told once."""
    folder = tmp_path / "hub" / "some" / "vision"
    folder.mkdir(parents=True)
    shutil.copy(tiny_vision("qwen2vl_merger")[0], folder / "vision-Q8_0.gguf")
    write_projector(folder / "mmproj-vision-f16.gguf", kind)
    hub = Hub(tmp_path / "hub")
    try:
        server = start_server(
            None,
            *SETTINGS,
            command=[str(program("llama-server")), "-hf", "some/vision:Q8_0"],
            env={"MODEL_ENDPOINT": hub.url, "LLAMA_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")},
        )
    finally:
        hub.close()
    assert server.chat([{"role": "user", "content": "words"}], 4)["usage"]["completion_tokens"] > 0
    answer = server.post("/v1/chat/completions", {"messages": [ask("gemma3", 1)], "max_tokens": 4})
    told = server.log.read_text(errors="replace").count("cannot serve this model's images and serves its text")
    assert (answer.status_code == 200, told) == ((True, 0) if kind == "qwen2vl_merger" else (False, 1))


def test_a_projector_whose_positions_cannot_be_rebased_is_refused(tiny_vision, tmp_path):
    model, _ = tiny_vision("qwen2vl_merger")
    projector = write_projector(tmp_path / "hunyuan.gguf", "hunyuanvl")
    done = run_program("llama-server", "-m", model, "--mmproj", projector, "--port", 0, "--morphkv")
    assert done.returncode == 1
    assert "cannot serve the images of --mmproj" in done.stdout
    assert "hunyuanvl" in done.stdout


def test_a_projector_that_llama_cpp_cannot_load_is_an_error_that_names_it(tiny_vision, tmp_path):
    projector = write_projector(tmp_path / "gemma3n.gguf", "gemma3na")
    done = run_program("llama-server", "-m", tiny_vision("mlp")[0], "--mmproj", projector, "--port", 0, "--morphkv")
    assert done.returncode == 1
    assert "unknown vision projector type gemma3na" in done.stdout


def test_gemma_3n_sees_though_its_ears_cannot_be_loaded(start_server, tiny_vision, tmp_path):
    projector = write_projector(tmp_path / "gemma3n.gguf", "gemma3nv", ears="gemma3na")
    server = start_server(tiny_vision("gemma3nv")[0], "--mmproj", projector, *SETTINGS)
    assert server.chat([ask("gemma3nv", 1)], 4)["timings"]["media_tokens_n"] == ALL_KINDS["gemma3nv"].n_tokens
    answer = server.post("/v1/chat/completions", {"messages": [ask("ultravox", 1)], "max_tokens": 4})
    assert answer.status_code >= 400
    assert "audio input is not supported" in answer.json()["error"]["message"]
    assert server.chat([ask("gemma3nv", 2)], 4)["usage"]["completion_tokens"] > 0


def test_each_projector_of_llama_cpp_is_run_or_told_not_to_be():
    source = Path(os.environ.get("MORPHKV_TEST_PROGRAMS", "")) / "../../upstream/tools/mtmd/clip-impl.h"
    if not source.is_file():
        pytest.skip("MORPHKV_TEST_PROGRAMS names no folder beside llama.cpp's sources")
    names = re.findall(r'\{ *PROJECTOR_TYPE_\w+, *"([^"]+)" *\}', source.read_text(encoding="utf-8"))
    assert len(names) > 60
    assert set(names) == (set(ALL_KINDS) | NOT_RUN) - {"mlp_norm"}  # which has no name of its own
    page = (TESTS.parent / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("|")]
    assert all(any(f"`{name}`" in row for row in rows) for name in NOT_RUN)


def test_the_docs_name_the_projectors_that_are_run():
    page = (TESTS.parent / "docs" / "models.md").read_text(encoding="utf-8")
    for kinds_of, column in ((KINDS | MORE_KINDS, "see"), (SOUNDS | MORE_SOUNDS, "hear")):
        row = next(line for line in page.splitlines() if line.startswith(f"| {column} |"))
        assert re.findall("`([^`]+)`", row) == sorted(kinds_of)
