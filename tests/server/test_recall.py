"""Archives of slots: what left the window comes back for a prompt, and is reported; other slots are not disturbed."""

import concurrent.futures
import re
from contextlib import closing

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval.recall import QUESTION, first_word
from morphkv_cpp.eval.remember import build_document
from support.server_process import TIGHT, run_program
from support.server_process import some_tokens as tokens

RECALLING = [*TIGHT, "-np", 2, "--slots", "--metrics", "--morphkv-archive", "ram"]


@pytest.fixture(params=[[], ["-b", 32, "-ub", 16]], ids=["", "small-batches"])
def server(start_server, tiny_llama, request):
    return start_server(tiny_llama(), *RECALLING, *request.param)


def metric(server, name: str) -> float:
    text = server.http.get("/metrics").text
    return float(re.search(rf"^llamacpp:morphkv_{name} (\S+)$", text, re.MULTILINE)[1])


def test_a_prompt_recalls_twice_and_says_so(server):
    text = tokens(400)
    done = server.complete(text, 4, id_slot=0)
    timings, slot = done["timings"], server.slot()["morphkv"]
    assert timings["recalls_n"] == slot["n_recalls"] == metric(server, "recalls_total") == 2
    assert timings["recalled_n"] == slot["n_recalled"] == metric(server, "recalled_tokens_total") > 0
    assert timings["recall_ms"] > 0
    # what is decoded again is no more of the prompt
    assert (timings["cache_n"], timings["prompt_n"], done["tokens_evaluated"]) == (0, 400, 400)
    assert slot["n_archived"] == metric(server, "archived_tokens") > 250
    assert metric(server, "archive_bytes") > 0
    assert slot["logical_pos"] == 400 + 4 - 2

    again = server.complete([*text, *done["tokens"], *tokens(30, seed=3)[1:]], 4, id_slot=0)
    assert again["timings"]["recalls_n"] == 2
    assert again["timings"]["cache_n"] == 400 + 4 - 1
    assert server.slot()["morphkv"]["n_recalls"] == 4


def test_with_recurrent_layers_too(start_server, tiny_hybrid):
    server = start_server(tiny_hybrid, *RECALLING)
    for seed in range(3):
        done = server.complete(tokens(400, seed), 4, id_slot=0)
        assert done["timings"]["recalls_n"] == 2
        assert done["timings"]["cache_n"] + done["timings"]["prompt_n"] == 400


def test_slots_side_by_side_write_what_they_write_alone(start_server, tiny_llama):
    server = start_server(tiny_llama(), *RECALLING, "-ub", 1)
    prompts = [tokens(350 + 70 * i, seed=i) for i in range(2)]
    alone = [server.complete(prompt, 40, id_slot=0, cache_prompt=False)["tokens"] for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(server.complete, p, 40, id_slot=i) for i, p in enumerate(prompts)]
        assert [future.result()["tokens"] for future in futures] == alone


def test_recalls_while_writing_and_none(start_server, tiny_llama):
    often = start_server(tiny_llama(), *RECALLING, "--morphkv-recall", 2)
    never = start_server(tiny_llama(), *RECALLING, "--morphkv-recall", "off")
    without = start_server(tiny_llama(), *TIGHT, "-np", 2)
    prompt = tokens(400)
    written = often.complete(prompt, 100)
    assert written["timings"]["recalls_n"] == 2 + 98 // 32
    done = never.complete(prompt, 100)
    assert done["timings"]["recalls_n"] == 0
    plain = without.complete(prompt, 100)
    assert plain["tokens"] == done["tokens"]
    assert "recalls_n" not in plain["timings"]


def test_a_prompt_in_the_cache_and_one_of_a_token(server):
    text = tokens(400)
    first = server.complete(text, 8, id_slot=0)
    again = server.complete(text, 8, id_slot=0)
    assert len(first["tokens"]) == len(again["tokens"]) == 8
    assert again["timings"]["cache_n"] >= 392
    assert len(server.complete([1], 8, id_slot=1)["tokens"]) == 8


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_a_prompt_that_is_asked_again_recalls_nothing_more(start_server, tiny_llama, tiny_hybrid, kind):
    """Its answer begins from the same bits."""
    server = start_server(tiny_llama() if kind == "llama" else tiny_hybrid, *RECALLING)
    text = tokens(400)
    first = server.complete(text, 1, id_slot=0, n_probs=2)
    assert first["timings"]["recalls_n"] == 2
    for _ in range(2):
        again = server.complete(text, 1, id_slot=0, n_probs=2)
        assert again["timings"]["cache_n"] == 399
        assert again["timings"]["recalls_n"] == 0
        assert again["tokens"] == first["tokens"]
        # a token that ends inside of a character has none
        assert again.get("completion_probabilities") == first.get("completion_probabilities")
    # a new word asks, and another slot knows nothing of it
    assert server.complete([*text, 270], 4, id_slot=0)["timings"]["recalls_n"] > 0
    assert server.complete(text, 4, id_slot=1)["timings"]["recalls_n"] == 2


