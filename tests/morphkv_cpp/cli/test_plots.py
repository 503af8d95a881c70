"""--plot: every command that measures has it, and draws what it has measured."""

import json
import re
from types import SimpleNamespace

import pytest
import typer

from morphkv_cpp.cli.bench import bench
from morphkv_cpp.cli.eval import copying, evaluate, facts, memory
from morphkv_cpp.eval import Fact
from morphkv_cpp.eval.copying import Copied
from morphkv_cpp.eval.remember import Asked
from support.command import run

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "-t", "1"]
MEASURE = [
    (["bench", "growth", "MODEL", "--tokens", "3000"], ["speed-decoding", "memory-K-and-V", "cells-in-use"]),
    (["bench", "stream", "MODEL", "--tokens", "1500"], ["speed-after-token-1,000", "speed-after-token-1,500"]),
    (["bench", "archive", "MODEL", "--tokens", "500"], ["speed-with", "speed-without", "recalls-to-choose"]),
]


@pytest.fixture
def plot(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    return tmp_path / "plot.svg"


def ids(path) -> list[str]:
    return re.findall(r'<g id="([^"]+)"', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("group, without", [(bench, {"old"}), (evaluate, {"report"})])
def test_every_command_that_measures_has_it(group, without):
    commands = typer.main.get_command(group).commands
    options = {name: {o for p in command.params for o in p.opts} for name, command in commands.items()}
    assert {name for name, of in options.items() if "--plot" not in of} == without  # a report always draws


@pytest.mark.parametrize("arguments, drawn", MEASURE, ids=[" ".join(each[:2]) for each, _ in MEASURE])
def test_what_was_measured_is_drawn(capsys, tiny_llama, plot, arguments, drawn):
    words = [str(tiny_llama()) if word == "MODEL" else word for word in arguments]
    assert run(*words, *TIGHT, "--plot", str(plot), "--json") == 0
    captured = capsys.readouterr()
    assert set(drawn) <= set(ids(plot))
    assert f"the plot is in {plot}" in captured.err
    json.loads(captured.out)


def test_perplexity_by_position_and_by_bytes(tiny_llama, plot, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("a bee sees the sea " * 60)
    arms = ["--compare", "full,recency", "--tokens", "700", "--bucket", "100"]
    assert run("eval", "perplexity", str(tiny_llama()), str(text), *arms, *TIGHT, "--plot", str(plot)) == 0
    assert {"perplexity-full", "perplexity-recency", "bytes-full", "bytes-recency"} <= set(ids(plot))


def test_a_suite_draws_its_tasks(tiny_llama, plot, tmp_path):
    arguments = ["--tasks", "copy", "--arms", "full,recency", "--cells", "256", "--tokens", "512", "--items", "1"]
    out = ["--out", str(tmp_path / "a.jsonl"), "-t", "1"]
    assert run("eval", "suite", str(tiny_llama()), *arguments, *out, "--plot", str(plot)) == 0
    assert {"score-full", "score-recency"} <= set(ids(plot))


def test_facts_by_bytes(monkeypatch, tiny_llama, plot):
    def run_arm(path, morphkv, n_documents, n_questions, on_answer, on_open, **llama):
        on_open(morphkv)
        return [morphkv is None, True]

    monkeypatch.setattr(facts, "run", run_arm)
    monkeypatch.setattr(facts, "kept_bytes", lambda config, n: 2**20 * (1 if config else 8))
    assert run("eval", "facts", str(tiny_llama()), "--arms", "full,recency@256", "--plot", str(plot)) == 0
    assert {"right-full", "right-recency@256", "bytes-full"} <= set(ids(plot))


def test_memory_by_length(monkeypatch, tiny_llama, plot):
    def ask(path, morphkv, archive, lengths, n_documents, n_questions, arms, text, **llama):
        for arm in arms:
            yield from (Asked(0, n, arm, Fact("door", "green"), " red", arm == "recall", 2.0) for n in lengths)

    monkeypatch.setattr(memory, "run", ask)
    assert run("eval", "memory", str(tiny_llama()), "--tokens", "600,700", "--plot", str(plot)) == 0
    assert {"facts-recall", "facts-off"} <= set(ids(plot))


def test_copies_by_length_and_kind(monkeypatch, tiny_llama, plot):
    def copy(path, morphkv, archive, kinds, lengths, distance, documents, arms, **llama):
        for kind in kinds:
            for arm in arms:
                for n in lengths:
                    yield Copied(kind, n, 0, arm, [True, False], 0, 0.0)

    monkeypatch.setattr(copying, "run", copy)
    arguments = ["--tokens", "140,512", "--kinds", "prose,code", "--arms", "full,off", "--documents", "2"]
    assert run("eval", "copy", str(tiny_llama()), *arguments, "--plot", str(plot)) == 0
    assert {"prose-full", "prose-off", "code-full", "code-off"} <= set(ids(plot))


def test_a_plot_that_cannot_be_is_refused_before_anything_is_measured(capsys, monkeypatch, tiny_llama):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    monkeypatch.setattr(facts, "run", SimpleNamespace())
    assert run("eval", "facts", str(tiny_llama()), "--plot", "a.jpg") == 1
    assert "must end in .svg, .png, .pdf, got 'a.jpg'" in capsys.readouterr().err
