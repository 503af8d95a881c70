"""Facts of long ago: what documents are made of, and that the demo model knows them with an archive alone."""

import itertools
import re
from contextlib import closing

import pytest

from morphkv_cpp import Archive, Llama, MorphKV
from morphkv_cpp.eval import facts
from morphkv_cpp.eval.remember import (
    N_FACT_TOKENS,
    N_FACTS,
    asked_facts,
    build_document,
    document_facts,
    filler,
    run,
)
from support.command import run as run_command
from support.tiny import QUIET

CONFIG = MorphKV(capacity=96, window=16, interval=32, keep=4, prompt_room=0)


def kind_of(subject: str) -> str:
    return subject.partition(" of ")[0].split()[-1]


def test_a_document_has_a_fact_of_each_kind_and_no_two_documents_the_same():
    kinds = {fact.answer: kind_of(fact.subject) for fact in facts()}
    seen = set()
    for i in range(24):
        chosen = document_facts(i)
        assert chosen == document_facts(i)
        assert len({kind_of(fact.subject) for fact in chosen}) == N_FACTS
        assert all(kinds[fact.answer] == kind_of(fact.subject) for fact in chosen)
        seen.add(tuple(chosen))
    assert len(seen) == 24


def test_the_prose_has_no_end_and_is_shuffled_anew():
    first = list(itertools.islice(filler(3), 2000))
    assert first == list(itertools.islice(filler(3), 2000)) != list(itertools.islice(filler(4), 2000))
    own = list(itertools.islice(filler(0, "One. Two. Three."), 9))
    assert [sorted(own[i : i + 3]) for i in (0, 3, 6)] == [["One.", "Three.", "Two."]] * 3


def test_facts_stand_at_the_start(demo_model):
    with closing(Llama(demo_model, vocab_only=True, verbose=False)) as llm:
        for i in range(3):
            document = build_document(llm, i, 3000)
            assert len(document.tokens) == 3000
            begin = llm.detokenize(document.tokens[:N_FACT_TOKENS]).decode()
            rest = llm.detokenize(document.tokens[N_FACT_TOKENS:]).decode()
            assert all(fact.line in begin and fact.line not in rest for fact in document.facts)


def test_questions_are_spread_over_documents():
    asked = [asked_facts(i, 24, 150) for i in range(24)]
    assert sum(map(len, asked)) == 150
    assert {len(of_document) for of_document in asked} == {6, 7}
    assert all(len(set(of_document)) == len(of_document) for of_document in asked)


def test_every_question_is_asked_at_every_length_of_every_cache(tiny_llama):
    arms = ("recall", "off", "full")
    found = list(run(tiny_llama(), CONFIG, Archive(), [700, 1100], 2, 6, arms, **QUIET))
    assert sum(n for n in found if isinstance(n, int)) == 2 * 2 * 1100
    asked = [a for a in found if not isinstance(a, int)]
    assert {(a.i_document, a.n_tokens, a.arm) for a in asked} == set(itertools.product((0, 1), (700, 1100), arms))
    assert len(asked) == 6 * 2 * 3
    assert all((a.recall_ms > 0) == (a.arm == "recall") for a in asked)
    with pytest.raises(ValueError, match=r"questions must be in 1\.\.8 x documents, got 17"):
        next(run(tiny_llama(), CONFIG, Archive(), [700], 2, 17, **QUIET))


def remember(capsys, *arguments: str) -> tuple[int, str]:
    code, captured = run_command("eval", "memory", *arguments, "-t", "1"), capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.demo
def test_the_demo_model_remembers_with_an_archive_alone(capsys, demo_model):
    code, out = remember(
        capsys, str(demo_model), "--documents", "2", "--questions", "16", "--tokens", "2560", "--archive-type", "q8_0",
        "--require", "recall>=0.93", "--require", "off<=0.4",
    )  # fmt: skip
    assert code == 0, out
    assert "all 2 requirements met" in out


def test_a_question_leaves_no_trace(tiny_llama):
    """Each is answered as if it were the only one."""
    asked = [a for a in run(tiny_llama(), CONFIG, Archive(), [700], 1, 4, **QUIET) if not isinstance(a, int)]
    alone = [a for a in run(tiny_llama(), CONFIG, Archive(), [700], 1, 4, ("off",), **QUIET) if not isinstance(a, int)]
    assert [a.answer for a in asked if a.arm == "off"] == [a.answer for a in alone]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tokens", "512"], "--tokens must be numbers above 512"),
        (["--arms", "recall,recency"], "--arms must be some of recall, off and full"),
        (["--require", "recency>=1"], "a requirement must speak of one of"),
        (["--recall-share", "2"], r"share must be in \(0, 1\], got 2"),
    ],
)
def test_what_is_refused(capsys, tiny_llama, arguments, sentence):
    code, out = remember(capsys, str(tiny_llama()), *arguments)
    assert code == 1
    assert re.search(sentence, out)
