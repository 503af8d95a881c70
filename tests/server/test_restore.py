"""Going back by the archive in llama-server: edits far back, and beginnings that change, cost what is new."""

import pytest

from support.tiny import some_tokens

FLAGS = ["--morphkv", "--morphkv-capacity", 128, "--morphkv-window", 8, "--morphkv-interval", 8]
FLAGS += ["--morphkv-prompt-room", 0, "--morphkv-archive", "ram", "-np", 1, "--cache-ram", 0, "--metrics"]
TEXT = some_tokens(1500)
EDIT = some_tokens(40, seed=9)
N_AGAIN = 128  # tokens that are evaluated again before what is new


@pytest.fixture
def server(start_server, tiny_llama):
    return start_server(tiny_llama(), *FLAGS, "--ctx-checkpoints", 0)


def timings(server, prompt, n_predict=4):
    return server.complete(prompt, n_predict)["timings"]


@pytest.mark.parametrize("n_common", [300, 700, 1300])
def test_an_edit_costs_the_edit(server, n_common):
    timings(server, TEXT)
    took = timings(server, [*TEXT[:n_common], *EDIT])
    assert took["cache_n"] == took["restored_n"] == n_common - N_AGAIN
    assert took["prompt_n"] == N_AGAIN + len(EDIT)


def test_the_oldest_part_left_out(server):
    timings(server, TEXT)
    took = timings(server, [*TEXT[:50], *TEXT[250:], *EDIT])
    assert took["prompt_n"] == N_AGAIN + len(EDIT)
    assert took["cache_n"] == took["restored_n"] == 50 + len(TEXT) - 250 - N_AGAIN


@pytest.mark.parametrize("n_new", [1, 40, 300])
def test_something_else_in_its_place(server, n_new):
    timings(server, TEXT)
    took = timings(server, [*TEXT[:20], *some_tokens(n_new, seed=31), *TEXT[220:], *EDIT])
    assert took["prompt_n"] == n_new + N_AGAIN + len(EDIT)


def test_the_text_goes_on(server):
    """And is the prompt, token by token: the next turn costs its own."""
    text = list(TEXT)
    timings(server, text)
    for i in range(6):
        text = [*text[:30], *text[130:], *some_tokens(150, seed=40 + i)]
        assert timings(server, text)["restored_n"] > 1000
        text += some_tokens(10, seed=60 + i)
        took = timings(server, text)
        assert took["prompt_n"] <= 10
        assert "restored_n" not in took
    assert server.metrics()["llamacpp:morphkv_restored_tokens_total"] > 6000


def test_another_text_is_evaluated(server):
    timings(server, TEXT)
    other = [*TEXT[:20], *some_tokens(900, seed=50)]
    took = timings(server, other)
    assert took["prompt_n"] >= len(other) - 20
    assert "restored_n" not in took


def test_a_checkpoint_goes_before(start_server, tiny_llama):
    server = start_server(tiny_llama(), *FLAGS)
    timings(server, TEXT[:700], 30)
    timings(server, TEXT, 30)
    took = timings(server, [*TEXT[:700], *EDIT])
    assert "restored_n" not in took
    assert took["cache_n"] > 700 - N_AGAIN


@pytest.mark.parametrize("flags", [["--no-morphkv-restore"], ["--no-morphkv-archive"]])
def test_not_without(start_server, tiny_llama, flags):
    server = start_server(tiny_llama(), *FLAGS, "--ctx-checkpoints", 0, *flags)
    timings(server, TEXT)
    took = timings(server, [*TEXT[:700], *EDIT])
    assert (took["cache_n"], took["prompt_n"]) == (0, 740)
    assert server.get("/props")["morphkv"].get("restore") in (False, None)
