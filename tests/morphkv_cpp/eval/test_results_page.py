"""Tables of the page of results, from summaries."""

import json

import pytest

from morphkv_cpp.eval.results_page import BEGIN, END, page_part, put_in_page

RUN = {
    "title": "Quick",
    "command": "morphkv eval suite demo",
    "commands": ["morphkv eval suite demo", "morphkv eval suite demo --items 1"],
    "model": "SmolLM2",
    "n_cells": 768,
    "n_threads": 2,
    "peers": {"kvpress": "0.5.5"},
    "machine": {"cpu": "a CPU", "commit": "abc", "python": "3.11"},
}
FIGURES = [
    {"task": "copy", "n_tokens": 1536, "measure": "score", "arm": "full", "mean": 0.975, "error": 0.01, "n": 3},
    {"task": "copy", "n_tokens": 1536, "measure": "score", "arm": "morphkv", "mean": 0.5, "error": None, "n": 1},
    {"task": "perplexity", "n_tokens": 2048, "measure": "nll", "arm": "full", "mean": 3.0, "error": 0.2, "n": 4},
    {
        **{"task": "perplexity", "n_tokens": 2048, "measure": "nll", "arm": "morphkv", "mean": 3.05, "error": 0.2},
        **{"n": 4, "to_full": 0.05, "to_full_error": 0.01, "to_full_n": 4},
    },
]
WORSE = [
    {"task": "copy", "n_tokens": 1536, "measure": "score", "arm": "morphkv", "peer": "shift", "behind": 0.25}
    | {"error": 0.05, "z": 5.0, "n": 3},
    {"task": "copy", "n_tokens": 1536, "measure": "score", "arm": "morphkv", "peer": "random", "behind": 0.1}
    | {"error": None, "z": None, "n": 1},
]
SUMMARY = {"run": RUN, "arms": {"morphkv": {"kv_bytes": 2**20, "extra_bytes": 2**19}}, "figures": FIGURES}


def test_what_is_worse_comes_first():
    part = page_part("quick", SUMMARY | {"worse": WORSE}, has_plot=True)
    assert part.startswith("### Quick\n\n`morphkv eval suite demo`, and 1 more for the same file\n")
    assert "SmolLM2, a CPU, 2 threads" in part
    assert "Python 3.11, kvpress 0.5.5. All" in part
    assert "by at least 3 standard errors: 1 of 2 comparisons" in part
    assert "| copy, 1,536 tokens | `morphkv` | `shift` | 0.250 ± 0.050 | 5.0 | 3 |" in part
    assert "| 0.100 ± ? | ? | 1 |" in part
    assert "](results/quick.svg)" in part
    assert part.index("Worse than a peer") < part.index("| task | items |")


def test_cells_have_errors_and_perplexity_the_paired_one():
    part = page_part("quick", SUMMARY | {"worse": []}, has_plot=False)
    assert "svg" not in part
    assert "| copy, 1,536 tokens | 1 to 3 | 0.97 ± 0.01 | 0.50 ± ? |" in part
    assert "| perplexity, 2,048 tokens (perplexity) | 4 | 20.09 | 21.12 ± 0.21 |" in part
    assert "`morphkv` 1.0 + 0.5" in part


def test_only_what_is_between_the_marks_changes(tmp_path):
    page = tmp_path / "results.md"
    page.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n")
    (tmp_path / "quick.json").write_text(json.dumps(SUMMARY | {"worse": []}))
    (tmp_path / "commands.json").write_text('{"rows": []}')  # of other commands
    text = put_in_page(page, tmp_path)
    assert text.startswith(f"# Before\n{BEGIN}\n\n### Quick\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    page.write_text(text)
    assert put_in_page(page, tmp_path) == text
    page.write_text("# no marks")
    with pytest.raises(ValueError, match="the page must hold"):
        put_in_page(page, tmp_path)
