"""`morphkv eval suite` and `morphkv eval report`, on a tiny model."""

import json
import re
from pathlib import Path

import pytest

from morphkv_cpp.eval.results_page import BEGIN, END
from support.command import run

QUICK = ["--arms", "full,morphkv", "--cells", "256", "--tokens", "600", "--items", "2", "-t", "1"]


@pytest.fixture
def results(tiny_llama, tmp_path) -> Path:
    path = tmp_path / "r.jsonl"
    assert run("eval", "suite", str(tiny_llama()), "--tasks", "facts-gone,perplexity", "--out", str(path), *QUICK) == 0
    return path


def test_figures_are_shown_and_an_ended_run_goes_on(capsys, tiny_llama, results):
    assert "facts-gone" in capsys.readouterr().out
    lines = results.read_text().splitlines()
    run_line = json.loads(lines[0])["run"]
    assert run_line["n_cells"] == 256
    assert run_line["machine"]["morphkv_cpp"]
    assert len(lines) == 1 + 2 * 2 * 2
    arguments = ["--tasks", "perplexity", "--out", str(results), *QUICK, "--json"]
    assert run("eval", "suite", str(tiny_llama()), *arguments) == 0
    assert results.read_text().splitlines() == lines  # nothing was missing
    found = json.loads(capsys.readouterr().out)
    assert {(f["arm"], f["measure"]) for f in found["figures"] if f["task"] == "perplexity"} == {
        (arm, measure) for arm in ("full", "morphkv") for measure in ("nll", "kl")
    }


def test_a_file_has_results_of_one_model_and_size(capsys, tiny_llama, results):
    arguments = ["--tasks", "perplexity", "--out", str(results), *QUICK, "--cells", "512"]
    assert run("eval", "suite", str(tiny_llama()), *arguments) == 1
    assert re.search("must name a file with results of .* and 512 cells, but .* and 256", capsys.readouterr().err)


def test_a_report_is_a_summary_a_plot_and_tables(capsys, tmp_path, results):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    page, folder = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"{BEGIN}{END}")
    capsys.readouterr()
    arguments = ["--folder", str(folder), "--name", "quick", "--title", "Tiny", "--page", str(page)]
    assert run("eval", "report", str(results), *arguments) == 0
    assert capsys.readouterr().out.split() == [str(folder / "quick.json"), str(folder / "quick.svg"), str(page)]
    assert json.loads((folder / "quick.json").read_text())["run"]["title"] == "Tiny"
    assert "### Tiny" in page.read_text()
    assert "| facts-gone, 600 tokens | 2 |" in page.read_text()


def test_tasks_are_listed(capsys):
    assert run("eval", "suite", "demo", "--list") == 0
    out = capsys.readouterr().out
    assert "ruler-niah-multiquery" in out
    assert "facts-updated" in out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--tasks", "verse"], "tasks must be all or some of perplexity"),
        (["--arms", "newest"], "an arm must start with one of full, shift"),
        (["--peer", "pressed"], "a peer must be one of kvpress, got 'pressed'"),
        (["--cells", "300"], "cells must be a multiple of 256, got 300"),
        (["--tokens", "100"], "--tokens must be numbers of at least 256"),
    ],
)
def test_what_is_refused(capsys, tiny_llama, tmp_path, arguments, sentence):
    out = str(tmp_path / "r.jsonl")
    assert run("eval", "suite", str(tiny_llama()), "--out", out, *arguments) == 1
    assert sentence in capsys.readouterr().err


def test_a_report_of_nothing_is_a_sentence(capsys, tmp_path):
    assert run("eval", "report", str(tmp_path / "none.jsonl")) == 1
    assert "the results must be a file of `morphkv eval suite`" in capsys.readouterr().err
