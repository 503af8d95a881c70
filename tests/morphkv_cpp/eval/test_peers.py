"""kvpress's caches: the same weights, never more cells than are allowed, and what each press keeps."""

import sys
from contextlib import ExitStack, closing

import numpy as np
import pytest

from morphkv_cpp import Llama
from morphkv_cpp.errors import UnsupportedError
from morphkv_cpp.eval import suite_arms
from morphkv_cpp.eval.peers import PeerAtCut, PeerReader, drawn, open_peer
from morphkv_cpp.eval.readers import open_for_logits, open_reader
from morphkv_cpp.eval.suite import Part, Results, Suite, log_softmax
from morphkv_cpp.eval.suite_arms import parse_suite_arms
from morphkv_cpp.eval.tasks import TASKS, Question, Tokens
from support.command import run
from support.tiny import QUIET, last_logits, some_tokens

UNCUT, *METHODS = suite_arms.PEERS["kvpress"]
N_CELLS, INTERVAL = 256, 64
CAPACITY = N_CELLS - INTERVAL
TOKENS = some_tokens(600)
N_CUT = 600 // INTERVAL * INTERVAL  # read before the last cut
QUESTION = Question(some_tokens(9, seed=1), ("x",), n_answer=12)
FORCED = Question(some_tokens(9, seed=1), forced=tuple(some_tokens(130, seed=2)))
FULL = parse_suite_arms("full", N_CELLS, INTERVAL)[0]


@pytest.fixture(scope="module")
def kvpress():
    return pytest.importorskip("kvpress", reason="peers need kvpress, transformers and torch")


@pytest.fixture
def opened(kvpress, tiny_llama):
    """Opens readers, which are closed in the end: opened("snapkv")."""
    with ExitStack() as stack:

        def open_it(method: str, n_prompt: int = 0, **shape) -> PeerReader:
            (arm,) = parse_suite_arms(f"kvpress/{method}", N_CELLS, INTERVAL)
            return stack.enter_context(closing(open_peer(tiny_llama(**shape), arm, n_prompt, **QUIET)))

        yield open_it


def kept(reader: PeerReader, tokens: list[int]) -> np.ndarray:
    """Positions of the cells, (n_heads, n_cells): in the first layer a key tells its token and position."""
    held = reader.cache.layers[0].keys[0].numpy()
    reader.reset()
    reader._forward(tokens, 1)
    everything = reader.cache.layers[0].keys[0].numpy()
    distance = np.abs(held[:, :, None] - everything[:, None]).max(axis=-1)
    assert distance.min(axis=-1).max() < 1e-4
    return distance.argmin(axis=-1)


def test_a_missing_extra_is_named(capsys, monkeypatch, tiny_llama, tmp_path):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    out = tmp_path / "r.jsonl"
    for arguments in (["--peer", "kvpress"], ["--arms", "full,kvpress/h2o"]):
        assert run("eval", "suite", str(tiny_llama()), "--cells", "256", "--out", str(out), *arguments) == 1
        assert capsys.readouterr().err == "error: kvpress is needed for this: pip install 'morphkv_cpp[peers]'\n"
    assert not out.exists()


def test_a_token_is_drawn_as_llama_cpp_draws_it(tiny_llama):
    with closing(Llama(tiny_llama(), n_ctx=256, **QUIET)) as llm:
        llm.eval(TOKENS[:50])
        row = last_logits(llm)
        found = []
        for draw in (lambda sampler: sampler.sample(llm._ctx), lambda sampler: drawn(sampler.sampler, row)):
            llm.set_seed(1)
            sampler = llm._init_sampler(temp=0.8)
            found.append([draw(sampler) for _ in range(20)])
            sampler.close()
        assert found[0] == found[1]
        assert len(set(found[0])) > 1
        greedy = llm._init_sampler(temp=0.0)
        assert drawn(greedy.sampler, row) == row.argmax()
        greedy.close()


