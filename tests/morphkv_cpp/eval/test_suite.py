"""The suite: every item in every arm, once; what a file has is not measured again."""

import json
from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp.eval import suite as of_suite
from morphkv_cpp.eval.perplexity import stream_nll
from morphkv_cpp.eval.readers import open_for_logits
from morphkv_cpp.eval.suite import Part, Results, Suite
from morphkv_cpp.eval.suite_arms import parse_suite_arms
from morphkv_cpp.eval.tasks import TASKS
from support.tiny import QUIET

ARMS = "full,shift,morphkv+archive"


def suite(model, tasks: str = "facts-gone", arms: str = ARMS, n_items: int = 2, n_tokens: int = 600) -> Suite:
    parts = [Part(TASKS[name], n_tokens, n_items) for name in tasks.split(",")]
    return Suite(model, parse_suite_arms(arms, 256, 64), parts, 64, **QUIET)


def run(of: Suite, path) -> list[dict]:
    results = Results(path)
    of.run(results)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_item_in_every_arm_is_a_line(tiny_llama, tmp_path):
    of = suite(tiny_llama(), "facts-gone,five-questions,copy", n_items=1)
    rows = run(of, tmp_path / "a.jsonl")
    assert [(row["task"], row["arm"]) for row in rows] == [
        (task, arm) for task in ("facts-gone", "five-questions", "copy") for arm in ARMS.split(",")
    ]
    assert [len(row["scores"]) for row in rows[::3]] == [4, 5, 1]
    assert len({row["key"] for row in rows}) == 9
    sizes = {row["arm"]: row["kv_bytes"] for row in rows}
    assert sizes["shift"] == sizes["morphkv+archive"] < sizes["full"]


def test_what_is_there_is_not_measured_again(tiny_llama, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.jsonl"
    rows = run(suite(tiny_llama()), path)
    assert len(rows) == 6
    with monkeypatch.context() as patch:
        patch.setattr(of_suite, "open_reader", lambda *_: pytest.fail("a model was opened"))
        assert run(suite(tiny_llama()), path) == rows
    # of one more item and arm only what is missing
    more = run(suite(tiny_llama(), arms="full,shift,recency", n_items=3), path)[6:]
    assert [(row["arm"], row["item"]) for row in more] == [
        ("full", 2),
        ("shift", 2),
        *(("recency", i) for i in range(3)),
    ]


def test_a_line_that_was_cut_off_is_measured_again(tiny_llama, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = run(suite(tiny_llama(), arms="full"), path)
    path.write_bytes(path.read_bytes()[:-9])
    again = run(suite(tiny_llama(), arms="full"), path)
    assert [row["key"] for row in again] == [row["key"] for row in rows]
    assert again[1]["scores"] == rows[1]["scores"]


def test_another_model_or_length_is_another_result(tiny_llama):
    ones = suite(tiny_llama()), suite(tiny_llama(seed=1)), suite(tiny_llama(), n_tokens=700)
    keys = {one.key(one.parts[0], i, arm) for one in ones for i in range(2) for arm in one.arms}
    assert len(keys) == 3 * 2 * 3


def test_a_full_cache_reads_no_more_than_the_model_was_trained_for(tiny_llama, tmp_path):
    short = tiny_llama(context_length=640)
    rows = run(suite(short, "facts-gone,perplexity", arms="full,morphkv", n_items=1), tmp_path / "a.jsonl")
    assert [(row["task"], row["arm"]) for row in rows] == [("facts-gone", "morphkv"), ("perplexity", "morphkv")]
    assert "kl" not in rows[1]


def test_perplexity_is_that_of_each_cache_alone(tiny_llama, tmp_path):
    of = suite(tiny_llama(), "perplexity", "full,shift,morphkv+archive", n_items=1)
    rows = {row["arm"]: row for row in run(of, tmp_path / "a.jsonl")}
    assert rows["full"]["kl"] == 0 < rows["shift"]["kl"]
    tokens = of.items[of.parts[0], 0].tokens
    with closing(open_for_logits(tiny_llama(), of.arms[0], 900, 64, **QUIET)) as reader:
        alone = stream_nll(reader.llm, tokens)
    assert rows["full"]["nll"] == pytest.approx(np.mean(alone[len(tokens) // 4 :]), rel=1e-5)
    # one more arm is measured beside the full cache, whose line stays the only one
    more = run(suite(tiny_llama(), "perplexity", arms="full,morphkv", n_items=1), tmp_path / "a.jsonl")
    assert [row["arm"] for row in more] == ["full", "shift", "morphkv+archive", "morphkv"]
    # nothing is recalled while a text is read
    assert 0 < more[3]["kl"] == rows["morphkv+archive"]["kl"]


@pytest.mark.demo
@pytest.mark.slow
def test_the_demo_model_knows_with_an_archive_what_a_shift_forgets(demo_model, tmp_path):
    parts = [Part(TASKS["facts-gone"], 1280, 1)]
    of = Suite(demo_model, parse_suite_arms("shift,morphkv:layers=auto+archive", 512, 64), parts, 64, **QUIET)
    shift, ours = run(of, tmp_path / "a.jsonl")
    assert sum(shift["scores"]) <= 1
    assert sum(ours["scores"]) >= 3
