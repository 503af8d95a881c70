"""What an extra installs is asked for by its name."""

import subprocess
import sys

import pytest

from morphkv_cpp.extras import needs_extra
from support import without_extras as without_extras_file


def test_a_missing_library_names_the_extra():
    with (
        pytest.raises(ModuleNotFoundError, match=r"^no_such_library is needed .* pip install 'morphkv_cpp\[bench\]'$"),
        needs_extra("bench"),
    ):
        import no_such_library  # noqa: F401


def test_other_errors_are_left_alone():
    with pytest.raises(ZeroDivisionError), needs_extra("bench"):
        _ = 1 / 0


def without_extras(*arguments) -> subprocess.CompletedProcess:
    """`morphkv ARGUMENTS` where no extra is installed."""
    command = [sys.executable, without_extras_file.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


class TestWithoutExtras:
    def test_a_text_is_written_read_and_shown(self, tiny_llama, tmp_path):
        model, text = tiny_llama(), tmp_path / "text.txt"
        text.write_text("the sea is wide " * 100)
        for command in (
            ["info"],
            ["generate", model, "a", "-n", 8],
            ["read", model, text, "--into", tmp_path / "text.archive"],
            ["show", model, text, "--html", tmp_path / "text.html"],
        ):
            done = without_extras(*command)
            assert done.returncode == 0, (command, done.stderr)

    @pytest.mark.parametrize("command", ["demo", "chat", "serve", "pull", "profile", "selftest", "eval", "bench shape"])
    def test_each_command_tells_how_it_is_used(self, command):
        done = without_extras(*command.split(), "--help")
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout

    def test_measuring_a_shape_names_the_extra(self):
        done = without_extras("bench", "shape")
        assert done.returncode == 1
        assert done.stderr == "error: gguf is needed for this: pip install 'morphkv_cpp[bench]'\n"
