"""Summaries: means, errors, differences over the same items, and what is worse than peers."""

import math

import pytest

from morphkv_cpp.eval.summary import paired, summarize, worse


def row(arm: str, item: int, task: str = "copy", **values) -> dict:
    sizes = {"kv_bytes": 100, "extra_bytes": 0, "n_prompt_room": 0}
    return {"key": f"{arm}{item}{task}", "task": task, "n_tokens": 900, "arm": arm, "item": item, **sizes, **values}


ROWS = [
    {"run": {"model": "old"}},
    {"run": {"model": "new"}},
    *[row("full", i, scores=[1.0, 1.0]) for i in range(3)],
    *[row("morphkv", i, scores=[0.5, 0.1 * i]) for i in range(3)],
    *[row("shift", i, scores=[1.0, 0.1 * i]) for i in range(1, 3)],
]


def test_questions_of_an_item_are_one_value_and_items_give_the_error():
    found = summarize(ROWS)
    assert found["run"] == {"model": "new"}
    ours = next(figure for figure in found["figures"] if figure["arm"] == "morphkv")
    assert (ours["mean"], ours["n"]) == (pytest.approx(0.3), 3)
    assert ours["error"] == pytest.approx(0.05 / math.sqrt(3), rel=1e-5)
    assert ours["to_full"] == pytest.approx(-0.7)
    assert ours["to_full_error"] == pytest.approx(ours["error"])


def test_all_commands_are_named():
    runs = [{"run": {"command": command}} for command in ("a", "b", "a")]
    assert summarize(runs)["run"] == {"command": "a", "commands": ["a", "b"]}


def test_differences_are_taken_over_the_items_that_both_have():
    delta = paired({0: 1.0, 1: 2.0, 2: 4.0}, {1: 1.0, 2: 1.0, 3: 9.0})
    assert (delta.mean, delta.n) == (2.0, 2)
    assert delta.z == pytest.approx(2.0)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_what_is_worse_is_named_with_its_peer():
    (found,) = worse(ROWS)
    assert (found["arm"], found["peer"], found["behind"], found["n"]) == ("morphkv", "shift", pytest.approx(0.25), 2)


def test_less_loss_is_better():
    rows = [row("morphkv", i, "perplexity", nll=3.0 + i, kl=0.5) for i in range(2)]
    rows += [row("recency", i, "perplexity", nll=2.5 + i * 1.1, kl=0.6) for i in range(2)]
    found = worse(rows)
    assert [(each["measure"], each["peer"]) for each in found] == [("nll", "recency")]
    assert found[0]["z"] == pytest.approx(9.0)


def test_a_single_item_has_no_error():
    figure = summarize([row("shift", 0, scores=[0.25])])["figures"][0]
    assert (figure["mean"], figure["error"], figure["n"]) == (0.25, None, 1)


def test_bytes_are_those_without_room_for_a_prompt():
    rows = [row("shift", 0, scores=[1.0]), row("shift", 0, "facts-cut", scores=[1.0], kv_bytes=900, n_prompt_room=9)]
    assert summarize(rows)["arms"] == {"shift": {"kv_bytes": 100, "extra_bytes": 0}}
