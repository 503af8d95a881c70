"""The programs in examples/, run as a user runs them, with the demo model."""

import json
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
    assert len(lengths) == 5
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
    """1,500 tokens of prose, and a fact early in them."""
    from morphkv_cpp.eval import prose_sections

    path = tmp_path / "book.txt"
    first, *others = prose_sections()
    text = "\n\n".join([first, "The code of Anna's bicycle lock is 4711.", *others])
    path.write_text(text[:7000], encoding="utf-8")
    return path


@pytest.mark.demo
def test_a_text_is_shown_by_what_is_kept_of_it(demo_model, book, tmp_path):
    head, *kept = run("what_is_kept.py", demo_model, book, "out.html", folder=tmp_path)
    n_read, n_kept, n_by_all = numbers(head)
    assert n_read >= n_kept > 512 > n_by_all >= 4
    assert len(kept) == 8
    assert (tmp_path / "out.html").stat().st_size > 40_000


@pytest.mark.demo
def test_a_book_is_read_once_and_asked_twice(demo_model, book, tmp_path):
    question = "What is the code of Anna's bicycle lock?"
    read, *first = run("a_book_read_once.py", demo_model, book, question, folder=tmp_path)
    assert re.fullmatch(r"1\d\d\d tokens read in \d+ s, \d+ MiB in .*book\.archive", read)
    again = run("a_book_read_once.py", demo_model, book, question, folder=tmp_path)
    for told, *answer, where in (first, again):
        assert told.startswith("first word ")
        assert " ".join(answer).startswith("The code of Anna's bicycle lock is 4711")
        assert where.startswith(f"looked up in {book.with_suffix('.archive')}: ")
    assert first[1:] == again[1:]


@pytest.fixture
def notebook(demo_model, book):
    """examples/retention.ipynb as its reader would change it: with a model and a text."""
    nbformat = pytest.importorskip("nbformat", reason="notebooks need nbclient and ipykernel")
    pytest.importorskip("nbclient", reason="notebooks need nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="notebooks need nbclient and ipykernel")
    found = nbformat.read(EXAMPLES / "retention.ipynb", as_version=4)
    nbformat.validate(found)
    first = next(cell for cell in found.cells if cell.cell_type == "code")
    for name, path in (("MODEL", demo_model), ("TEXT", book)):
        first.source, n = re.subn(rf"^{name} = .*$", f"{name} = {str(path)!r}", first.source, flags=re.MULTILINE)
        assert n == 1
    return found


def test_a_notebook_in_git_holds_no_outputs():
    cells = json.loads((EXAMPLES / "retention.ipynb").read_text(encoding="utf-8"))["cells"]
    assert len(cells) > 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.demo
def test_a_notebook_shows_the_text_the_map_and_what_came_back(notebook, tmp_path):
    import nbclient

    done = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(pages) == 2
    assert all(page.startswith('<iframe title="Retention"') for page in pages)
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    words = "".join(output.text for output in outputs if output.output_type == "stream")
    n_read, n_kept = numbers(words.splitlines()[0])
    assert n_read >= n_kept > 512
    assert "4711" in words  # recalled, and answered


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
