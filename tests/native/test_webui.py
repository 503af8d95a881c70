"""What llama-server shows at /: llama.cpp's page where it was built in (MORPHKV_WEBUI=ON), else a message."""

import gzip
import importlib.util
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

N_SECONDS = 60


@pytest.fixture(scope="module")
def address(tiny_llama):
    """Where a llama-server with a tiny model answers."""
    spec = importlib.util.find_spec("morphkv_cpp")
    program = Path(spec.origin).parent / "bin" / "llama-server" if spec and spec.origin else None
    if program is None or not program.is_file():
        pytest.skip("morphkv_cpp is not installed with its programs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [program, "--model", tiny_llama(), "--host", "127.0.0.1", "--port", str(port), "--ctx-size", "256"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(server, address)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=N_SECONDS)


def wait_until_ready(server, address):
    end = time.monotonic() + N_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"llama-server was not ready in {N_SECONDS} s, or ended: {server.poll()}")


def test_root_shows_the_page_or_says_that_none_was_built(address):
    request = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        kind, text = answer.headers["Content-Type"], answer.read()
        if answer.headers["Content-Encoding"] == "gzip":
            text = gzip.decompress(text)
    if kind.startswith("text/html"):
        assert b"<!doctype html>" in text
    else:
        assert kind == "text/plain; charset=utf-8"
        assert b"built without a web page" in text
        assert b"MORPHKV_WEBUI=ON" in text


def test_other_paths_are_not_found(address):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}no-such-page", timeout=10)
