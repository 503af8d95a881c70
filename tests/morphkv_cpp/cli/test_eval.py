"""`morphkv eval` and `morphkv texts`: tables, requirements and exit codes, on a tiny model."""

import json
import re

import numpy as np
import pytest

from morphkv_cpp.cli import texts as cli_texts
from morphkv_cpp.cli.eval import facts, memory
from morphkv_cpp.eval import Fact
from morphkv_cpp.eval.remember import Asked
from support.command import run

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "-t", "1"]


def numbers(out: str, row: str) -> list[float]:
    """The numbers in the row of a table that starts with `row`."""
    line = next(line for line in out.splitlines() if line.strip().startswith(row + " "))
    return [float(text) for text in re.findall(r"[-+]?\d+\.\d+", line.strip()[len(row) :])]


def perplexity(*arguments: str) -> int:
    return run("eval", "perplexity", *arguments)


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
        assert perplexity(str(tiny_llama()), texts[0], "--tokens", "700", "--bucket", "300", *TIGHT) == 0
        out = capsys.readouterr().out
        rows = [numbers(out, name)[0] for name in ("1..299", "300..599", "600..699", "all")]
        assert np.exp(np.average(np.log(rows[:3]), weights=[299, 300, 100])) == pytest.approx(rows[3], rel=1e-4)

    def test_stock_differs_where_something_was_evicted(self, capsys, tiny_llama, texts):
        results = []
        for more in ([], ["--stock"]):
            assert perplexity(str(tiny_llama()), texts[0], "-n", "700", "--bucket", "64", *TIGHT, *more) == 0
            results.append(capsys.readouterr().out)
        before, after = ([numbers(out, row)[0] for out in results] for row in ("1..63", "640..699"))
        assert before[0] == before[1]
        assert after[0] != after[1]

    def test_caches_are_compared_in_pairs(self, capsys, tiny_llama, texts):
        arms = ["--compare", "full,morphkv,recency,morphkv:window=16"]
        assert perplexity(str(tiny_llama()), *texts, *arms, "-n", "700", "--skip", "80", *TIGHT) == 0
        arms_out, differences_out = capsys.readouterr().out.split("Mean -log p less that of morphkv")
        full, recency = numbers(arms_out, "full")[-1], numbers(arms_out, "recency")[-1]
        ours = numbers(arms_out, "morphkv")[-1]
        assert numbers(differences_out, "full")[0] == pytest.approx(np.log(full / ours), abs=2e-4)
        assert numbers(differences_out, "recency")[0] == pytest.approx(np.log(recency / ours), abs=2e-4)

    def test_rows_by_position_and_their_bounds(self, capsys, tiny_llama, texts):
        arms = ["--compare", "morphkv,recency", "--by-position", "--bucket", "100", "--skip", "200", "-n", "700"]
        assert perplexity(str(tiny_llama()), *texts, *arms, *TIGHT, "--require-each", "morphkv<9*recency") == 0
        captured = capsys.readouterr()
        assert len(numbers(captured.out, "300..399")) == 2
        assert "the requirement is met" in captured.err
        assert perplexity(str(tiny_llama()), *texts, *arms, *TIGHT, "--require-each", "morphkv<0.1*recency") == 1
        assert capsys.readouterr().err.count("missed: morphkv<0.1*recency must hold at every position") == 5

    def test_a_requirement_that_does_not_hold_is_exit_code_1(self, capsys, tiny_llama, texts):
        same = ["--compare", "full,morphkv:capacity=800", "--require", "full<morphkv:capacity=800"]
        assert perplexity(str(tiny_llama()), *texts, *same, "-n", "700", *TIGHT) == 1
        assert "missed: full<morphkv:capacity=800 must hold by 2 standard errors" in capsys.readouterr().err

    def test_one_object_holds_perplexities_and_differences(self, capsys, tiny_llama, texts):
        arms = ["--compare", "full,morphkv", "--bucket", "400", "--skip", "80", "-n", "700", "--json"]
        assert perplexity(str(tiny_llama()), *texts, *arms, *TIGHT) == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found["figures"]) == ["full", "morphkv"]
        first = found["caches"]["full"][0]
        assert first["file"] == texts[0]
        assert [(row["first"], row["last"]) for row in first["by_position"]] == [(1, 399), (400, 699)]
        difference = np.log(found["figures"]["full"] / found["figures"]["morphkv"])
        assert found["differences"]["full"]["mean"] == pytest.approx(difference)

    def test_a_single_cache_is_one_object_too(self, capsys, tiny_llama, texts):
        assert perplexity(str(tiny_llama()), texts[0], "-n", "200", "--json", *TIGHT) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["figures"]["morphkv"] == pytest.approx(found["caches"]["morphkv"][0]["perplexity"]["mean"])
        assert found["differences"] == {}

    @pytest.mark.parametrize("option", ["--require=a<b", "--require-each=morphkv<2*morphkv", "--by-position"])
    def test_what_compares_needs_caches_to_compare(self, capsys, tiny_llama, texts, option):
        assert perplexity(str(tiny_llama()), texts[0], option) == 1
        assert "--compare" in capsys.readouterr().err

    def test_a_text_too_short_is_a_sentence(self, capsys, tiny_llama, texts):
        assert perplexity(str(tiny_llama()), texts[0], "-n", "9999", *TIGHT) == 1
        assert "error: a text must have at least 9999 tokens" in capsys.readouterr().err

    def test_a_missing_text_is_a_sentence(self, capsys, tiny_llama):
        assert perplexity(str(tiny_llama()), "nothing.txt", *TIGHT) == 1
        assert "nothing.txt" in capsys.readouterr().err.splitlines()[-1]


