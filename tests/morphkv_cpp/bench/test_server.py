"""What `morphkv bench server` measures, on a tiny model."""

import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.bench import server as bench
from support.server_process import program

pytestmark = pytest.mark.skipif(not program("llama-server").is_file(), reason="built without llama-server")
TIGHT = MorphKV(capacity=64, window=8, interval=16, prompt_room=0)
FLAGS = ["-t", 1, "--no-warmup"]


def test_a_turn_counts_with_its_neighbours():
    assert bench.around([9, 9, 1, 5, 2, 4, 3, 9], 5) == 3
    assert bench.around([1, 2, 3], 1) == 2


@pytest.mark.parametrize("n_slots", [1, 4])
def test_both_servers_decode_with_as_many_cells(tiny_llama, n_slots):
    seen = []
    ratio, lanes = bench.run_slots(tiny_llama(), TIGHT, 1, seen.append, FLAGS, n_slots)
    own, stock = lanes
    assert ratio.middle == own.rates[0] / stock.rates[0]
    # two turns of two laps, and all of MorphKV's texts went on
    assert [len(prompt) for prompt in own.prompts] == [64 + 2 * 2 * 16] * n_slots
    assert [len(prompt) for prompt in stock.prompts] == [64] * n_slots
    assert seen == ["MorphKV", "stock, as many cells", "stock, as many cells", "MorphKV"]


def test_one_text_goes_on_watched_and_unwatched(tiny_llama, monkeypatch):
    monkeypatch.setattr(bench, "LOOK_SECONDS", 0.001)
    ratio, (watched, unwatched) = bench.run_watched(tiny_llama(), TIGHT, 1, lambda name: None, FLAGS)
    assert ratio.middle == watched.rates[0] / unwatched.rates[0]
    # two turns of each
    assert watched.prompts is unwatched.prompts
    assert [len(prompt) for prompt in watched.prompts] == [64 + 2 * 2 * 32]
    assert watched.watcher.n_looks > 1
    assert unwatched.watcher is None


def test_a_watcher_asks_for_layers_where_something_was_evicted(tiny_llama):
    paths = []
    with bench.Server(tiny_llama(), "-np", 1, *FLAGS, *bench.morphkv_flags(TIGHT)) as server:

        class Told(bench.Server):
            def __init__(self):
                pass

            def ask(self, method, path, body=None):
                paths.append(path)
                return server.ask(method, path, body)

        watcher = bench.Watcher(Told())
        watcher.look()
        prompts = [[1, *range(260, 300)]]
        lane = bench.SlotsLane("a text", server, prompts, 8, 1, goes_on=True)
        for n in (8, 64):
            lane.n_lap = n
            lane.turn()
            for _ in range(3):
                watcher.look()
    assert ["layers=1" in path for path in paths] == [True, *[False] * 4, True, False]
    assert "from=0&" in paths[1]
    assert "from=48&" in paths[4]


def test_a_chat_of_sixty_turns(tiny_llama):
    turns = []
    config = MorphKV(capacity=128, window=16, interval=16, prompt_room=64)
    ratio, seconds = bench.run_chat(tiny_llama(), config, turns.append, FLAGS)
    assert turns == list(range(1, 63))
    assert len(seconds) == 62
    assert ratio > 0
