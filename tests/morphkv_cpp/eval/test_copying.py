"""Copies of a passage of long ago: what documents are made of, and that the demo model copies with recalls."""

import itertools
import re
from contextlib import closing

import pytest

from morphkv_cpp import Archive, Llama, MorphKV
from morphkv_cpp.eval.copying import KINDS, N_BEFORE, N_CUE, QUESTION, build_document, copy, n_read, run
from support.command import run as run_command
from support.tiny import FLASH, QUIET

CONFIG = MorphKV(capacity=96, window=16, interval=32, keep=4, prompt_room=0)
ARMS = ("full", "off", "prompt", "auto", "2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_passage_is_there_once_and_as_far_back_as_is_said(demo_model, kind):
    with closing(Llama(demo_model, vocab_only=True, verbose=False)) as llm:
        n_gap = len(llm.tokenize(b"\n\n", add_bos=False))
        seen = set()
        for i in range(3):
            document = build_document(llm, kind, i, 140, 2500)
            assert document == build_document(llm, kind, i, 140, 2500)
            passage = [*document.question[-N_CUE:], *document.passage]
            first = len(llm.tokenize(b"", add_bos=True)) + N_BEFORE + n_gap
            assert len(passage) == 140
            assert document.tokens[first : first + 140] == passage
            assert len(document.tokens) == first + 140 + n_gap + 2500
            assert llm.detokenize(document.question).decode().startswith(QUESTION)
            rest = llm.detokenize(document.tokens[first + 140 :]).decode()
            assert llm.detokenize(passage[:40]).decode().strip() not in rest
            seen.add(tuple(passage))
        assert len(seen) == 3


def test_every_token_behind_the_cue_is_rated(tiny_llama):
    with closing(Llama(tiny_llama(), n_ctx=1024, **FLASH)) as llm:
        document = build_document(llm, "prose", 0, 60, 300)
        llm.eval(document.tokens)
        right = copy(llm, document)
        # of a random model, which repeats itself at best
        assert len(right) == 60 - N_CUE
        assert sum(right) < 20
        # the text is the passage, whatever the model would have written
        n = len(document.tokens) + len(document.question)
        assert llm.input_ids[n : n + 43].tolist() == document.passage[:43]


def test_every_passage_is_copied_in_every_arm(tiny_llama):
    found = list(run(tiny_llama(), CONFIG, Archive(), KINDS, [40, 60], 300, 2, ARMS, **QUIET))
    copies = [c for c in found if not isinstance(c, int)]
    keys = [(c.kind, c.n_passage, c.i_document, c.arm) for c in copies]
    assert sorted(keys) == sorted(itertools.product(KINDS, (40, 60), (0, 1), ARMS))
    assert all(len(c.right) == c.n_passage - N_CUE for c in copies)
    # once for all arms of MorphKV and once for the full cache
    n_documents = 2 * len(KINDS)
    assert sum(n for n in found if isinstance(n, int)) == 2 * n_documents * sum(n_read(n, 300) for n in (40, 60))
    assert all(c.n_recalls == 0 for c in copies if c.arm in ("full", "off", "prompt"))
    assert all(c.recall_ms > 0 for c in copies if c.arm == "2" and c.n_recalls > 0)


def test_a_copy_leaves_no_trace(tiny_llama):
    def copies(*arms: str) -> dict[str, list[bool]]:
        found = run(tiny_llama(), CONFIG, Archive(), ["prose"], [60], 400, 1, arms, **QUIET)
        return {c.arm: c.right for c in found if not isinstance(c, int)}

    assert copies("2", "off", "prompt")["off"] == copies("off")["off"]


def evaluate(capsys, *arguments: str) -> tuple[int, str]:
    code, captured = run_command("eval", "copy", *arguments, "-t", "1"), capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.demo
def test_the_demo_model_copies_with_recalls_while_it_writes(capsys, demo_model):
    code, out = evaluate(
        capsys, str(demo_model), "--documents", "2", "--tokens", "140", "--arms", "off,prompt,auto",
        "--require", "auto>=0.85", "--require", "off<0.8",
    )  # fmt: skip
    assert code == 0, out
    assert "all 2 requirements met" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tokens", "16"], "--tokens must be numbers above 16"),
        (["--kinds", "verse"], "--kinds must be some of prose, code, got 'verse'"),
        (["--arms", "often"], 'recall must be "auto", "prompt", "off" or a number above 0'),
        (["--require", "never>=1"], "a requirement must speak of one of"),
        (["--distance", "0"], "--distance and --documents must be at least 1, got 0 and 8"),
    ],
)
def test_what_is_refused(capsys, tiny_llama, arguments, sentence):
    code, out = evaluate(capsys, str(tiny_llama()), *arguments)
    assert code == 1
    assert re.search(sentence, out)