class TestFacts:
    @pytest.fixture
    def model(self, monkeypatch, tiny_llama) -> str:
        """The cache of stock llama.cpp knows 3 of 4 answers, any other one none."""

        def run_arm(path, morphkv, n_documents, n_questions, on_answer, on_open, **llama):
            on_open(morphkv)
            return [morphkv is None and i < 3 for i in range(4)]

        monkeypatch.setattr(facts, "run", run_arm)
        monkeypatch.setattr(facts, "kept_bytes", lambda config, n: 2**20 * (1 if config else 8))
        return str(tiny_llama())

    def test_shares_have_intervals(self, capsys, model):
        assert run("eval", "facts", model, "--arms", "full,morphkv@256", "--questions", "4") == 0
        out = capsys.readouterr().out
        assert numbers(out, "full") == [0.75, 0.30, 0.95]
        assert numbers(out, "morphkv@256") == [0.0, 0.0, 0.49]

    def test_one_object_holds_shares_and_intervals(self, capsys, model):
        assert run("eval", "facts", model, "--arms", "full,morphkv@256", "--questions", "4", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["figures"] == {"full": 0.75, "morphkv@256": 0.0}
        assert found["caches"]["full"]["low"] == pytest.approx(0.3006, abs=1e-4)

    @pytest.mark.parametrize("option", ["--policy=random", "--prompt-room=0"])
    def test_what_an_arm_says_itself_is_no_option(self, capsys, model, option):
        assert run("eval", "facts", model, option) == 2
        assert option.partition("=")[0] in capsys.readouterr().err

    @pytest.mark.parametrize("bar, code", [("full>=0.75", 0), ("full>=0.76", 1), ("morphkv@256<0.4", 0)])
    def test_bars_decide_the_exit_code(self, model, bar, code):
        assert run("eval", "facts", model, "--arms", "full,morphkv@256", "--require", bar) == code

    def test_a_bar_on_nothing_measured_is_refused(self, capsys, model):
        assert run("eval", "facts", model, "--arms", "full", "--require", "random<0.4") == 1
        assert "must speak of one of full" in capsys.readouterr().err


class TestMemory:
    @pytest.fixture
    def model(self, monkeypatch, tiny_llama) -> str:
        """With an archive 3 of 4 answers are right after 600 tokens and 4 of 4 after 700, without one none is."""

        def ask(path, morphkv, archive, lengths, n_documents, n_questions, arms, text, **llama):
            for n in lengths:
                yield n
                for arm in arms:
                    for i in range(4):
                        right = arm == "recall" and (i < 3 or n == 700)
                        yield Asked(0, n, arm, Fact("colour of the door", "green"), " red", right, 2.0)

        monkeypatch.setattr(memory, "run", ask)
        return str(tiny_llama())

    def test_each_length_has_its_share(self, capsys, model):
        assert run("eval", "memory", model, "--tokens", "700,600", "--json", "--require", "off<=0") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["figures"] == {"recall@600": 0.75, "recall@700": 1.0, "off@600": 0.0, "off@700": 0.0}
        assert found["rows"]["recall@600"]["n_right"] == 3
        assert found["rows"]["recall@600"]["recall_ms"] == 2.0
        assert found["archive"]["place"] == "ram"

    def test_wrong_answers_are_shown(self, capsys, model):
        assert run("eval", "memory", model, "--tokens", "600", "--show-wrong") == 0
        captured = capsys.readouterr()
        assert "600 tokens, document 0: The colour of the door is green. Answer:' red'" in captured.err
        assert numbers(captured.out, "recall") == [0.75, 0.30, 0.95]

    @pytest.mark.parametrize(
        "option, sentence",
        [
            ("--tokens=512", "numbers above 512"),
            ("--arms=off,off", "some of recall, off and full"),
            ("--arms=x", "some"),
        ],
    )
    def test_what_is_no_length_or_arm_is_refused(self, capsys, model, option, sentence):
        assert run("eval", "memory", model, option) == 1
        assert sentence in capsys.readouterr().err


def test_paths_of_texts_are_printed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli_texts, "fetch_texts", lambda folder, on_skip: [folder / "a.txt", folder / "b.txt"])
    assert run("texts", str(tmp_path)) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
