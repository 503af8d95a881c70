"""A model hub on the loopback interface: what llama-server and huggingface_hub ask, answered from a folder."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

REVISION = "1" * 40
REQUESTS = {
    "refs": re.compile(r"/api/models/([^/]+/[^/]+)/refs$"),
    "tree": re.compile(r"/api/models/([^/]+/[^/]+)/tree/[^/?]+(?:\?.*)?$"),
    "file": re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)(?:\?.*)?$"),
}


class Hub:
    """Serves folder/<owner>/<name>/<file> until it is closed; url ends with a slash."""

    def __init__(self, folder: Path):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(folder))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler_of(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            for kind, pattern in REQUESTS.items():
                if (found := pattern.match(self.path)) and (folder / found[1]).is_dir():
                    return getattr(self, f"send_{kind}")(folder / found[1], *found.groups()[1:])
            return self.send_missing("RepoNotFound")

        do_HEAD = do_GET

        def send_refs(self, repository: Path) -> None:
            self.send_json({"branches": [{"name": "main", "targetCommit": REVISION}]})

        def send_tree(self, repository: Path) -> None:
            paths = sorted(path for path in repository.rglob("*") if path.is_file())
            self.send_json(
                [
                    {
                        "type": "file",
                        "path": path.relative_to(repository).as_posix(),
                        "size": path.stat().st_size,
                        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                    }
                    for path in paths
                ]
            )

        def send_file(self, repository: Path, name: str) -> None:
            path = repository / unquote(name)
            if not path.is_file():
                return self.send_missing("EntryNotFound")
            return self.send(200, path.read_bytes(), "application/octet-stream")

        def send_json(self, value) -> None:
            self.send(200, json.dumps(value).encode(), "application/json")

        def send_missing(self, code: str) -> None:
            self.send(404, b'{"error": "not found"}', "application/json", {"X-Error-Code": code})

        def send(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", REVISION)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler
