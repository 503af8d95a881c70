"""`morphkv chat`: lines of standard input, and a real terminal with its Ctrl-C."""

import io
import os
import re
import subprocess
import sys

import pytest

from morphkv_cpp import Session
from morphkv_cpp.chat.opening import MOST
from morphkv_cpp.cli.chat import N_PREDICT
from morphkv_cpp.cli.dialogue import Dialogue
from support.chats import no_end
from support.command import run

TIGHT = ["--capacity", "128", "--window", "16", "--interval", "16", "--prompt-room", "32", "-t", "1", "--seed", "1"]

# The command, with a model that never ends an answer. It spends its time in a callback, where exceptions are lost.
ENDLESS = """
import sys
from morphkv_cpp import Session
from morphkv_cpp.cli.app import main
from morphkv_cpp.text.tokens import end_tokens
from morphkv_cpp.text.write import BanTokens
from llama_cpp import LogitsProcessorList

def say(self, text, _say=Session.say, **options):
    print("(begun)", flush=True)
    return _say(self, text, logits_processor=LogitsProcessorList([BanTokens(end_tokens(self._llm))]), **options)

Session.say = say
main(sys.argv[1:])
"""


def endless_say(self, text, _say=Session.say, **options):
    return _say(self, text, **options, logits_processor=no_end(self._llm))