def test_nor_behind_a_long_answer_where_a_checkpoint_serves(server):
    text = tokens(400)
    assert server.complete(text, 120, id_slot=0)["timings"]["recalls_n"] == 2
    again = server.complete(text, 120, id_slot=0)
    assert again["timings"]["cache_n"] >= 398
    assert again["timings"]["recalls_n"] == 0


def test_a_saved_slot_has_its_archive(start_server, tiny_llama, tmp_path):
    server = start_server(tiny_llama(), *RECALLING, "--slot-save-path", tmp_path)
    text = tokens(500)
    text += server.complete(text, 4, id_slot=0)["tokens"]
    n_archived = server.slot()["morphkv"]["n_archived"]
    server.http.post("/slots/0?action=save", json={"filename": "chat"}).raise_for_status()
    server.http.post("/slots/1?action=restore", json={"filename": "chat"}).raise_for_status()
    assert server.slot(1)["morphkv"]["n_archived"] == n_archived > 0
    question = [*text, *tokens(30, seed=3)[1:]]
    mine, other = (server.complete(question, 20, id_slot=i)["tokens"] for i in range(2))
    assert mine == other


def test_an_archive_in_a_file(start_server, tiny_llama, tmp_path):
    flags = [*TIGHT, "-np", 2, "--morphkv-archive", tmp_path / "chats"]
    server = start_server(tiny_llama(), *flags)
    for i in range(2):
        assert server.complete(tokens(400), 4, id_slot=i)["timings"]["recalled_n"] > 0
    assert (tmp_path / "chats").stat().st_size > 10_000
    assert (tmp_path / "chats.1").stat().st_size > 10_000
    server.stop()
    (tmp_path / "chats").write_text("other things " * 1000)
    with pytest.raises(RuntimeError, match="is no archive and is left as it is"):
        start_server(tiny_llama(), *flags)


def test_an_archive_is_bounded_over_all_slots(start_server, tiny_llama):
    by_default = start_server(tiny_llama(), *RECALLING)
    props = by_default.get("/props")["morphkv"]
    assert (props["archive"], props["archive_max_mib"]) == ("ram", 2048)

    # 512 bytes a token and its part of the index: 2 slots of 2,000 tokens do not fit
    small = start_server(tiny_llama(), *RECALLING, "--morphkv-archive-max", 1)
    assert small.get("/props")["morphkv"]["archive_max_mib"] == 1
    for i in range(2):
        small.complete(tokens(2000, seed=i), 4, id_slot=i)
        assert small.slot(i)["morphkv"]["n_archive_lost"] > 0
    assert 2**19 < metric(small, "archive_bytes") <= 2**20


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--morphkv-archive-type", "q8_0"], "--morphkv-archive-type needs --morphkv-archive {auto,ram,PATH}"),
        (["--morphkv-archive-max", "0"], "--morphkv-archive-max needs --morphkv-archive {auto,ram,PATH}"),
        (["--morphkv-recall", "off"], "--morphkv-recall needs --morphkv-archive {auto,ram,PATH}"),
        (["--morphkv-recall-share", "0.2"], "--morphkv-recall-share needs --morphkv-archive {auto,ram,PATH}"),
        (["--morphkv-archive", "ram", "--morphkv-archive-type", "q3"], "must be one of f32, f16, bf16, .* got q3"),
        (["--morphkv-archive", "ram", "--morphkv-archive-max", "-1"], "must not be negative, got -1"),
        (
            ["--morphkv-archive", "ram", "--morphkv-recall", "maybe"],
            "recall must be auto, prompt, off or a number above 0",
        ),
        (["--morphkv-archive", "ram", "--morphkv-recall-share", "2"], r"must be in \(0, 1\], got 2"),
    ],
)
def test_flags_that_are_refused(tiny_llama, flags, sentence):
    done = run_program("llama-server", "--model", tiny_llama(), *TIGHT, *flags)
    assert done.returncode == 1
    assert re.search(sentence, done.stdout)


def test_a_fact_of_long_ago(start_server, demo_model):
    """Stated among the first 512 of 2,560 tokens, and asked for at a capacity of 512."""
    with closing(Llama(demo_model, morphkv=MorphKV(), n_threads=1, verbose=False)) as llm:
        document = build_document(llm, 0, 2560)
        questions = [
            llm.tokenize(QUESTION.format(subject=fact.subject).encode(), add_bos=False) for fact in document.facts
        ]
    right = {}
    for recall in ("prompt", "off"):
        server = start_server(
            demo_model, "--morphkv", "--morphkv-capacity", 512, "--morphkv-prompt-room", 0, "-np", 1,
            "--morphkv-archive", "ram", "--morphkv-recall", recall,
        )  # fmt: skip
        answers = [server.complete([*document.tokens, *question], 4)["content"] for question in questions]
        right[recall] = sum(first_word(a) == f.answer.casefold() for a, f in zip(answers, document.facts))
    assert right["prompt"] >= 7
    assert right["off"] <= 2