@pytest.mark.parametrize("method", [UNCUT, *METHODS])
def test_before_anything_is_cut_it_is_the_full_cache(tiny_llama, opened, method):
    reader = opened(method)
    tokens = TOKENS[:CAPACITY]
    with closing(open_for_logits(tiny_llama(), FULL, 900, INTERVAL, **QUIET)) as full:
        expected = np.concatenate(
            [full.logits(tokens[start : start + INTERVAL]).copy() for start in range(0, CAPACITY, INTERVAL)]
        )
    # llama.cpp has K and V in f16
    assert np.abs(log_softmax(reader.logits(tokens)) - log_softmax(expected)).max() < 0.02
    assert reader.n_cells == CAPACITY


def test_an_answer_is_that_of_the_full_cache(tiny_llama, opened):
    reader = opened("snapkv")
    with closing(open_reader(tiny_llama(), FULL, 900, 0, **QUIET)) as full:
        for question in (QUESTION, FORCED):
            full.read(TOKENS[:50])
            reader.read(TOKENS[:50])
            assert reader.answer(question) == full.answer(question)


@pytest.mark.parametrize("n_prompt", [0, 1])
def test_one_is_never_cut(opened, n_prompt):
    reader = opened(UNCUT, n_prompt)
    reader.read(TOKENS)
    reader.answer(FORCED)
    assert reader.n_cells == len(TOKENS) + len(FORCED.tokens) + len(FORCED.forced) - 1


@pytest.mark.parametrize("method", METHODS)
def test_there_are_never_more_cells_than_are_allowed(opened, method):
    reader = opened(method)
    reader.read(TOKENS)
    reader.answer(FORCED)
    reader.answer(Question(QUESTION.tokens, n_answer=100, temp=0.8))
    assert reader.n_most == N_CELLS
    # 2 layers, K and V, 2 heads of 32 numbers of 2 bytes
    assert reader.sizes(0, 0.0) == {"kv_bytes": N_CELLS * 2 * 2 * 2 * 32 * 2, "extra_bytes": 0}


@pytest.mark.parametrize("method", METHODS)
def test_pieces_change_nothing(opened, method):
    reader = opened(method)
    whole = reader.logits(TOKENS)
    reader.reset()
    pieces = [reader.logits(TOKENS[start : start + 50]) for start in range(0, 500, 50)]
    pieces += [reader.logits([token]) for token in TOKENS[500:]]
    # sums in another order
    assert np.abs(np.concatenate(pieces) - whole).max() < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_leaves_no_trace(opened, method):
    for reader in (opened(method), opened(method, n_prompt=700)):
        reader.read(TOKENS)
        said = []
        for _ in range(2):
            with reader.taken_back():
                said.append(reader.answer(QUESTION))
        assert said[0] == said[1]


def test_streaming_keeps_the_first_and_the_newest(opened):
    reader = opened("streaming")
    reader.read(TOKENS)
    expected = [*range(4), *range(N_CUT - CAPACITY + 4, len(TOKENS))]
    assert [heads.tolist() for heads in kept(reader, TOKENS)] == [expected] * 2


@pytest.mark.parametrize(
    "method, held", [("snapkv", range(N_CUT - 32, N_CUT)), ("expected", range(4)), ("h2o", range(0))]
)
def test_presses_keep_the_order_and_what_is_newer_than_the_cut(opened, method, held):
    reader = opened(method)
    reader.read(TOKENS)
    for positions in kept(reader, TOKENS):
        assert np.all(np.diff(positions) > 0)
        assert set(held) <= set(positions.tolist())
        assert positions[CAPACITY:].tolist() == list(range(N_CUT, 600))
        assert positions[:CAPACITY].tolist() != [*range(4), *range(N_CUT - CAPACITY + 4, N_CUT)]


