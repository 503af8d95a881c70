"""Checkpoints: a prompt that leaves the text where it is evicted costs what is new; on tiny models."""

import logging

import pytest

from morphkv_cpp import Archive, Llama, MorphKV, bridge
from morphkv_cpp.cache.checkpoints import N_APART, Checkpoints
from support.tiny import QUIET, count_evaluated, greedy, held, last_logits, some_tokens

N_AGAIN = 128  # tokens that are evaluated again before what is new
SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
N_ANSWER = 50  # evicts all that was recent before
QUESTIONS = [some_tokens(n, seed) for seed, n in enumerate((300, 90, 200, 75))]


# an answer that is evaluated again, as a part of a prompt, recalls nothing as it did while it was written
IN_RAM = Archive("ram", recall="prompt")


@pytest.fixture(params=[None, IN_RAM], ids=["", "ram"])
def open_llm(request, tiny_llama):
    opened = []

    def open_(**options):
        opened.append(Llama(str(tiny_llama()), morphkv=SMALL, archive=request.param, **options, **QUIET))
        return opened[-1]

    yield open_
    for llm in opened:
        llm.close()


def ask(llm, history, question):
    """The history with the question and its answer."""
    prompt = [*history, *question]
    return [*prompt, *greedy(llm, prompt, N_ANSWER)]


def evaluated(llm, monkeypatch, prompt):
    """Tokens that are decoded for a prompt, and the answer."""
    with monkeypatch.context() as patch:
        lengths = count_evaluated(llm, patch)
        answer = greedy(llm, prompt, 1)
    assert (
        sum(lengths) == llm.last_prompt.n_evaluated or llm.archive is not None
    )  # what is decoded again after a recall
    assert len(prompt) - llm.last_prompt.n_cached == llm.last_prompt.n_evaluated
    return llm.last_prompt.n_evaluated, answer


@pytest.fixture
def chat(open_llm):
    """A Llama after four turns, and the text after each."""
    llm, texts = open_llm(), [[]]
    for question in QUESTIONS:
        texts.append(ask(llm, texts[-1], question))
    return llm, texts


class TestWhatIsEvaluated:
    def test_an_answer_asked_for_again(self, chat, monkeypatch):
        llm, texts = chat
        n, answer = evaluated(llm, monkeypatch, [*texts[3], *QUESTIONS[3]])
        assert n == 1
        assert answer == [texts[4][len(texts[3]) + len(QUESTIONS[3])]]

    @pytest.mark.parametrize("i_turn", [1, 2, 3])
    def test_an_edited_message(self, chat, monkeypatch, i_turn):
        llm, texts = chat
        n, _ = evaluated(llm, monkeypatch, [*texts[i_turn], *some_tokens(40, seed=99)])
        assert n <= 40 + N_APART

    def test_an_answer_shown_without_its_beginning(self, chat, monkeypatch):
        """As templates drop what a model thought."""
        llm, texts = chat
        n_prompt = len(texts[3]) + len(QUESTIONS[3])
        rest = [*texts[4][n_prompt + 30 :], *some_tokens(20, seed=99)]
        n, _ = evaluated(llm, monkeypatch, [*texts[4][:n_prompt], *rest])
        assert n == len(rest)

    def test_without_checkpoints_all(self, open_llm, monkeypatch):
        llm = open_llm(ctx_checkpoints=0)
        text = ask(llm, [], QUESTIONS[0])
        assert len(text) > 300
        n, _ = evaluated(llm, monkeypatch, QUESTIONS[0])
        assert n == (300 if llm.archive is None else N_AGAIN + 1)

    def test_after_a_reset_all(self, chat, monkeypatch):
        llm, texts = chat
        llm.reset()
        assert evaluated(llm, monkeypatch, [*texts[3], *QUESTIONS[3]])[0] == len(texts[3]) + len(QUESTIONS[3])

    def test_what_never_was(self, chat, monkeypatch):
        llm, _ = chat
        assert evaluated(llm, monkeypatch, some_tokens(100, seed=98))[0] == 100


