"""llama-server under load: busy slots against stock's, a watched slot, and the first token of a late turn."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from morphkv_cpp import MorphKV
from morphkv_cpp.eval import prose_sections
from morphkv_cpp.extras import needs_extra
from morphkv_cpp.programs import server_command

from .decode import Ratio, ratio, run_in_turns

if TYPE_CHECKING:
    import httpx

# rows of the result, which requirements may name
SLOTS, FIRST_TOKEN, WATCHED = "slots", "first-token", "watched"
SERVER_ROWS = (SLOTS, FIRST_TOKEN, WATCHED)
N_SLOTS = 4
N_TURNS, N_EARLY_TURN = 60, 5
N_AROUND = 2  # turns before and behind a turn that count with it
START_SECONDS = 120
# as the page asks while an answer is written
LOOK_SECONDS, N_PIECES = 0.4, 4096
SYSTEM = "You are a guide to the city of Lisbon. You answer in one short sentence and never repeat yourself. " * 45
TOPICS = ("food", "trams", "tiles", "music", "rivers", "churches", "hills", "coffee", "markets", "beaches")


class Server:
    """A llama-server on a loopback port; a context manager."""

    def __init__(self, model: Path, *flags: object):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        own = ["--host", "127.0.0.1", "--port", self.port, "--no-ui", "--slots"]
        self._command = server_command(model, [str(flag) for flag in (*own, *flags)])
        self._log = tempfile.TemporaryFile()

    def __enter__(self) -> Server:
        with needs_extra("bench"):
            import httpx

        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)
        # a connection a request: the server closes those that rest, at times just when the next request comes
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=600, limits=limits)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.ask("GET", "/health")
                return self
            except (httpx.TransportError, RuntimeError):
                time.sleep(0.05)
        raise RuntimeError(f"llama-server did not start: {self._stop()}")

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _stop(self) -> str:
        """The end of what it has logged."""
        self._http.close()
        self._process.terminate()
        self._process.wait()
        with self._log:
            self._log.seek(0)
            return self._log.read().decode(errors="replace")[-1000:]

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer's JSON. Raises RuntimeError for another status than 200."""
        with self._request(method, path, body) as response:
            return json.loads(response.read())

    def first_token(self, path: str, body: dict[str, Any]) -> tuple[float, str]:
        """Seconds until a streamed chat answer's first piece, and the whole answer."""
        start, first, text = time.perf_counter(), None, ""
        with self._request("POST", path, {**body, "stream": True}) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    text += choice["delta"].get("content") or ""
                if text and first is None:
                    first = time.perf_counter() - start
        return (time.perf_counter() - start if first is None else first), text

    @contextmanager
    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[httpx.Response]:
        with self._http.stream(method, path, json=body) as response:
            if response.status_code != 200:
                text = response.read().decode(errors="replace")[:300]
                raise RuntimeError(f"llama-server answers {path} with {response.status_code}: {text}")
            yield response


class Watcher:
    """Asks which tokens slot 0 keeps, as the page does: for new ones, and for all layers after an eviction."""

    def __init__(self, server: Server):
        self.n_looks = 0
        self._server = server
        self._known = "&layers=1"  # the text so far, and whether layers are to be told
        self._version: list[int] = []  # of the layers that are known

    def look(self) -> None:
        path = f"/morphkv/retained?id_slot=0&n={N_PIECES}{self._known}"
        seen = self._server.ask("GET", path)
        version = [seen["cache"]["n_evictions"], seen["cache"]["n_recalls"]]
        self._known = f"&from={seen['from'] + len(seen['pieces'])}&text={seen['text']}"
        if "layers" in seen:
            self._version = version
        elif version != self._version:
            self._known += "&layers=1"
        self.n_looks += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(LOOK_SECONDS):
                self.look()

        with ThreadPoolExecutor(1) as pool:
            watches = pool.submit(watch)
            try:
                yield
            finally:
                is_over.set()
            watches.result()


@dataclass
class SlotsLane:
    """Texts that go on at the same time, one a slot, so many tokens a lap."""

    name: str
    server: Server
    prompts: list[list[int]]  # (n_slots,)
    n_lap: int
    n_laps: int
    goes_on: bool  # else each lap begins behind the prompt again
    rates: list[float] = field(default_factory=list)  # (n_rounds,) tok/s of all slots together
    watcher: Watcher | None = None

    def turn(self) -> None:
        with self.watcher.watching() if self.watcher else nullcontext():
            self.rates.append(median(self._lap() for _ in range(self.n_laps)))

    def _lap(self) -> float:
        with ThreadPoolExecutor(len(self.prompts)) as pool:
            answers = list(pool.map(self._decode, range(len(self.prompts))))
        return float(sum(answer["timings"]["predicted_per_second"] for answer in answers))

    def _decode(self, i: int) -> dict[str, Any]:
        body: dict[str, Any] = {"prompt": self.prompts[i], "n_predict": self.n_lap, "id_slot": i, "ignore_eos": True}
        body |= {"return_tokens": True, "temperature": 0}
        answer: dict[str, Any] = self.server.ask("POST", "/completion", body)
        if self.goes_on:
            self.prompts[i] += answer["tokens"]
        return answer