@pytest.fixture
def chat(monkeypatch, capsys, tiny_llama):
    """Runs a chat: chat("line", ..., options=[...]) -> exit code, standard output, standard error."""

    def chat_of(*lines: str, options=(), predict="8"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = run("chat", str(tiny_llama()), "--predict", predict, *TIGHT, *options)
        return code, *capsys.readouterr()

    return chat_of


class TestAnswers:
    def test_every_line_is_a_question(self, chat):
        code, out, err = chat("one", "", "two")
        assert code == 0
        # each answer ends its line, whatever the tiny model writes before
        assert out.endswith("\n")
        assert len(re.findall(r"\d+/160 cells \| position \d+ \| ", err)) == 2

    def test_the_same_seed_gives_the_same_chat(self, chat):
        assert chat("one", "two")[1] == chat("one", "two")[1] != chat("one", "two", options=["--seed", "2"])[1]

    def test_a_text_may_begin_with_a_slash(self, chat, monkeypatch):
        asked = []
        monkeypatch.setattr(Session, "say", lambda self, text, **_: asked.append(text) or iter(()))
        chat("//help", "a / b", " /help")
        assert asked == ["/help", "a / b", " /help"]

    def test_options_reach_the_answers(self, chat, monkeypatch):
        said = []
        monkeypatch.setattr(Session, "say", lambda self, text, **options: said.append(options) or iter(()))
        chat("one", options=["--temp", "0.5", "--top-k", "7", "-sys", "abc"])
        assert said[0].items() >= {"max_tokens": 8, "temperature": 0.5, "top_k": 7}.items()
        chat("one", predict="-1")
        assert said[1]["max_tokens"] is None

    def test_ctrl_c_stops_an_answer_and_not_the_chat(self, chat, monkeypatch):
        def interrupted(self, text, **_):
            yield "abc"
            if text == "one":
                raise KeyboardInterrupt

        monkeypatch.setattr(Session, "say", interrupted)
        code, out, err = chat("one", "two")
        assert (code, out) == (0, "abc\nabc\n")
        assert "(stopped)" in err


class TestCommands:
    def test_help_names_them_all(self, chat):
        out = chat("/help")[1]
        names = [*Dialogue.ANSWERS, *Dialogue.COMMANDS]
        assert all(f"/{name}" in out for name in names)
        assert len(out.splitlines()) == len(names)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("/foo", "unknown command /foo: /help lists the commands"),
            ("/", "unknown command /:"),
            ("/load", "/load must name a file"),
            ("/load nothing", "No such file or directory: 'nothing'"),
            ("/save", "/save must name a file where there is no --session"),
            ("/save x", "nothing has been said in this session yet"),
            ("/stats", "nothing has been said in this session yet"),
            ("/retained", "nothing has been said in this session yet"),
            ("/back", "/back needs a /fork before"),
            ("/undo", "nothing has been asked in this session yet"),
            ("/regenerate", "nothing has been answered in this session yet"),
            ("/edit", "/edit must say what to ask instead"),
            ("/edit 0 x", "/edit numbers questions from 1, got 0"),
            ("/edit x", "nothing has been asked in this session yet"),
            ("/system " + "abc " * 200, "the system prompt must have less than capacity - window tokens"),
        ],
    )
    def test_a_mistake_is_a_sentence_and_the_chat_goes_on(self, chat, line, message):
        code, out, err = chat(line, "one")
        assert code == 1
        assert re.search(f"^error: .*{re.escape(message)}", err, re.MULTILINE)
        assert "cells" in err
        assert out

    def test_stats_and_retained_tell_of_the_cache(self, chat):
        _, out, _ = chat("one", "/retained", *["hello"] * 12, "/stats", "/retained", "/retained 0")
        assert "nothing was evicted yet: all of" in out
        assert re.search(r"turns +13\n", out)
        assert re.search(r"cells in use +\d+ of 160\n", out)
        assert re.search(r"last turn: tokens evicted +[1-9]\d*\n", out)
        assert re.search(
            r"layer 1 of 2, [\d,]+ tokens; the newest \d+ are all there\n  head 0 +112 older ones \|.{64}\|\n", out
        )
        assert "layer 0 of 2" in out

    @pytest.mark.parametrize("layer", ["2", "-1", "x"])
    def test_a_layer_that_is_none(self, chat, layer):
        _, _, err = chat(*["hello"] * 12, f"/retained {layer}")
        assert "error: " in err

    def test_a_file_that_cannot_be_written_is_named_as_it_was_given(self, chat):
        code, _, err = chat("one", "/save no/such")
        assert code == 1
        assert "error: [Errno 2] No such file or directory: 'no/such'" in err

    def test_stats_tell_of_recalls(self, chat):
        _, out, _ = chat(*["hello"] * 12, "/stats")
        assert re.search(r"tokens in the archive +[1-9]\d*, [\d.]+ MiB\n", out)
        assert re.search(r"recalls +[1-9]\d*, \d+ tokens over all layers and heads\n", out)
        assert re.search(r"last turn: tokens recalled +\d+\n", out)

    def test_the_last_question_can_be_undone_answered_again_and_changed(self, chat):
        code, out, err = chat(
            "one", "two", "/undo", "/history", "/edit 1 three", "/regenerate", "/edit four", "/history"
        )
        assert code == 0
        first, second = (out.index(f"user 1: {text}\nassistant: ") for text in ("one", "four"))
        assert first < second
        assert "two" not in out
        # four answers after the first two
        assert err.count("cells |") == 5
        assert "undone: turn 1, " in err

    def test_a_saved_chat_can_be_loaded(self, chat, tmp_path):
        path = tmp_path / "a chat"
        code, _, err = chat("one", f"/save {path}", "/clear", f"/load {path}", "/stats")
        assert code == 0
        assert re.search(f"saved {path}: turn 1, \\d+ tokens, [\\d.]+ MiB", err)
        assert f"continuing {path}: turn 1, " in err

    def test_back_returns_to_the_fork(self, chat):
        code, _, err = chat("one", "/fork", "two", "three", "/back")
        assert code == 0
        here, there = re.findall(r"(?:/back returns here|^back): (turn 1, \d+ tokens)", err, re.MULTILINE)
        assert here == there

    def test_a_new_system_prompt_begins_anew(self, chat):
        _, out, err = chat("/system", "/system abc def", "/system", "one", "/clear", "/system", options=["-n", "1"])
        assert out.startswith("none was given\nabc def\n")
        assert out.endswith("abc def\n")
        assert err.count("cells") == 1

    def test_exit_leaves(self, chat):
        code, _, err = chat("/exit", "one")
        assert code == 0
        assert "cells" not in err


