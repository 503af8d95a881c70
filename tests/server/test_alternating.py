"""Many chats that take turns on few slots, in a server that is killed again and again: none learns of another."""

from __future__ import annotations

import contextlib
import time

import httpx
import pytest

from support.server_process import TIGHT, ServerProcess
from support.server_process import some_tokens as tokens

pytestmark = pytest.mark.slow

N_TURNS = 60
N_LIVES = 11  # it is killed ten times
N_ANSWER = 20
N_BESIDE = 64  # tokens beside the new ones


def written(server: ServerProcess) -> int:
    return int(server.metrics()["llamacpp:morphkv_chats_written_total"])


def go_on(server: ServerProcess, question: list[int]) -> tuple[list[int], dict]:
    """The text with its answer, once it is on disk, and the answer's timings."""
    before, end = written(server), time.monotonic() + 60
    done = server.complete(question, N_ANSWER)
    while written(server) <= before:
        assert time.monotonic() < end
        time.sleep(0.02)
    return question + done["tokens"], done["timings"]


def kill_while_it_answers(server: ServerProcess, question: list[int]) -> None:
    body = {"prompt": question, "n_predict": 10_000, "ignore_eos": True, "temperature": 0}
    with contextlib.suppress(httpx.TransportError):
        for i, _ in enumerate(server.stream("/completion", body)):
            if i == 5:
                server.process.kill()
    server.process.wait()


@pytest.mark.parametrize(("n_chats", "n_slots"), [(2, 1), (10, 4)])
def test_chats_take_turns(start_server, tiny_llama, tmp_path, n_chats, n_slots):
    """Each has a slot of its own in a server that is never killed: the same answers, bit by bit."""
    flags = [*TIGHT, "--slots", "--metrics", "--morphkv-state-dir", tmp_path / "chats", "-np", n_slots]
    server = start_server(tiny_llama(), *flags)
    quiet = start_server(tiny_llama(), *TIGHT, "-np", n_chats)
    texts = [tokens(100 + 30 * i, seed=i) for i in range(n_chats)]
    rss, n_evaluated, n_new = [], 0, 0
    for turn in range(N_TURNS):
        for i, text in enumerate(texts):
            question = [*text, *tokens(13, seed=turn)[1:]]
            if i == turn % n_chats and turn > 0 and turn * N_LIVES // N_TURNS > (turn - 1) * N_LIVES // N_TURNS:
                rss.append(server.rss_bytes())
                if len(rss) % 2:
                    kill_while_it_answers(server, question)
                else:
                    server.kill()
                server.start()
            mine, timings = go_on(server, question)
            assert mine == question + quiet.complete(question, N_ANSWER, id_slot=i)["tokens"], (turn, i)
            if turn > 0:
                assert timings["prompt_n"] <= 12 + N_BESIDE, (turn, i)
                n_evaluated, n_new = n_evaluated + timings["prompt_n"], n_new + 12
            texts[i] = mine
    rss.append(server.rss_bytes())
    counts = server.metrics()
    print(
        f"\n{n_chats} chats of {len(texts[0])} to {len(texts[-1])} tokens on {n_slots} slots, killed "
        f"{len(rss) - 1} times: {n_evaluated} tokens evaluated for {n_new} new, "
        f"RSS {[round(r / 2**20, 1) for r in rss]} MiB"
    )
    assert len(rss) == N_LIVES
    assert counts["llamacpp:morphkv_chats"] == n_chats
    assert counts["llamacpp:morphkv_chats_failed_total"] == 0
    assert max(rss[1:]) - rss[0] < 16 * 2**20
