"""The page without llama-server: a small HTTP server that answers /morphkv/retained with what a test says."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PAGE = Path(__file__).resolve().parents[2] / "native" / "server" / "page" / "page.html"
N_LAYERS, N_HEADS, N_DISTANT, N_RECENT = 30, 3, 480, 500

Query = dict[str, str]


def steps(ascending: list[int]) -> list[int]:
    return [b - a for a, b in zip([0, *ascending], ascending)]


def long_text(n_tokens: int, seed: int = 0) -> Callable[[Query], dict[str, Any]]:
    """Answers of a server whose slot holds so many tokens; each has another few of them in each head."""
    random_ = random.Random(seed)
    words = ["the ", "sea ", "is ", "wide", ", ", "and ", "ships ", "go ", "far", ".\n", "lamp", "light ", "burns "]
    pieces = [random_.choice(words) for _ in range(n_tokens)]
    first_recent = n_tokens - N_RECENT
    moments = []
    for _ in range(3):
        layers = [
            [sorted(random_.sample(range(first_recent), N_DISTANT)) for _ in range(N_HEADS)] for _ in range(N_LAYERS)
        ]
        counts = collections.Counter(token for heads in layers for head in heads for token in head)
        moments.append((layers, counts))
    asked = itertools.count(1)

    def answer(query: Query) -> dict[str, Any]:
        n_asked = next(asked)
        layers, counts = moments[n_asked % len(moments)]
        kept = sorted(counts)
        first, n = int(query.get("from", 0)), int(query.get("n", n_tokens))
        cache = {"capacity": 512, "keep": 4, "n_cells": 1024, "n_used": 980, "n_evictions": n_asked, "n_evicted": 1}
        cache |= {"n_recalls": 2, "n_recalled": 9, "n_archived": n_tokens, "archive_bytes": 1 << 22, "kv_bytes": 1}
        res = {
            "id_slot": 0,
            "is_processing": True,
            "age_ms": 0,
            "n_tokens": n_tokens,
            "n_kept": len(kept) + N_RECENT,
            "n_heads": N_LAYERS * N_HEADS,
            "n_heads_with_all": 0,
            "first_recent": first_recent,
            "kept": {"tokens": steps(kept), "heads": [counts[token] for token in kept]},
            "recalled": [[kept[i] // 16 * 16, 1] for i in range(0, len(kept), 500)],
            "media": [],
            "text": f"{min(first + n, n_tokens):x}",
            "from": first,
            "pieces": pieces[first : first + n],
            "cache": cache,
        }
        if query.get("layers") == "1":
            res["layers"] = [
                {"layer": i, "n_heads": N_HEADS, "has_all": False, "heads": [steps(head) for head in heads]}
                for i, heads in enumerate(layers)
            ]
        return res

    return answer


@contextlib.contextmanager
def page_server(retained: Callable[[Query], dict[str, Any]]) -> Iterator[str]:
    """URL of the page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            kind = "application/json"
            if url.path == "/morphkv":
                body, kind = PAGE.read_bytes(), "text/html; charset=utf-8"
            elif url.path == "/morphkv/retained":
                body = json.dumps(retained(dict(parse_qsl(url.query)))).encode()
            elif url.path == "/props":
                body = json.dumps({"model_alias": "a model", "total_slots": 1}).encode()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/morphkv"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
