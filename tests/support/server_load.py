"""Many clients at once: how many of their answers differ from a quiet server's, and what the server's memory does.

In a batch the order of sums depends on what else is in it, so a near tie between two tokens turns now and then, in
stock llama.cpp as well. What counts is how often, under the same load.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from support.server_process import ServerProcess

N_CANCEL = 10  # every tenth request of a client is a stream that it leaves
N_CHAT = 4  # every fourth client has a chat that grows
WAIT_SECONDS = 900  # for an answer, behind those of all others, on a busy machine


class Work(NamedTuple):
    prompts: Sequence[list[int]]
    n_written: int  # tokens of an answer
    n_answers: int
    n_clients: int
    n_chat: int  # tokens of a chat, then it begins another


@dataclass
class Measured:
    n_answers: int = 0
    n_different: int = 0
    failures: list[str] = field(default_factory=list)
    rss_bytes: list[tuple[int, int]] = field(default_factory=list)  # (answers so far, bytes)

    @property
    def share(self) -> float:
        return self.n_different / self.n_answers

    def rss_mib_at(self, part: float) -> float:
        """Once so much of all answers was there."""
        after = [rss for n, rss in self.rss_bytes if n >= part * self.n_answers]
        return (after or [self.rss_bytes[-1][1]])[0] / 2**20


def request(prompt: list[int], n_written: int) -> dict:
    """An answer that depends on nothing but its prompt."""
    return {
        "prompt": prompt,
        "n_predict": n_written,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "cache_prompt": False,
    }


def quiet_answers(server: ServerProcess, work: Work) -> list[list[int]]:
    return [server.complete(prompt, work.n_written, cache_prompt=False)["tokens"] for prompt in work.prompts]


class _Clients:
    def __init__(self, server: ServerProcess, work: Work, expected: list[list[int]]):
        self.server, self.work, self.expected = server, work, expected
        self.result = Measured()
        self.lock = threading.Lock()

    def is_done(self) -> bool:
        return self.result.n_answers >= self.work.n_answers or bool(self.result.failures)

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        text: list[int] = []
        try:
            while not self.is_done():
                if seed % N_CHAT == 0:
                    text = self.chat(rng, text)
                    continue
                i = rng.randrange(len(self.work.prompts))
                body = request(self.work.prompts[i], self.work.n_written)
                if rng.randrange(N_CANCEL) == 0:
                    self.cancel(body, rng.randrange(1, self.work.n_written))
                else:
                    self.ask(body, self.expected[i])
        except Exception as error:
            self.result.failures.append(repr(error))

    def ask(self, body: dict, expected: list[int]) -> None:
        answer = self.server.post("/completion", body)
        assert answer.status_code == 200, answer.text
        with self.lock:
            self.result.n_answers += 1
            self.result.n_different += answer.json()["tokens"] != expected

    def chat(self, rng: random.Random, text: list[int]) -> list[int]:
        """The text with another turn."""
        prompt = rng.choice(self.work.prompts)
        text = [*text, *prompt[1 : 1 + rng.randrange(10, 80)]] if text else prompt
        text = text + self.server.complete(text, rng.randrange(1, self.work.n_written))["tokens"]
        return text if len(text) < self.work.n_chat else []

    def cancel(self, body: dict, n_read: int) -> None:
        events = self.server.stream("/completion", body)
        for _ in range(n_read):
            next(events, None)  # several tokens may be one character
        events.close()


def measure(server: ServerProcess, work: Work, expected: list[list[int]]) -> Measured:
    """Of a server that has just been started."""
    server.http.timeout = WAIT_SECONDS
    clients = _Clients(server, work, expected)
    threads = [threading.Thread(target=clients.run, args=(seed,)) for seed in range(work.n_clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        if server.is_alive():
            clients.result.rss_bytes.append((clients.result.n_answers, server.rss_bytes()))
    return clients.result


def noise(one: Measured, other: Measured) -> float:
    """Three standard errors of the difference of two shares, both from the same kind of coin."""
    n_all = one.n_answers + other.n_answers
    # never 0: one answer that differs among all is what chance may do
    share = max(one.n_different + other.n_different, 1) / n_all
    return 3 * math.sqrt(share * (1 - share) * (1 / one.n_answers + 1 / other.n_answers))
