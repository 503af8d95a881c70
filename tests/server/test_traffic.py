"""More clients than slots: whatever else is going on, nearly every prompt has the answer that it has alone.

How many tokens are multiplied at once decides in which order llama.cpp adds floats, and a near tie among tokens to be
written, or to be evicted, then falls another way. test_load.py compares how often with stock llama.cpp.
"""

from __future__ import annotations

import collections
import os
import random
import threading
import time
import traceback

import pytest

from support.server_process import TIGHT
from support.server_process import some_tokens as tokens

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("MORPHKV_TRAFFIC_S", "60"))
N_ANSWER = 48
# short ones; such that fill the cells; such that are cut again and again, up to fifty times the capacity
PROMPTS = [tokens(n, seed) for seed, n in enumerate([5, 20, 60, 120, 170, 190, 230, 300, 500, 800, 1300, 3000, 6400])]
SLACK_BYTES = 4 * 2**20

NONSENSE = [
    ("/completion", {}),
    ("/completion", {"prompt": [10**6]}),
    ("/completion", {"prompt": "x", "grammar": "root ::= ("}),
    ("/completion", {"prompt": "x", "n_keep": 10**6}),
    ("/v1/chat/completions", {"messages": "hello"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 99}),
    ("/slots/0?action=restore", {"filename": "missing.bin"}),
    ("/slots/0?action=save", {"filename": "../x.bin"}),
    ("/slots/0?action=dance", {}),
]


def alone(prompt: list[int], seed: int) -> dict:
    """A request whose answer depends on nothing but itself."""
    return {
        "prompt": prompt,
        "n_predict": N_ANSWER,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "cache_prompt": False,
        "seed": seed,
    }


class Traffic:
    def __init__(self, server, n_slots: int, expected: list[list[int]]):
        self.server = server
        self.n_slots = n_slots
        self.expected = expected
        self.end = time.monotonic() + SECONDS
        self.done: collections.Counter = collections.Counter()
        self.wrong: list[str] = []
        self.n_other = 0  # answers that differ from the quiet server's
        self.n_asked = 0

    def client(self, kind: str, seed: int) -> threading.Thread:
        rng = random.Random(seed)
        work = getattr(self, kind)

        def run() -> None:
            state: dict = {}
            while time.monotonic() < self.end and len(self.wrong) < 10:
                try:
                    work(rng, state)
                    self.done[kind] += 1
                except Exception:
                    self.wrong.append(f"{kind}: {traceback.format_exc(limit=2)}")

        return threading.Thread(target=run, name=kind)

    def compare(self, got: list[int], i: int) -> None:
        self.n_asked += 1
        if got != self.expected[i]:
            self.n_other += 1
            print(f"prompt of {len(PROMPTS[i])} tokens: {got} instead of {self.expected[i]}")

    def answer(self, rng, state) -> None:
        i = rng.choices(range(len(PROMPTS)), weights=[4] * (len(PROMPTS) - 2) + [2, 1])[0]
        answer = self.server.post("/completion", alone(PROMPTS[i], 0))
        assert answer.status_code == 200, answer.text
        self.compare(answer.json()["tokens"], i)

    def chat(self, rng, state) -> None:
        text = state.setdefault("text", tokens(rng.randrange(20, 200), rng.randrange(99)))
        text += [260 + rng.randrange(50) for _ in range(rng.randrange(1, 30))]
        done = self.server.complete(text, rng.randrange(1, 60))
        text += done["tokens"]
        assert done["timings"]["cache_n"] + done["timings"]["prompt_n"] == done["tokens_evaluated"]
        if len(text) > 4000:
            state.clear()

    def cancel(self, rng, state) -> None:
        prompt = rng.choice(PROMPTS)
        events = self.server.stream("/completion", {"prompt": prompt, "n_predict": -1, "ignore_eos": True})
        for _ in range(rng.randrange(1, 60)):
            next(events)
        events.close()

    def nonsense(self, rng, state) -> None:
        path, body = rng.choice(NONSENSE)
        answer = self.server.post(path, body)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]

    def save(self, rng, state) -> None:
        i, name = rng.randrange(self.n_slots), f"{rng.randrange(3)}.bin"
        action = rng.choice(["save", "restore", "restore", "erase"])
        answer = self.server.slot_action(i, action, filename=name)
        # a file may not be there yet, or be just written
        assert answer.status_code in ((200, 400) if action == "restore" else (200,)), answer.text
        time.sleep(0.02)

    def several(self, rng, state) -> None:
        body = {"prompt": PROMPTS[rng.randrange(10)], "n": 2, "max_tokens": 30, "temperature": 0}
        answer = self.server.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        assert len({choice["text"] for choice in answer.json()["choices"]}) == 1

    def look(self, rng, state) -> None:
        for slot in self.server.get("/slots"):
            cache = slot["morphkv"]
            assert -1 <= cache["complete_pos"] <= cache["logical_pos"]
            assert cache["n_used"] <= 192
        assert self.server.metrics()["llamacpp:morphkv_cells"] == self.n_slots * 256
        time.sleep(0.05)

    def busy(self, rng, state) -> None:
        """Tasks that name a slot, which may be busy."""
        i = rng.randrange(6)
        answer = self.server.post("/completion", {**alone(PROMPTS[i], 0), "id_slot": rng.randrange(self.n_slots)})
        self.compare(answer.json()["tokens"], i)