class TestSessionFile:
    def test_the_chat_is_saved_after_every_answer_and_gone_on_with(self, chat, tmp_path):
        path = tmp_path / "chat"
        options = ["--session", str(path), "--system", "abc"]
        chat("one", "two", options=options)
        assert path.exists()
        _, out, err = chat("/stats", "/system", "three", options=options)
        assert f"continuing {path}: turn 2, " in err
        assert "abc" in out
        assert "turn 3, " in chat("/save", options=["--session", str(path)])[2]

    def test_another_system_prompt_than_the_file_s_is_refused(self, chat, tmp_path):
        path = tmp_path / "chat"
        chat("one", options=["--session", str(path), "--system", "abc"])
        code, _, err = chat("one", options=["--session", str(path), "--system", "xyz"])
        assert code == 1
        assert f"error: --system must be that of {path}, 'abc', got 'xyz'" in err

    def test_other_settings_than_the_file_s_are_refused(self, chat, tmp_path):
        path = tmp_path / "chat"
        chat("one", options=["--session", str(path)])
        code, _, err = chat("one", options=["--session", str(path), "--interval", "20"])
        assert code == 1
        assert f"error: {path} was saved with other settings: interval was 16 and is 20" in err

    def test_a_folder_that_is_not_there_is_told_at_the_start(self, chat, tmp_path):
        path = tmp_path / "no" / "chat"
        code, out, err = chat("one", options=["--session", str(path)])
        assert (code, out) == (1, "")
        assert f"error: --session must be in a folder that is there, got {str(path)!r}" in err

    def test_a_file_brings_its_archive_where_none_is_asked_for(self, chat, tmp_path):
        options = ["--session", str(tmp_path / "chat")]
        for given, shown in (["--no-archive"], "no archive"), (["--archive", "ram"], "archive: RAM, f16, up to"):
            (tmp_path / "chat").unlink(missing_ok=True)
            assert chat("one", options=[*options, *given])[0] == 0
            code, _, err = chat("two", options=options)
            assert (code, f" | {shown}" in err, "turn 1, " in err) == (0, True, True)

    def test_what_is_undone_is_undone_in_the_file(self, chat, tmp_path):
        options = ["--session", str(tmp_path / "chat")]
        chat("one", "two", "/undo", options=options)
        code, out, _ = chat("/history", "/edit 1 three", "/history", options=options)
        assert code == 0
        assert out.startswith("user 1: one\nassistant: ")
        assert "user 1: three\n" in out
        assert "two" not in out


class TestStart:
    def line(self, err: str) -> str:
        return next(line for line in err.splitlines() if " | capacity " in line)

    def test_one_line_says_what_is_on(self, chat):
        line = self.line(chat("/exit")[2])
        assert re.fullmatch(
            r"\S+\.gguf \| capacity 128 \| archive: RAM, q8_0, up to 2 GiB \(--no-archive\) \| CPU", line
        )
        assert "| no archive | CPU" in self.line(chat("/exit", options=["--no-archive"])[2])
        line = self.line(chat("/exit", options=["--archive", "ram", "--archive-max", "512"])[2])
        assert "| archive: RAM, up to 0.5 GiB" in line

    def test_both_an_archive_and_none_are_refused(self, chat):
        code, _, err = chat("one", options=["--no-archive", "--archive", "ram"])
        assert code == 1
        assert "error: --no-archive excludes --archive, got 'ram'" in err

    def test_a_model_without_a_template_says_so(self, chat):
        assert "has no chat template, as base models have none" in chat("/exit")[2]

    def test_an_answer_has_a_limit(self, chat, monkeypatch):
        assert N_PREDICT == 4096
        monkeypatch.setattr(Session, "say", endless_say)
        assert "(the answer ends at 8 tokens: -n N sets how many)" in chat("one")[2]

    def test_a_system_prompt_raises_the_capacity_within_a_bound(self, monkeypatch, capsys, tiny_llama, tmp_path):
        def begin(n_words, *options):
            monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
            system = ["-sys", "x" * n_words] if n_words else []
            code = run("chat", str(tiny_llama()), *TIGHT[2:], "-n", "4", *system, *options)
            return code, capsys.readouterr().err

        session = ["--session", str(tmp_path / "chat")]
        code, err = begin(2000, *session)
        assert code == 0
        raised = re.search(r"the system prompt raises the capacity from 1,024 to (\d,\d{3})\n", err)[1]
        assert int(raised.replace(",", "")) > 2000
        assert f" | capacity {raised} | " in err
        # that of the file, which is another than the default
        code, err = begin(0, *session)
        assert (code, f" | capacity {raised} | " in err, "continuing" in err) == (0, True, True)
        code, err = begin(MOST * 1024)
        assert code == 1
        assert "error: the system prompt must have less than capacity - window tokens" in err
        # a capacity that was given is heeded
        code, err = begin(2000, "--capacity", "1024")
        assert code == 1
        assert re.search(r"or --capacity \d+, keeps it all", err)


