"""The demo: what it writes, how it counts, what it shows."""

import math
from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.cli.demo_text import Written, ask_about_facts, kept, kept_by_layer, open_demo, replay_end, write_long
from morphkv_cpp.eval import prose_sections
from support.command import run
from support.tiny import FLASH


class TestRate:
    def test_only_the_last_tokens_count(self):
        assert Written([], [0] * 5, [9.0, 9.0, 0.5, 0.25, 0.25]).rate(3) == pytest.approx(3.0)

    def test_the_first_token_never_counts(self):
        assert Written([], [0] * 3, [9.0, 0.5, 0.5]).rate(10) == pytest.approx(2.0)

    def test_nothing_written_has_no_rate(self):
        assert math.isnan(Written([], [0], [1.0]).rate())


class TestKept:
    def test_shares_are_of_quarters_without_protected_and_empty_slots(self):
        positions = np.array([[0, 5, 30, -1], [1, 5, 99, -1]], dtype=np.int32)
        found = kept(positions, 100, 2)
        assert found.shares.tolist() == [0.5, 0.25, 0.0, 0.25]
        assert found.oldest == 5
        # 5 in two heads, 30 and 99 in one
        assert found.n_heads == pytest.approx(4 / 3)

    def test_nothing_kept_is_said_so(self):
        found = kept(np.full((2, 3), -1, dtype=np.int32), 100, 2)
        assert found.oldest == -1
        assert np.isnan(found.shares).all()

    def test_five_layers_are_shown_and_all_are_counted(self):
        layers = [np.array([[10 * i]], dtype=np.int32) for i in range(9)]
        rows = kept_by_layer(layers, 100, 0)
        assert [name for name, _ in rows] == [*(f"layer {i}" for i in (0, 2, 4, 6, 8)), "all 9 layers"]
        assert rows[-1][1].shares.tolist() == pytest.approx([3 / 9, 2 / 9, 3 / 9, 1 / 9])

    def test_a_layer_may_keep_more(self):
        layers = [np.array([[1]], dtype=np.int32), np.array([[1, 60, 80]], dtype=np.int32)]
        assert kept_by_layer(layers, 100, 0)[-1][1].shares.tolist() == pytest.approx([2 / 4, 0, 1 / 4, 1 / 4])


class TestWriting:
    def test_stock_writes_the_same_end_again(self, tiny_llama):
        llm = open_demo(tiny_llama(), 1500, MorphKV(capacity=64, window=8, interval=16, prompt_room=0), **FLASH)
        pieces = []
        written = write_long(llm, 60, 1, lambda piece, written: pieces.append(piece))
        assert llm.cache_stats().n_evictions > 0
        llm.close()
        assert len(written.tokens) == len(written.seconds) == len(pieces) == 60

        stock = open_demo(tiny_llama(), len(written.prompt) + 60, None, **FLASH)
        again = replay_end(stock, written, 1, lambda token: None)
        stock.close()
        assert again.prompt + again.tokens == written.prompt + written.tokens
        assert len(again.seconds) == 60  # of fewer than 500 all but the first count


def run_demo(capsys, *arguments: str) -> str:
    assert run("demo", "-t", "1", *arguments) == 0
    return capsys.readouterr().out


class TestCommand:
    def test_it_works_without_a_terminal(self, capsys, tiny_llama, tmp_path):
        out = run_demo(
            capsys, "--model", str(tiny_llama()), "-n", "100", "--capacity", "64", "--window", "8", "--interval", "16",
            "--out", str(tmp_path / "text.txt"),
        )  # fmt: skip
        for word in ("KV cache (K and V)", "cells in use", "tok/s over the last 99", "What was kept", "all 2 layers"):
            assert word in out
        assert (tmp_path / "text.txt").read_text().startswith("The Long Way Round")

    @pytest.mark.demo
    def test_the_second_act_answers_with_recall_alone(self, demo_model):
        with closing(open_demo(demo_model, 2000, None, **FLASH)) as llm:
            text = llm.tokenize("\n\n".join(prose_sections()).encode())[:1500]
        answers = ask_about_facts(demo_model, MorphKV(capacity=256, prompt_room=0, layers="equal"), text, **FLASH)
        assert answers.n_tokens == 1500
        right = [fact.answer.casefold() in said.casefold() for fact, said in zip(answers.facts, answers.recalled)]
        wrong = [fact.answer.casefold() in said.casefold() for fact, said in zip(answers.facts, answers.without)]
        assert sum(right) >= 2
        assert not any(wrong)

    @pytest.mark.demo
    def test_the_demo_model_writes_in_half_of_the_memory(self, capsys, demo_model):
        out = run_demo(
            capsys, "--model", str(demo_model), "-n", "300", "--capacity", "96", "--window", "16", "--interval", "32"
        )
        row = next(line.split() for line in out.splitlines() if "KV cache" in line)
        # 256 cells, the smallest cache that there is, against 512
        assert float(row[-1]) == 0.5

    def test_a_text_that_fits_is_said_to_fit(self, capsys, tiny_llama):
        out = run_demo(capsys, "--model", str(tiny_llama()), "-n", "10", "--capacity", "1500")
        assert "Nothing was evicted" in out
