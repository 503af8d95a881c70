"""What a real model answers from a text that another process has read.

The page that a question asks for comes back, and is read again beside the others that do: the model then tells 40 facts
in a few forms apart as well as with nothing but the facts in a full cache.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import time

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval import facts
from morphkv_cpp.eval.recall import N_ANSWER_TOKENS, QUESTION, first_word
from morphkv_cpp.eval.remember import filler

pytestmark = [pytest.mark.demo, pytest.mark.slow]

CONFIG = MorphKV(capacity=1024)
N_TOKENS = int(os.environ.get("MORPHKV_READ_TOKENS", "60000"))
N_QUESTIONS = 40


def answer(llm, prompt):
    written = itertools.islice(llm.generate(prompt, temp=0.0), N_ANSWER_TOKENS)
    return first_word(llm.detokenize(list(written)).decode(errors="ignore"))


def question(llm, fact, add_bos=True):
    return llm.tokenize(QUESTION.format(subject=fact["subject"]).encode(), add_bos=add_bos)


def came_back(recalls, fact):
    passages = [passage.casefold() for recall in recalls for source in recall.sources for passage in source.passages]
    return any(fact["subject"].casefold() in passage and fact["answer"] in passage for passage in passages)


def ask_all(model, file, chosen):
    """Answers, whether each fact came back, and the seconds from opening the file to the first answer."""
    # the weights are in memory: what is timed is the file
    with Llama(model, morphkv=CONFIG, n_threads=2, verbose=False) as warm:
        warm.eval(question(warm, chosen[0]))
        n_bytes = warm.cache_stats().kv_bytes
    answers, found, first_s = [], [], 0.0
    options = {"morphkv": CONFIG, "ctx_checkpoints": 0, "n_threads": 2, "verbose": False}
    start_s = time.perf_counter()
    with Llama(model, archive=[file], **options) as llm:
        for fact in chosen:
            llm.reset()
            answers.append(answer(llm, question(llm, fact)))
            first_s = first_s or time.perf_counter() - start_s
            found.append(came_back(llm.last_recalls, fact))
        assert llm.cache_stats().kv_bytes == n_bytes
    return answers, found, first_s


def in_sight(model, chosen):
    """With all facts, and nothing else, in a full cache."""
    text = "\n\n".join(fact["line"] for fact in chosen)
    with Llama(model, n_ctx=4096, n_threads=2, verbose=False) as llm:
        prefix = llm.tokenize(text.encode())
        return [answer(llm, [*prefix, *question(llm, fact, add_bos=False)]) for fact in chosen]


def test_forty_questions_from_a_fresh_process(demo_model, tmp_path):
    rng = random.Random(0)
    chosen = [
        {"subject": fact.subject, "answer": fact.answer.casefold(), "line": fact.line}
        for fact in rng.sample(list(facts()), N_QUESTIONS)
    ]
    with Llama(demo_model, morphkv=CONFIG, n_threads=2, verbose=False) as llm:
        parts, n_tokens, n_stated = [], 0, 0
        for sentence in filler(0):
            if n_tokens >= N_TOKENS:
                break
            if n_stated < N_QUESTIONS and n_tokens >= (n_stated + 0.5) * N_TOKENS / N_QUESTIONS:
                parts.append(f"\n\n{chosen[n_stated]['line']}\n\n")
                n_stated += 1
            parts.append(f" {sentence}")
            n_tokens += len(llm.tokenize(parts[-1].encode(), add_bos=False))
        found = llm.read(text="".join(parts), into=tmp_path / "text.archive", progress=False)
    assert found.n_tokens >= 0.98 * N_TOKENS

    script = (
        f"import json, sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_attached_facts as facts\n"
    )
    script += "print(json.dumps(facts.ask_all(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))"
    command = [sys.executable, "-c", script, str(demo_model), found.path, json.dumps(chosen)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    answers, are_back, first_s = json.loads(done.stdout)

    seen = in_sight(demo_model, chosen)
    wanted = [fact["answer"] for fact in chosen]
    n_right = sum(a == b for a, b in zip(answers, wanted, strict=True))
    n_seen = sum(a == b for a, b in zip(seen, wanted, strict=True))
    print(
        f"{found.n_tokens:,} tokens read in {found.seconds:.0f} s; of {N_QUESTIONS} facts {sum(are_back)} came back, "
        f"{n_right} were answered, with nothing but the facts {n_seen}; the first answer after {first_s:.2f} s"
    )
    assert n_seen > 0.6 * N_QUESTIONS
    assert sum(are_back) >= 0.95 * N_QUESTIONS
    assert n_right >= 0.95 * n_seen