class TestTheSameBits:
    def test_as_the_first_time(self, open_llm):
        """Logits behind a question, and its answer, are those of a text that never left it."""
        straight, back = open_llm(), open_llm()
        history = ask(straight, [], QUESTIONS[0])
        assert ask(back, [], QUESTIONS[0]) == history
        ask(back, history, QUESTIONS[2])
        answers = [ask(llm, history, QUESTIONS[1]) for llm in (straight, back)]
        assert answers[0] == answers[1]
        assert (last_logits(straight) == last_logits(back)).all()
        assert held(straight) == held(back)
        for field in ("n_archived", "n_evictions", "n_evicted", "complete_pos", "logical_pos"):
            assert getattr(straight.cache_stats(), field) == getattr(back.cache_stats(), field), field
        for layer in range(2):
            assert (straight.retained(layer) == back.retained(layer)).all()

    def test_after_another_text_an_archive_is_not_believed(self, chat, monkeypatch):
        """The archive is then of the other text; without one, a checkpoint is all there is to a text."""
        llm, texts = chat
        ask(llm, [], some_tokens(400, seed=97))
        n, _ = evaluated(llm, monkeypatch, [*texts[3], *QUESTIONS[3]])
        assert n == (1 if llm.archive is None else len(texts[3]) + len(QUESTIONS[3]))


class TestRoom:
    def test_the_newest_stay(self, open_llm):
        llm = open_llm(ctx_checkpoints=3)
        checkpoints, texts = llm._evals.checkpoints, [[]]
        for question in QUESTIONS:
            texts.append(ask(llm, texts[-1], question))
            assert len(checkpoints) <= 3
        # behind each question; an answer adds less than N_APART
        assert [len(one.ids) for one in checkpoints._all] == [len(text) - N_ANSWER for text in texts[2:]]

    def test_bytes_are_bounded(self, open_llm):
        llm = open_llm()
        checkpoints = llm._evals.checkpoints = Checkpoints(32, max_bytes=1)
        ask(llm, [], QUESTIONS[0])
        assert len(checkpoints) == checkpoints.n_bytes == 0

    def test_they_do_not_grow_with_the_text_but_by_ids(self, open_llm):
        llm = open_llm()
        text = ask(llm, [], some_tokens(2000))
        ask(llm, text, some_tokens(2000, seed=1))
        sizes = [len(one.state) for one in llm._evals.checkpoints._all]
        assert max(sizes) - min(sizes) < 40 * 2 * 2 * 64 * 4 * 4  # cells of two layers
        assert len(sizes) == 2

    @pytest.mark.parametrize("n", [-1, 1.5, True, None])
    def test_a_bad_number_is_refused(self, open_llm, n):
        with pytest.raises(ValueError, match=rf"ctx_checkpoints must be an integer of at least 0, got {n!r}"):
            open_llm(ctx_checkpoints=n)


class TestFailures:
    def test_one_that_cannot_be_made_is_left_out(self, open_llm, monkeypatch, caplog):
        llm = open_llm()

        def fail(*_):
            raise bridge.NativeError("no memory")

        monkeypatch.setattr(bridge, "checkpoint", fail)
        with caplog.at_level(logging.WARNING, "morphkv_cpp"):
            assert len(ask(llm, [], QUESTIONS[0])) == 350
        assert "no checkpoint after 300 tokens: no memory" in caplog.text
        assert len(llm._evals.checkpoints) == 0

    def test_one_that_is_refused_is_forgotten(self, chat, monkeypatch):
        llm, texts = chat
        checkpoints = llm._evals.checkpoints
        with monkeypatch.context() as patch:
            patch.setattr(bridge, "set_checkpoint", lambda *_: (_ for _ in ()).throw(bridge.NativeError("refused")))
            n, _ = evaluated(llm, monkeypatch, [*texts[3], *QUESTIONS[3]])
        assert n == len(texts[3]) + len(QUESTIONS[3])
        assert len(checkpoints) <= 1  # the one of now
