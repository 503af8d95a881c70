"""`morphkv perplexity`, `recall`, `bench`, `texts`: tables, requirements and exit codes, on a tiny model."""

import re

import numpy as np
import pytest

from morphkv_cpp.cli.app import main
from morphkv_cpp.cli.eval import facts as cli_eval

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "-t", "1"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code or 0


def numbers(out: str, row: str) -> list[float]:
    """The numbers in the row of a table that starts with `row`."""
    line = next(line for line in out.splitlines() if line.strip().startswith(row + " "))
    return [float(text) for text in re.findall(r"[-+]?\d+\.\d+", line.strip()[len(row) :])]


@pytest.fixture
def texts(tmp_path) -> list[str]:
    """Two texts of 900 letters, each a token or two."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("first.txt", "second.txt")]
    for path in paths:
        path.write_text("".join(rng.choice(list("abcdefgh "), 900)))
    return [str(path) for path in paths]


class TestPerplexity:
    def test_every_position_is_in_a_row(self, capsys, tiny_llama, texts):
        assert run("perplexity", str(tiny_llama()), texts[0], "--tokens", "700", "--bucket", "300", *TIGHT) == 0
        out = capsys.readouterr().out
        rows = [numbers(out, name)[0] for name in ("1..299", "300..599", "600..699", "all")]
        assert np.exp(np.average(np.log(rows[:3]), weights=[299, 300, 100])) == pytest.approx(rows[3], rel=1e-4)

    def test_stock_differs_where_something_was_evicted(self, capsys, tiny_llama, texts):
        results = []
        for more in ([], ["--stock"]):
            assert run("perplexity", str(tiny_llama()), texts[0], "-n", "700", "--bucket", "64", *TIGHT, *more) == 0
            results.append(capsys.readouterr().out)
        before, after = ([numbers(out, row)[0] for out in results] for row in ("1..63", "640..699"))
        assert before[0] == before[1]
        assert after[0] != after[1]

    def test_caches_are_compared_in_pairs(self, capsys, tiny_llama, texts):
        arms = ["--compare", "full,morphkv,recency,morphkv:window=16"]
        assert run("perplexity", str(tiny_llama()), *texts, *arms, "-n", "700", "--skip", "80", *TIGHT) == 0
        arms_out, differences_out = capsys.readouterr().out.split("Mean -log p less that of morphkv")
        full, recency = numbers(arms_out, "full")[-1], numbers(arms_out, "recency")[-1]
        ours = numbers(arms_out, "morphkv")[-1]
        assert numbers(differences_out, "full")[0] == pytest.approx(np.log(full / ours), abs=2e-4)
        assert numbers(differences_out, "recency")[0] == pytest.approx(np.log(recency / ours), abs=2e-4)

    def test_rows_by_position_and_their_bounds(self, capsys, tiny_llama, texts):
        arms = ["--compare", "morphkv,recency", "--by-position", "--bucket", "100", "--skip", "200", "-n", "700"]
        assert run("perplexity", str(tiny_llama()), *texts, *arms, *TIGHT, "--require-each", "morphkv<9*recency") == 0
        captured = capsys.readouterr()
        assert len(numbers(captured.out, "300..399")) == 2
        assert "the requirement is met" in captured.err
        assert run("perplexity", str(tiny_llama()), *texts, *arms, *TIGHT, "--require-each", "morphkv<0.1*recency") == 1
        assert capsys.readouterr().err.count("missed: morphkv<0.1*recency must hold at every position") == 5

    def test_a_requirement_that_does_not_hold_is_exit_code_1(self, capsys, tiny_llama, texts):
        same = ["--compare", "full,morphkv:capacity=800", "--require", "full<morphkv:capacity=800"]
        assert run("perplexity", str(tiny_llama()), *texts, *same, "-n", "700", *TIGHT) == 1
        assert "missed: full<morphkv:capacity=800 must hold by 2 standard errors" in capsys.readouterr().err

    def test_a_text_too_short_is_a_sentence(self, capsys, tiny_llama, texts):
        assert run("perplexity", str(tiny_llama()), texts[0], "-n", "9999", *TIGHT) == 1
        assert "error: a text must have at least 9999 tokens" in capsys.readouterr().err

    def test_a_missing_text_is_a_sentence(self, capsys, tiny_llama):
        assert run("perplexity", str(tiny_llama()), "nothing.txt", *TIGHT) == 1
        assert "nothing.txt" in capsys.readouterr().err.splitlines()[-1]


class TestRecall:
    @pytest.fixture
    def model(self, monkeypatch, tiny_llama) -> str:
        """The cache of stock llama.cpp knows 3 of 4 answers, any other one none."""

        def run_arm(path, morphkv, n_documents, n_questions, on_answer, **llama):
            return [morphkv is None and i < 3 for i in range(4)]

        monkeypatch.setattr(cli_eval.recall_eval, "run", run_arm)
        return str(tiny_llama())

    def test_shares_have_intervals(self, capsys, model):
        assert run("recall", model, "--arms", "full,morphkv@256", "--questions", "4") == 0
        out = capsys.readouterr().out
        assert numbers(out, "full") == [0.75, 0.30, 0.95]
        assert numbers(out, "morphkv@256") == [0.0, 0.0, 0.49]

    @pytest.mark.parametrize("bar, code", [("full>=0.75", 0), ("full>=0.76", 1), ("morphkv@256<0.4", 0)])
    def test_bars_decide_the_exit_code(self, model, bar, code):
        assert run("recall", model, "--arms", "full,morphkv@256", "--require", bar) == code

    def test_a_bar_on_nothing_measured_is_refused(self, capsys, model):
        assert run("recall", model, "--arms", "full", "--require", "random<0.4") == 1
        assert "must speak of one of full" in capsys.readouterr().err


class TestBench:
    SIZES = ("--depth", "300", "--prompt", "200", "--rounds", "2")

    def test_ratios_and_their_bars(self, capsys, tiny_llama):
        bars = ["--require", "same-cells>=0", "--require", "depth>=1000"]
        assert run("bench", str(tiny_llama()), *self.SIZES, *TIGHT, *bars) == 1
        captured = capsys.readouterr()
        assert len(numbers(captured.out, "after-prompt")) == 3
        assert "missed: depth must be >= 1000" in captured.err
        assert "same-cells" not in captured.err

    def test_a_long_run_is_flat(self, capsys, tiny_llama):
        bars = ["--require", "kv-mb<=0", "--require", "cells<=0", "--require", "rss-mb<8"]
        assert run("bench", str(tiny_llama()), "--constant", "--tokens", "3000", *TIGHT, *bars) == 0
        captured = capsys.readouterr()
        assert "all 3 requirements met" in captured.err
        assert "3000 tokens, tok/s of those that come one by one" in captured.out

    def test_a_streamed_answer_keeps_its_speed(self, capsys, tiny_llama):
        bars = ["--require", "streaming>=0.01"]
        assert run("bench", str(tiny_llama()), "--streaming", "--tokens", "2000", *TIGHT, *bars) == 0
        captured = capsys.readouterr()
        assert "the requirement is met" in captured.err
        assert "behind token 2000 over those behind token 1000" in captured.out

    def test_one_run_at_a_time(self, capsys, tiny_llama):
        assert run("bench", str(tiny_llama()), "--streaming", "--constant") == 1
        assert "give one of them" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [["--rounds", "0"], ["--constant", "--tokens", "2999"], ["--streaming", "--tokens", "999"]],
    )
    def test_sizes_out_of_range_are_refused(self, capsys, tiny_llama, arguments):
        assert run("bench", str(tiny_llama()), *arguments) == 1
        assert "must be at least" in capsys.readouterr().err


def test_paths_of_texts_are_printed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli_eval, "fetch_texts", lambda folder, on_skip: [folder / "a.txt", folder / "b.txt"])
    assert run("texts", str(tmp_path)) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