def test_h2o_divides_by_the_queries_that_saw_a_cell(kvpress):
    import torch

    from morphkv_cpp.eval.peer_presses import press_of

    # two queries, at the positions 2 and 3
    seen = torch.tensor([[[[0.5, 0.5, 0.5, 0.0], [0.5, 0.5, 0.5, 0.5]]]])
    scores = press_of("h2o").score(None, None, torch.zeros(1, 1, 4, 8), None, seen, {})
    assert scores.flatten().tolist() == [0.5] * 4


def test_expected_queries_come_behind_the_newest_token(kvpress):
    import torch

    from morphkv_cpp.eval.peer_presses import press_of

    asked = []

    class Module:
        head_dim = 4

        def rotary_emb(self, _mu, positions):
            asked.extend(positions[0].tolist())
            return torch.ones(1, len(asked), 4), torch.zeros(1, len(asked), 4)

    press = press_of("expected")
    press.n_before = 1000
    press.apply_avg_rope(Module(), torch.zeros(1, 1, 4), None, 64)
    assert asked == list(range(1064, 1064 + 512))


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_is_cut_when_the_question_has_voted(opened, method):
    reader = opened(method, n_prompt=700)
    assert isinstance(reader, PeerAtCut)
    reader.read(TOKENS)
    reader._begin(QUESTION)
    assert reader.n_cells == CAPACITY
    assert reader.n_most == 609
    for positions in kept(reader, [*TOKENS, *QUESTION.tokens]):
        assert np.all(np.diff(positions) > 0)
        assert positions[-1] == 608


def test_a_short_prompt_is_not_cut(tiny_llama, opened):
    reader = opened("h2o", n_prompt=100)
    reader.read(TOKENS[:100])
    with closing(open_reader(tiny_llama(), FULL, 900, 0, **QUIET)) as full:
        full.read(TOKENS[:100])
        assert reader.answer(QUESTION) == full.answer(QUESTION)
    assert reader.n_most < CAPACITY


def test_a_model_that_transformers_cannot_read_is_named(opened):
    with pytest.raises(UnsupportedError, match="transformers cannot read this model of architecture qwen2vl"):
        opened("h2o", architecture="qwen2vl", rope_sections=(8, 4, 4, 0))


def test_results_of_peers_are_lines_as_those_of_others(kvpress, tiny_llama, tmp_path):
    arms = parse_suite_arms("full,shift,kvpress/streaming,kvpress/h2o", N_CELLS, INTERVAL)
    parts = [Part(TASKS[name], 600, 1) for name in ("perplexity", "copy", "facts-cut")]
    results = Results(tmp_path / "r.jsonl")
    Suite(tiny_llama(), arms, parts, INTERVAL, **QUIET).run(results)
    assert [(row["task"], row["arm"]) for row in results.rows] == [
        (part.task.name, arm.name) for part in parts for arm in arms
    ]
    assert len(results.keys) == 12
    sizes = {row["arm"]: row["kv_bytes"] for row in results.rows if row["task"] == "perplexity"}
    assert sizes["kvpress/streaming"] == sizes["kvpress/h2o"] == sizes["shift"]
    kl = {row["arm"]: row["kl"] for row in results.rows if "kl" in row}
    assert 0 == kl["full"] < kl["kvpress/h2o"] != kl["kvpress/streaming"]


@pytest.mark.demo
@pytest.mark.slow
def test_the_demo_model_has_the_same_weights(kvpress, demo_model):
    (arm,) = parse_suite_arms("kvpress/streaming", 768, INTERVAL)
    with closing(open_peer(demo_model, arm, 0, **QUIET)) as reader:
        tokens = TASKS["perplexity"].make(Tokens(reader.llm), 0, 512).tokens
        ours = log_softmax(reader.logits(tokens)[:-1])[np.arange(511), tokens[1:]]
    with closing(open_for_logits(demo_model, FULL, 900, 512, **QUIET)) as full:
        theirs = log_softmax(full.logits(tokens)[:-1])[np.arange(511), tokens[1:]]
    # llama.cpp rounds activations to 8 bits
    assert abs((ours - theirs).mean()) < 0.02
