"""The recipes of the pages run as they stand, but for the address."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
URL = "http://127.0.0.1:8080"


def recipes() -> list:
    found = []
    for page in ("clients.md", "server.md"):
        for code in re.findall(r"(?ms)^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8")):
            if URL in code:
                package = re.search(r"^(?:from|import) (\w+)", code, re.MULTILINE)[1]
                found.append(pytest.param(package, code, id=f"{page}-{package}"))
    return found


@pytest.mark.parametrize(("package", "code"), recipes())
@pytest.mark.filterwarnings("ignore")
def test_it_runs_and_prints_an_answer(server, capsys, package, code):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'morphkv_cpp[clients]'")
    code = re.sub(r"(create|invoke|completion)\(", r"\1(max_tokens=8, ", code) if package == "openai" else code
    exec(compile(code.replace(URL, server.url), package, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_there_is_one_for_each_package():
    assert {recipe.values[0] for recipe in recipes()} == {"openai", "langchain_openai", "litellm"}
