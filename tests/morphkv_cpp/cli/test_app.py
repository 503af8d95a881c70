"""The command line as a person meets it: text, sentences, exit codes."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer

import morphkv_cpp
from morphkv_cpp.cli import generate as cli_generate
from morphkv_cpp.cli.app import app
from support.command import run

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "--prompt-room", "0"]


def sentence(capsys) -> str:
    """What stands on standard error, which is one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


class TestInfo:
    def test_versions_and_libraries_are_shown(self, capsys):
        assert run("info") == 0
        out = capsys.readouterr().out
        assert morphkv_cpp.__version__ in out
        assert "libllama" in out or "llama.dll" in out

    def test_one_object_says_the_same(self, capsys):
        assert run("info", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["version"] == morphkv_cpp.__version__
        assert any(device["name"] == "CPU" for device in found["devices"])

    def test_the_version_alone(self, capsys):
        assert run("--version") == 0
        assert capsys.readouterr().out == f"morphkv {morphkv_cpp.__version__}\n"

    def test_it_is_a_module_too(self, tmp_path):
        command = [sys.executable, "-m", "morphkv_cpp", "--version"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert result.stdout == f"morphkv {morphkv_cpp.__version__}\n"


def test_alone_it_says_what_to_do_next(tmp_path):
    command = [sys.executable, "-m", "morphkv_cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    words = " ".join((done.stdout + done.stderr).split())
    for example in ("morphkv chat demo", "morphkv serve demo", "morphkv pull", "hf:OWNER/REPO:FILE"):
        assert example in words, example


def commands(group: typer.Typer, *path: str) -> Iterator[tuple[str, ...]]:
    for command in group.registered_commands:
        yield (*path, command.name or command.callback.__name__)
    for each in group.registered_groups:
        yield (*path, each.name)
        yield from commands(each.typer_instance, *path, each.name)


@pytest.mark.parametrize("path", [(), *(path for path in commands(app) if path != ("rpc-server",))])
def test_h_is_help(capsys, path):
    assert run(*path, "-h") == 0
    assert f"{' '.join(path)} [OPTIONS]" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(sys.platform == "win32", reason="bash")
@pytest.mark.parametrize(
    "words, wanted, hidden",
    [("morphkv ", "eval", "remember"), ("morphkv bench ", "growth", "old"), ("morphkv bench growth --s", "--soak", "")],
)
def test_shells_complete_commands_and_options(tmp_path, words, wanted, hidden):
    script = "import sys; sys.argv = ['morphkv']; from morphkv_cpp.cli.app import main; main()"
    asked = {"_MORPHKV_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    command = [sys.executable, "-c", script]
    found = subprocess.run(
        command, env={**os.environ, **asked}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert wanted in found.stdout.split()
    assert hidden not in found.stdout.split()


class TestMistakes:
    def test_a_missing_model_is_a_sentence(self, capsys):
        assert run("generate", "nothing.gguf", "x") == 1
        assert sentence(capsys) == "error: MODEL must be a GGUF file, 'demo' or hf:OWNER/REPO:FILE, got 'nothing.gguf'"

    def test_a_setting_out_of_range_is_a_sentence(self, capsys, tiny_llama):
        assert run("generate", str(tiny_llama()), "x", "--capacity", "20") == 1
        assert sentence(capsys) == "error: capacity must exceed keep + window, got 20 with 4 + 32"

    def test_a_file_that_is_no_model_is_a_sentence(self, capfd, tmp_path):
        path = tmp_path / "model.gguf"
        path.write_bytes(b"no model at all")
        assert run("generate", str(path), "x") == 1
        last = capfd.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert str(path) in last

    def test_an_unknown_option_is_told(self, capsys):
        assert run("info", "--nothing") == 2
        assert "--nothing" in capsys.readouterr().err

    def test_no_command_shows_the_commands(self, capsys):
        run()
        out = "".join(capsys.readouterr())
        assert all(name in out for name in ("demo", "generate", "chat", "info", "eval", "bench", "texts"))
        assert "remember" not in out


class TestGenerate:
    def test_a_long_text_stays_within_its_cells(self, capsys, tiny_llama):
        arguments = ["--predict", "300", "--ignore-eos", "--seed", "1", "-t", "1", *TIGHT]
        assert run("generate", str(tiny_llama()), "abc", *arguments) == 0
        captured = capsys.readouterr()
        assert len(captured.out) > 100
        assert "300 written" in captured.err
        # 4 + 299 tokens decoded: the 80th fills the cells, then every 16th cuts
        assert "79 of 80 cells in use; 14 evictions" in captured.err

    def test_the_same_seed_gives_the_same_text(self, capsys, tiny_llama):
        texts = []
        for seed in ("1", "1", "2"):
            assert run("generate", str(tiny_llama()), "abc", "-n", "60", "-s", seed, "-t", "1", *TIGHT) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] != texts[2]

    def test_stock_has_a_cache_that_ends(self, capsys, tiny_llama):
        arguments = ["--stock", "--ctx-size", "256", "--ignore-eos", "--seed", "1", "-t", "1"]
        assert run("generate", str(tiny_llama()), "abc", *arguments) == 0
        err = capsys.readouterr().err
        assert "n_ctx=256 is full" in err
        assert "evictions" not in err

    @pytest.mark.parametrize(
        "ignored", [["--capacity", "64"], ["--prompt-room=0", "--archive", "ram"], ["--policy", "morphkv"]]
    )
    def test_stock_refuses_what_it_would_ignore(self, capsys, tiny_llama, ignored):
        assert run("generate", str(tiny_llama()), "abc", "--stock", *ignored) == 1
        names = ", ".join(word.partition("=")[0] for word in ignored if word.startswith("--"))
        assert f"which {names} would set" in sentence(capsys)

    def test_a_prompt_that_leaves_no_place_is_a_sentence(self, capsys, tiny_llama):
        assert run("generate", str(tiny_llama()), "ab" * 300, "--stock", "--ctx-size", "256", "-t", "1") == 1
        assert "1..255 tokens in this context, got " in sentence(capsys)

    def test_a_prompt_of_any_length_is_read(self, capsys, tiny_llama):
        assert run("generate", str(tiny_llama()), "ab" * 300, "-n", "5", "--ignore-eos", "-t", "1", *TIGHT) == 0
        assert "5 written" in sentence(capsys)

    def test_a_dash_reads_the_prompt_from_standard_input(self, capsys, monkeypatch, tiny_llama):
        monkeypatch.setattr(sys, "stdin", io.StringIO("abcabc"))
        assert run("generate", str(tiny_llama()), "-", "-n", "1", "-t", "1") == 0
        n_prompt = int(capsys.readouterr().err.split(" prompt tokens")[0].split()[-1])
        assert n_prompt >= 6

    def test_ctrl_c_leaves_the_statistics_and_no_traceback(self, capsys, monkeypatch, tiny_llama):
        def interrupted(*arguments, **options):
            yield 70
            raise KeyboardInterrupt

        monkeypatch.setattr(cli_generate, "write", interrupted)
        assert run("generate", str(tiny_llama()), "abc", "-t", "1") == 130
        err = capsys.readouterr().err
        assert "1 written" in err
        assert "Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_a_running_command_at_once(tiny_llama, tmp_path):
    code = "import sys; from morphkv_cpp.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "generate", str(tiny_llama()), "abc", "--ignore-eos", "-t", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # elsewhere: the repository's own folder morphkv_cpp would be found first
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as child:
        assert child.stdout.read(20)  # it is writing
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "written" in err
    assert "Traceback" not in err
