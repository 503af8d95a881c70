"""`morphkv generate`, and chat: where the layers are is said in one line."""

import io
import sys

import pytest

from morphkv_cpp import bridge
from morphkv_cpp.cache import context
from support.command import run

LINE = "GPU layers: 1 of 3 on CUDA0 (some card), 1.0 of 3.0 GiB free memory used"
TIGHT = ["--capacity", "128", "--window", "16", "--interval", "16", "--prompt-room", "32", "-t", "1", "-n", "2"]


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU that has room for one layer."""
    device = {"name": "CUDA0", "description": "some card", "used_bytes": 1 << 30, "free_bytes": 3 << 30}
    fit = {"n_gpu_layers": 1, "n_layers": 3, "n_devices": 1, "n_probes": 2}
    monkeypatch.setattr(context, "has_gpu", lambda: True)
    monkeypatch.setattr(bridge, "fit_gpu_layers", lambda *_: (fit, [device]))


@pytest.fixture(params=["generate", "generate --stock", "chat"])
def command(request, monkeypatch, capsys, tiny_llama):
    """Runs it with more options: what it writes to standard error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n"))
    name, *stock = request.param.split()
    prompt = ["abc"] if name == "generate" else []
    settings = TIGHT[-4:] if stock else TIGHT

    def run_it(*options: str) -> str:
        assert run(name, str(tiny_llama()), *prompt, *stock, *settings, *options) == 0
        return capsys.readouterr().err

    return run_it


def test_as_many_as_fit_and_one_line(gpu, command):
    assert command().count(LINE) == 1


def test_auto_can_be_asked_for(gpu, command):
    assert command("-ngl", "auto").count(LINE) == 1


@pytest.mark.parametrize("n", ["0", "all", "1"])
def test_no_line_where_it_is_said_how_many(gpu, command, n):
    assert "GPU layers" not in command("-ngl", n)


def test_no_line_without_a_gpu(command):
    assert "GPU layers" not in command()


def test_another_word_is_refused(capsys, tiny_llama):
    assert run("generate", str(tiny_llama()), "abc", "-ngl", "most") == 1
    assert "--gpu-layers must be a number, 'auto' or 'all', got 'most'" in capsys.readouterr().err