def test_it_ends_quietly_where_nobody_reads_on(tiny_llama, tmp_path):
    code = "import sys; from morphkv_cpp.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "chat", str(tiny_llama()), "-n", "8", *TIGHT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as child:
        child.stdout.close()
        child.stdin.write("one\n" * 3)
        child.stdin.close()
        err = child.stderr.read()
    assert child.returncode == 1
    assert "Traceback" not in err
    assert "evictions" not in err


@pytest.mark.parametrize("predict", ["0", "-2"])
def test_an_answer_without_tokens_is_refused(chat, predict):
    code, _, err = chat("one", predict=predict)
    assert code == 1
    assert f"error: --predict must be -1 or at least 1, got {predict}" in err


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
class TestTerminal:
    @pytest.fixture
    def terminal(self, tiny_llama, tmp_path):
        pexpect = pytest.importorskip("pexpect", reason="a pseudo-terminal needs pexpect")
        # elsewhere: the repository's own folder morphkv_cpp would be found first
        child = pexpect.spawn(
            sys.executable,
            ["-c", ENDLESS, "chat", str(tiny_llama()), *TIGHT],
            cwd=str(tmp_path),
            env={**os.environ, "TERM": "xterm"},
            encoding="utf-8",
            codec_errors="replace",
            timeout=120,
            dimensions=(30, 100),
        )
        yield child
        child.close(force=True)

    @staticmethod
    def wait_for(terminal, pattern: str) -> None:
        """As expect, and tells where the cursor is whenever that is asked for."""
        while terminal.expect([pattern, r"\x1b\[6n"]):
            terminal.send("\x1b[1;1R")

    def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(self, terminal, tmp_path):
        self.wait_for(terminal, "Ctrl-C stops an answer, Ctrl-D leaves")
        self.wait_for(terminal, "nothing said yet")
        for _ in range(2):
            terminal.send("abc\r")
            self.wait_for(terminal, r"\(begun\)")  # from here on Ctrl-C is no key of a prompt's
            terminal.expect("(?s).{100}")
            terminal.sendintr()
            self.wait_for(terminal, r"\(stopped\)")
            self.wait_for(terminal, r"\d+/160 cells \| position [\d,]+ \| [\d.]+ tok/s \| [\d,]+ evictions")
        # what is typed while an answer is written comes into the next line
        terminal.send("abc\r")
        self.wait_for(terminal, r"\(begun\)")
        terminal.expect("(?s).{100}")
        terminal.send("/stats")
        terminal.sendintr()
        self.wait_for(terminal, r"\(stopped\)")
        terminal.send("\r")
        self.wait_for(terminal, r"turns +3\r?\n")
        self.wait_for(terminal, "160 cells")
        for line, answer in (
            ("/stats", r"turns +3\r?\n"),
            ("/save chat", "saved chat: turn 3, "),
            ("/nothing", "error: unknown command /nothing"),
        ):
            terminal.send(f"{line}\r")
            self.wait_for(terminal, answer)
            self.wait_for(terminal, "160 cells")
        assert (tmp_path / "chat").exists()
        terminal.sendintr()
        self.wait_for(terminal, r"\(/help lists the commands")
        self.wait_for(terminal, "160 cells")
        terminal.sendeof()
        terminal.wait()
        assert terminal.exitstatus == 0
