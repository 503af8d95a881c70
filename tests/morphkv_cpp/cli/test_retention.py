"""`morphkv show`: reads a text, tells what is kept, writes the page and the plot."""

import json
import re

import pytest

from support.command import run
from support.page_stub import PAGE

TIGHT = ["--capacity", "96", "--window", "16", "--interval", "8", "--prompt-room", "0", "-t", "1"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The sea is wide, and the ships go far. " * 20, encoding="utf-8")
    return path


def test_it_tells_what_is_kept(tiny_llama, text, capsys):
    assert run("show", str(tiny_llama()), str(text), *TIGHT) == 0
    out = capsys.readouterr().out
    n_tokens = int(re.match(r"(\d+) tokens read, \d+ of them kept by at least one of 4 heads, ", out)[1])
    assert 96 < n_tokens <= len(text.read_text()) + 1
    assert "evictions, 0 recalls" in out
    assert "layer 1" in out


def test_it_writes_a_page_and_a_plot(tiny_llama, text, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    page, plot = tmp_path / "out.html", tmp_path / "out.svg"
    assert run("show", str(tiny_llama()), str(text), *TIGHT, "--html", str(page), "--plot", str(plot)) == 0
    assert f"written: {page}" in capsys.readouterr().err
    assert len(page.read_text(encoding="utf-8")) > len(PAGE.read_text(encoding="utf-8")) + 1000
    assert "<svg" in plot.read_text()


def test_it_can_go_on_with_a_question_and_recalls(tiny_llama, text, capsys):
    assert run("show", str(tiny_llama()), str(text), *TIGHT, "--ask", "What is wide?", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["cache"]["n_recalls"] > 0
    assert found["recalled"]
    assert "What is wide?" in captured.err
    shown = "".join(found["pieces"])
    assert shown.startswith(" The sea is wide, and")
    assert "go far.  What is wide?" in shown


def test_a_folder_that_is_not_there_is_told_before_anything_is_read(tiny_llama, text, tmp_path, capsys):
    assert run("show", str(tiny_llama()), str(text), *TIGHT, "--html", str(tmp_path / "no" / "x.html")) == 1
    assert "the folder of a file that is to be written must be there" in capsys.readouterr().err
