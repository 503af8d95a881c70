"""0.1.0's own tests of the command line that write a text, as they were."""

import io
import sys

import pytest

import morphkv_cpp
from morphkv_cpp.cli import main

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "--prompt-room", "0"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code or 0


class TestInfo:
    def test_versions_and_libraries_are_shown(self, capsys):
        assert run("info") == 0
        out = capsys.readouterr().out
        assert morphkv_cpp.__version__ in out
        assert "libllama" in out or "llama.dll" in out


class TestGenerate:
    def test_a_long_text_stays_within_its_cells(self, capsys, tiny_llama):
        arguments = ["--predict", "300", "--ignore-eos", "--seed", "1", "-t", "1", *TIGHT]
        assert run("generate", str(tiny_llama()), "abc", *arguments) == 0
        captured = capsys.readouterr()
        assert len(captured.out) > 100
        assert "300 written" in captured.err
        # 4 + 299 tokens decoded: the 80th fills the cells, then every 16th cuts
        assert "79 of 80 cells in use; 14 evictions" in captured.err

    def test_the_same_seed_gives_the_same_text(self, capsys, tiny_llama):
        texts = []
        for seed in ("1", "1", "2"):
            assert run("generate", str(tiny_llama()), "abc", "-n", "60", "-s", seed, "-t", "1", *TIGHT) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] != texts[2]

    def test_stock_has_a_cache_that_ends(self, capsys, tiny_llama):
        arguments = ["--stock", "--ctx-size", "256", "--ignore-eos", "--seed", "1", "-t", "1"]
        assert run("generate", str(tiny_llama()), "abc", *arguments) == 0
        err = capsys.readouterr().err
        assert "n_ctx=256 is full" in err
        assert "evictions" not in err

    def test_a_dash_reads_the_prompt_from_standard_input(self, capsys, monkeypatch, tiny_llama):
        monkeypatch.setattr(sys, "stdin", io.StringIO("abcabc"))
        assert run("generate", str(tiny_llama()), "-", "-n", "1", "-t", "1") == 0
        n_prompt = int(capsys.readouterr().err.split(" prompt tokens")[0].split()[-1])
        assert n_prompt >= 6
