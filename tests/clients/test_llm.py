"""Simon Willison's llm, by its command line, with the configuration that docs/clients.md shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm", reason="needs llm: pip install 'morphkv_cpp[clients]'")

RECIPE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"


@pytest.fixture
def run(server, tmp_path):
    recipe = RECIPE.read_text(encoding="utf-8")
    settings = re.search(r"```yaml\n(.*?)```", recipe, re.DOTALL)[1].replace("http://127.0.0.1:8080", server.url)
    (tmp_path / "extra-openai-models.yaml").write_text(settings, encoding="utf-8")
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("keys", "set", "morphkv", "--value", "none")
    return call


def test_a_chat_goes_on_from_the_cache(server, run):
    limits = ["-o", "max_tokens", "40", "-o", "temperature", "0"]
    assert run("-m", "morphkv", "-s", "You speak of Lisbon.", *limits, "What about the trams?").strip()
    for turn in range(20):
        before = server.metrics()["llamacpp:prompt_tokens_cached_total"]
        assert run("-c", *limits, f"{turn}: and what about the old tiles there?").strip()
        n_cached = server.metrics()["llamacpp:prompt_tokens_cached_total"] - before
        n_tokens = max(slot.get("n_prompt_tokens", 0) for slot in server.get("/slots"))
        # an answer, a question and an answer of a hundred tokens each at most, as the tiny model has letters
        assert n_tokens - n_cached < 300, turn
    assert n_tokens > 1500
