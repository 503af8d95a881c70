"""README's examples run as they stand, those of 0.1.0 as well, with warnings only where a name is old."""

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDS_OTHERS = ("openai", "rpc_servers")  # a server that runs; tests/server and test_rpc have them


def examples(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", ["README.md", "docs/index.md", "docs/chat.md", "tests/compat/examples_0_1_0.md"])
@pytest.mark.usefixtures("links")
def test_the_examples_run(tiny_llama, tmp_path, monkeypatch, capsys, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").symlink_to(tiny_llama(n_layer=4))
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.simplefilter("ignore", ResourceWarning)  # of files that an example of 0.1.0 leaves open
        for code in examples(ROOT / path):
            if not any(word in code for word in NEEDS_OTHERS):
                exec(compile(code.replace('"model.gguf", ', '"model.gguf", verbose=False, '), path, "exec"), names)
    names["llm"].close()
    if path != "docs/index.md":
        assert "Turn(" in capsys.readouterr().out
        assert (tmp_path / "lisbon.session").is_file()
        assert (tmp_path / "chat.state").is_file()
