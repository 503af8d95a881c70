"""The programs in examples/, run as a user runs them, with the demo model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.server_process import ServerProcess

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# The demo model's own template knows no tools. In this one, of llama.cpp's format functionary-v3.2, an answer begins
# with the name of a tool, so that a call that is required begins at once; a small model would talk instead.
TEMPLATE = r"""
{#- >>>all >>>${recipient} #}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
    {%- if message.tool_calls %}
        {%- for tool_call in message.tool_calls %}
            {{- '>>>' + tool_call.function.name + '\n' + tool_call.function.arguments | tojson }}
        {%- endfor %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- for tool in tools or [] %}
    {{- tool.function.name + ': ' + tool.function.description }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n>>>' }}
    {%- if messages[-1].role == 'tool' %}
        {{- 'all\n' }}
    {%- endif %}
{%- endif %}
"""


def run(name: str, *arguments: object, folder: Path, stdin: str = "") -> list[str]:
    """The lines that the example prints."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def numbers(line: str) -> list[int]:
    return [int(word) for word in re.findall(r"\b\d+\b", line)]


def test_each_is_read_at_a_glance():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) == 4
    assert max(lengths.values()) < 60, lengths


@pytest.mark.demo
def test_a_chat_outgrows_its_cache_and_goes_on(demo_model, tmp_path):
    questions = "Tell me about the sea.\nWhat is bread?\nTell me about maps.\nTell me about winter.\n"
    lines = run("endless_chat.py", demo_model, 128, folder=tmp_path, stdin=questions)
    status = [numbers(line) for line in lines if "tokens so far" in line]
    assert len(status) == 4
    n_tokens, n_cells, n_evictions = status[-1]
    assert n_evictions > 0
    assert n_tokens > n_cells
    assert n_cells <= 128 + 128  # capacity + interval

    again = run("endless_chat.py", demo_model, 128, folder=tmp_path, stdin="Thank you.\n")
    assert again[0] == f"[going on with endless.session: 4 turns, {n_tokens} tokens]"
    assert numbers(again[-1])[0] > n_tokens


@pytest.mark.demo
def test_a_fact_comes_back(demo_model, tmp_path):
    read, answer, recalls = run("facts_from_the_archive.py", demo_model, folder=tmp_path)
    n_read, n_evicted, n_archived = numbers(read)
    assert n_read == 4000
    assert n_evicted > 3000
    assert n_archived > 3000
    assert answer == "The code of Anna's bicycle lock is 4711."
    assert numbers(recalls)[0] > 0


@pytest.fixture
def book(tmp_path) -> Path:
    """A fact, and 1,500 tokens of prose behind it."""
    from morphkv_cpp.eval import prose_sections

    path = tmp_path / "book.txt"
    text = "The code of Anna's bicycle lock is 4711.\n\n" + "\n\n".join(prose_sections())
    path.write_text(text[:7000], encoding="utf-8")
    return path


@pytest.mark.demo
def test_a_text_is_shown_by_what_is_kept_of_it(demo_model, book, tmp_path):
    head, *kept = run("what_is_kept.py", demo_model, book, "out.html", folder=tmp_path)
    n_read, n_kept, n_by_all = numbers(head)
    assert n_read > n_kept > 512 > n_by_all >= 4
    assert len(kept) == 8
    assert (tmp_path / "out.html").stat().st_size > 40_000


@pytest.mark.demo
def test_an_agent_calls_its_tool_and_reads_the_result(demo_model, tmp_path):
    pytest.importorskip("openai", reason="the agent is a client of openai's package")
    template = tmp_path / "tools.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    command = [sys.executable, "-m", "morphkv_cpp", "serve", str(demo_model)]
    flags = ["--chat-template-file", template, "--temp", 0]
    server = ServerProcess(demo_model, *flags, log=tmp_path / "log", command=command).start()
    try:
        question = "What is 17 times 23?"
        first, call, second, *answer = run("agent_with_tools.py", question, f"{server.url}/v1", 2, folder=tmp_path)
    finally:
        server.stop()
    n_step, n_prompt, _ = numbers(first)
    assert n_step == 1
    a, b, product = (float(number) for number in re.fullmatch(r"multiply\((\S+), (\S+)\) = (\S+)", call).groups())
    assert a * b == product
    # the second prompt goes on where the first ended, and holds the call and its result
    n_step, n_next, n_cached = numbers(second)
    assert n_step == 2
    assert n_next > n_prompt
    assert n_cached > 0
    assert " ".join(answer).strip()
