"""A bar while a model is loaded: on a terminal, once it takes a while, and nothing is left of it."""

import io
import os
import sys

import pytest

from morphkv_cpp import Llama
from morphkv_cpp.cli import loading
from morphkv_cpp.cli.loading import LoadBar, shown_loads
from morphkv_cpp.cli.show import progress_bar
from support.tiny import QUIET

pty = pytest.importorskip("pty", reason="a terminal of POSIX")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(loading.time, "monotonic", lambda: now[0])
    return now


def test_it_says_how_much_and_goes_away(clock):
    screen = io.StringIO()
    bar = LoadBar(screen)
    for share in (0.0, 0.5, 0.75, 1.0):
        bar(share)
        clock[0] += 1.0
    half = "#" * 15 + "-" * 15
    assert screen.getvalue().startswith(f"\rloading the model [{half}] 50%\x1b[K")
    assert "75%" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_a_model_that_is_loaded_at_once_shows_nothing(clock):
    screen = io.StringIO()
    bar = LoadBar(screen)
    for _ in range(2):
        for share in (0.0, 0.5, 1.0):
            bar(share)
            clock[0] += 0.1
    assert screen.getvalue() == ""


def test_a_terminal_sees_it_though_llama_cpp_is_silent(monkeypatch, tiny_llama):
    monkeypatch.setattr(loading, "AFTER_S", -1.0)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb") as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        with shown_loads():
            Llama(tiny_llama(), **QUIET).close()
            shown = os.read(screen.fileno(), 4096)
            with progress_bar(1, "something else"):
                assert Llama.load_progress_of_all is None
            assert isinstance(Llama.load_progress_of_all, LoadBar)
        monkeypatch.undo()
    assert Llama.load_progress_of_all is None
    assert shown.startswith(b"\rloading the model [")


def test_without_a_terminal_nobody_is_told():
    with shown_loads():
        assert Llama.load_progress_of_all is None
