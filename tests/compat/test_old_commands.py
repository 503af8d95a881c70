"""Commands as 0.1.0 spelt them run for one version more, and say how they are called now."""

import json

import pytest

from morphkv_cpp.cli.app import main
from morphkv_cpp.cli.bench import old
from morphkv_cpp.cli.eval import facts

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "-t", "1"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code or 0


class TestBench:
    @pytest.fixture
    def runs(self, monkeypatch):
        """What each command is called with."""
        runs = {}
        for name in ("decode", "growth", "stream", "server", "archive"):
            monkeypatch.setattr(old, f"bench_{name}", lambda *given, name=name: runs.setdefault(name, given))
        return runs

    @pytest.mark.parametrize(
        "flags, name, wanted",
        [
            ([], "decode", (8000, 6000, 5, None)),
            (["--depth", "300", "-p", "200", "-r", "2"], "decode", (300, 200, 2, None)),
            (["--constant", "--soak", "-n", "5", "--depth", "3"], "growth", (True, 5, None)),
            (["--constant", "--require", "cells<=0"], "growth", (False, 20000, ["cells<=0"])),
            (["--streaming"], "stream", (50000, None)),
            (["--server", "-r", "4", "--policy", "random"], "server", (4, None)),
            (["--archive", "--tokens", "0"], "archive", (0, None)),
        ],
    )
    def test_a_flag_is_a_command_now(self, runs, tiny_llama, flags, name, wanted):
        model = str(tiny_llama())
        with pytest.warns(DeprecationWarning, match=rf"^`morphkv bench MODEL.*` is now `morphkv bench {name} MODEL`$"):
            assert run("bench", model, *flags, "--capacity", "100") == 0
        assert list(runs) == [name]
        given = runs[name]
        assert (given[0], given[1].capacity) == (model, 100)
        assert given[3:] == wanted

    @pytest.mark.parametrize("arguments", [["demo"], ["missing.gguf"], ["--constant", "demo"]])
    def test_a_model_is_told_from_a_command(self, runs, arguments):
        with pytest.warns(DeprecationWarning, match="is now"):
            assert run("bench", *arguments) == 0
        assert len(runs) == 1

    def test_one_run_at_a_time(self, capsys, tiny_llama):
        assert run("bench", str(tiny_llama()), "--streaming", "--constant") == 1
        assert "give one of them" in capsys.readouterr().err

    def test_it_runs(self, capsys, tiny_llama):
        sizes = ["--depth", "300", "--prompt", "200", "--rounds", "1", "--prompt-room", "8"]
        with pytest.warns(DeprecationWarning, match="bench decode"):
            assert run("bench", str(tiny_llama()), *sizes, *TIGHT) == 0
        assert "after-prompt" in capsys.readouterr().out


class TestEval:
    def test_recall_is_facts(self, capsys, monkeypatch, tiny_llama):
        monkeypatch.setattr(facts, "measure", lambda *given: ({"full": [True]}, {"full": 1.0}))
        with pytest.warns(DeprecationWarning, match="^`morphkv recall` is now `morphkv eval facts`$"):
            assert run("recall", str(tiny_llama()), "--arms", "full", "--prompt-room", "0", "--policy", "random") == 0
        assert "1 of 1" in capsys.readouterr().out

    def test_remember_is_memory(self, capsys, tiny_llama):
        arguments = ["--tokens", "600", "--documents", "1", "--questions", "1", *TIGHT]
        with pytest.warns(DeprecationWarning, match="^`morphkv remember` is now `morphkv eval memory`$"):
            assert run("remember", str(tiny_llama()), *arguments) == 0
        assert "capacity 64" in capsys.readouterr().out

    def test_perplexity_lies_there_too(self, capsys, tiny_llama, tmp_path):
        text = tmp_path / "text.txt"
        text.write_text("a small text of a few letters " * 20)
        with pytest.warns(DeprecationWarning, match="^`morphkv perplexity` is now `morphkv eval perplexity`$"):
            assert run("perplexity", str(tiny_llama()), str(text), "--json", *TIGHT) == 0
        assert json.loads(capsys.readouterr().out)["figures"]["morphkv"] > 1
