"""Sixty recalls leave keys, and perplexity behind them, where one leaves them: the table of native/README.md.

tests/native/llama/test_wear.cpp makes it, from the demo model and 3,361 tokens of Alice; it takes some ten minutes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from morphkv_cpp.eval.texts import fetch_pypi_texts

PROGRAM = Path(os.environ.get("MORPHKV_TEST_PROGRAMS", "")) / "test_wear"
TYPES = ("f16", "bf16", "q8_0", "q5_0", "q4_0")


@pytest.fixture(scope="module")
def table(demo_model, tmp_path_factory) -> dict[tuple[str, int], tuple[float, ...]]:
    """(K type, recalls) -> mean key error, perplexity, that to one recall's, standard error of its logarithm."""
    if not PROGRAM.is_file():
        pytest.skip("MORPHKV_TEST_PROGRAMS names no folder with test_wear")
    try:
        text = fetch_pypi_texts(tmp_path_factory.mktemp("texts"))[0]
    except RuntimeError as error:
        pytest.skip(f"no text: {error}")
    run = subprocess.run([PROGRAM, demo_model, text], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-1000:]
    print(run.stdout)
    rows = [line.split() for line in run.stdout.splitlines()[1:]]
    return {(row[0], int(row[1])): tuple(map(float, row[2:])) for row in rows}


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.parametrize("cache_type", TYPES)
def test_sixty_recalls_are_as_one(table, cache_type):
    error_of_one = table[cache_type, 1][0]
    error, _, ratio, standard_error = table[cache_type, 60]
    assert error <= 1.5 * error_of_one
    assert ratio <= 1 + 2 * standard_error