def morphkv_flags(morphkv: MorphKV) -> list[object]:
    names = (
        "capacity",
        "window",
        "votes",
        "prompt_room",
        "interval",
        "fusion",
        "policy",
        "protect",
        "decay",
        "rope_limit",
    )
    flags = [(f"--morphkv-{name.replace('_', '-')}", getattr(morphkv, name)) for name in names]
    return [part for flag in flags for part in flag] + ["--keep", morphkv.keep]


def run_slots(
    model: Path,
    morphkv: MorphKV,
    n_rounds: int,
    on_turn: Callable[[str], None],
    flags: list[object],
    n_slots: int = N_SLOTS,
) -> tuple[Ratio, list[SlotsLane]]:
    """MorphKV's rate over stock's, both with capacity to capacity + interval used cells in each of the slots."""
    small = replace(morphkv, prompt_room=0)
    n_full = small.capacity + small.interval
    common = ["-np", n_slots, "--flash-attn", "on", *flags]
    with ExitStack() as stack:
        own = stack.enter_context(Server(model, *common, *morphkv_flags(small)))
        stock = stack.enter_context(
            Server(model, *common, "--no-morphkv", "--no-kv-unified", "-c", n_slots * (n_full + 256))
        )
        tokens = _prose_tokens(own)
        prompts = [list(islice(tokens, small.capacity)) for _ in range(n_slots)]
        lanes = [
            SlotsLane("MorphKV", own, [list(prompt) for prompt in prompts], small.interval, 2, goes_on=True),
            SlotsLane("stock, as many cells", stock, prompts, small.interval, 2, goes_on=False),
        ]
        run_in_turns(lanes, n_rounds, on_turn)
    return ratio(*lanes), lanes


def run_watched(
    model: Path, morphkv: MorphKV, n_rounds: int, on_turn: Callable[[str], None], flags: list[object]
) -> tuple[Ratio, list[SlotsLane]]:
    """The rate of a text that somebody watches over that of the same text, a little later, unwatched."""
    with Server(model, "-np", 1, "--flash-attn", "on", *flags, *morphkv_flags(morphkv)) as server:
        prompts = [list(islice(_prose_tokens(server), morphkv.capacity))]
        n_turn, watcher = 2 * morphkv.interval, Watcher(server)
        lanes = [
            SlotsLane("watched", server, prompts, n_turn, 1, goes_on=True, watcher=watcher),
            SlotsLane("unwatched", server, prompts, n_turn, 1, goes_on=True),
        ]
        run_in_turns(lanes, n_rounds, on_turn)
    return ratio(*lanes), lanes


def _prose_tokens(server: Server) -> Iterator[int]:
    tokens = server.ask("POST", "/tokenize", {"content": "\n\n".join(prose_sections())})["tokens"]
    while True:
        yield from tokens


def run_chat(
    model: Path, morphkv: MorphKV, on_turn: Callable[[int], None], flags: list[object]
) -> tuple[float, list[float]]:
    """Time to the first token of the last turns over that of the early ones; and of each turn, in seconds."""
    messages = [{"role": "system", "content": SYSTEM}]
    seconds = []
    with Server(model, "-np", 1, *flags, *morphkv_flags(morphkv)) as server:
        for turn in range(1, N_TURNS + N_AROUND + 1):
            question = f"Question {turn}: what should I know about {TOPICS[turn % len(TOPICS)]} there?"
            messages.append({"role": "user", "content": question})
            body = {"messages": messages, "max_tokens": 24, "temperature": 0}
            took, text = server.first_token("/v1/chat/completions", body)
            seconds.append(took)
            messages.append({"role": "assistant", "content": text})
            on_turn(turn)
    return around(seconds, N_TURNS) / around(seconds, N_EARLY_TURN), seconds


def around(seconds: list[float], turn: int) -> float:
    """Median of a turn, counted from 1, and its neighbours."""
    return median(seconds[max(0, turn - 1 - N_AROUND) : turn + N_AROUND])
