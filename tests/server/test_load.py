"""Under load MorphKV's answers differ from a quiet server's no more often than stock's, and memory rises no more.

MORPHKV_LOAD_ANSWERS: answers in each row, 300 by default, of the demo model a fifth of them.
"""

import os

import pytest

from morphkv_cpp.eval import prose_sections
from support.server_load import Work, measure, noise, quiet_answers
from support.server_process import TIGHT
from support.server_process import some_tokens as tokens

pytestmark = pytest.mark.slow

N_ANSWERS = int(os.environ.get("MORPHKV_LOAD_ANSWERS", "300"))
N_SLOTS, N_CLIENTS = 4, 12
LENGTHS = [5, 20, 60, 120, 170, 190, 230, 300, 500]
# stock's slots hold the longest chat
STOCK = ["-c", N_SLOTS * 1536, "--flash-attn", "on"]
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
SLACK_MIB = 32  # what glibc's default arenas are off by from run to run


def run(start_server, model, work, n_ubatch, env):
    """(name, measured) of MorphKV and of stock, each in a process of its own."""
    for name, flags in (("MorphKV", TIGHT), ("stock", STOCK)):
        flags = [*flags, "-np", N_SLOTS, "-ub", n_ubatch, "--cache-ram", 16]
        quiet = start_server(model, *flags)
        expected = quiet_answers(quiet, work)
        quiet.stop()
        server = start_server(model, *flags, env=env)
        row = measure(server, work, expected)
        assert not row.failures, row.failures
        server.stop()
        yield name, row


def compare(start_server, model, what, work, n_ubatch, env):
    rows = {}
    for name, row in run(start_server, model, work, n_ubatch, env):
        rows[name] = row
        print(
            f"\n{what}, -ub {n_ubatch}, {'one arena' if env else 'default arenas'}, {name}: "
            f"{row.n_different} of {row.n_answers} answers differ; MiB after a tenth, half, all of them: "
            f"{row.rss_mib_at(0.1):.0f}, {row.rss_mib_at(0.5):.0f}, {row.rss_mib_at(1.0):.0f}"
        )
    ours, stock = rows["MorphKV"], rows["stock"]
    assert ours.share <= stock.share + noise(ours, stock)
    return ours, stock


def risen_mib(row) -> float:
    return row.rss_mib_at(1.0) - row.rss_mib_at(0.1)


@pytest.mark.parametrize("env", [{}, ONE_ARENA], ids=["default arenas", "one arena"])
@pytest.mark.parametrize("n_ubatch", [1, 512], ids=["token by token", "in batches"])
def test_a_tiny_model(start_server, tiny_llama, n_ubatch, env):
    work = Work([tokens(n, seed) for seed, n in enumerate(LENGTHS)], 40, N_ANSWERS, N_CLIENTS, 1200)
    ours, stock = compare(start_server, tiny_llama(), "tiny model", work, n_ubatch, env)
    assert risen_mib(ours) <= max(risen_mib(stock), 0) + SLACK_MIB


@pytest.mark.demo
@pytest.mark.parametrize("n_ubatch", [1, 512], ids=["token by token", "in batches"])
def test_the_demo_model(start_server, demo_model, demo_tokens, n_ubatch):
    starts = [97 * i for i in range(12)]
    prompts = [demo_tokens[start : start + n] for start, n in zip(starts, [20, 40, 60, 90, 120, 160, 200, 240] * 2)]
    work = Work(prompts, 24, max(1, N_ANSWERS // 5), N_CLIENTS, 300)
    compare(start_server, demo_model, "demo model", work, n_ubatch, ONE_ARENA)


@pytest.fixture
def demo_tokens(start_server, demo_model):
    server = start_server(demo_model, *TIGHT, "-np", 1)
    text = "\n\n".join(prose_sections())[:8000]
    ids = server.post("/tokenize", {"content": text}).json()["tokens"]
    server.stop()
    return ids