KINDS = ["answer"] * 6 + ["chat"] * 2 + ["cancel"] * 2 + ["nonsense", "save", "save", "several", "look", "busy"]


RECALLING = ["-ub", 1, "--morphkv-archive", "ram"]


@pytest.mark.parametrize(
    "n_slots, n_clients, own, share",
    [(4, 16, ["-ub", 1], 0.99), (4, 16, ["-ub", 512], 0.98), (32, 48, RECALLING, 0.99)],
    ids=["token by token", "in batches", "32 slots that recall"],
)
def test_more_clients_than_slots(start_server, tiny_llama, tmp_path, n_slots, n_clients, own, share):
    flags = [*TIGHT, "-np", n_slots, "--slots", "--metrics", "--cache-ram", 16, "--slot-save-path", tmp_path, *own]
    quiet = start_server(tiny_llama(), *flags)
    expected = [quiet.post("/completion", alone(prompt, 0)).json()["tokens"] for prompt in PROMPTS]
    quiet.stop()

    # memory that glibc's other arenas hold is stock's to explain (test_load.py)
    server = start_server(tiny_llama(), *flags, env={"MALLOC_ARENA_MAX": "1"})
    server.http.timeout = 600  # what names a slot waits until that is free
    traffic = Traffic(server, n_slots, expected)
    kinds = KINDS * (n_clients // len(KINDS))
    clients = [traffic.client(kind, seed) for seed, kind in enumerate(kinds)]
    for client in clients:
        client.start()
    rss = []
    while any(client.is_alive() for client in clients):
        time.sleep(min(1.0, SECONDS / 20))
        if server.is_alive():
            rss.append(server.rss_bytes())
    for client in clients:
        client.join()

    print(
        f"\n{SECONDS:.0f} s: {dict(traffic.done)}; {traffic.n_other} of {traffic.n_asked} answers differ; "
        f"RSS {[round(r / 2**20, 1) for r in rss[:: max(1, len(rss) // 12)]]} MiB"
    )
    assert not traffic.wrong, "\n".join(traffic.wrong)
    assert server.is_alive(), server.tail()
    assert all(traffic.done[kind] > 0 for kind in set(KINDS)), traffic.done
    # warm after a third: most buffers have been used, and the host's prompt cache is full
    n_third = len(rss) // 3
    assert max(rss[-n_third:]) <= max(rss[n_third:-n_third]) + SLACK_BYTES
    assert traffic.n_other <= (1 - share) * traffic.n_asked
    again = [server.post("/completion", alone(prompt, 0)).json()["tokens"] for prompt in PROMPTS]
    assert again == expected
