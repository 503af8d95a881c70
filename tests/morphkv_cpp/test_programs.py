"""Flags of llama-server by the names of our other commands, and programs where a process cannot become one."""

import inspect
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from morphkv_cpp import programs
from morphkv_cpp.cli.options import morphkv_options
from morphkv_cpp.cli.options_archive import archive_options
from morphkv_cpp.programs import NOT_SERVED, SERVER_OPTIONS, run_in_place, server_flags
from support.server_process import program, run_program


class TestFlags:
    def test_short_names_become_llama_servers(self):
        given = ["--capacity", "512", "--recall=prompt", "--archive", "a=b", "--no-keep-system"]
        full = ["--morphkv-capacity", "512", "--morphkv-recall", "prompt", "--morphkv-archive", "a=b"]
        assert server_flags(given) == [*full, "--no-morphkv-keep-system"]

    def test_its_own_flags_are_left_alone(self):
        own = ["--keep", "4", "--seed", "1", "-c", "0", "--morphkv-capacity", "512", "--alias", "--x=y"]
        assert server_flags(own) == own

    @pytest.mark.parametrize("name", sorted(NOT_SERVED))
    def test_what_it_does_not_have_is_refused(self, name):
        with pytest.raises(ValueError, match=f"^llama-server has no {name}: "):
            server_flags(["-c", "0", f"{name}=1"])

    def test_every_option_of_our_commands_has_an_answer(self):
        groups = (morphkv_options, archive_options)
        options = {f"--{name.replace('_', '-')}" for group in groups for name in inspect.signature(group).parameters}
        assert options - {"--keep"} <= {*SERVER_OPTIONS, *NOT_SERVED}  # --keep is its own, and the same

    @pytest.mark.skipif(not program("llama-server").is_file(), reason="built without llama-server")
    def test_none_hides_a_flag_of_its_own(self):
        known = set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", run_program("llama-server", "--help").stdout))
        assert {"--keep", "--seed"} <= known
        assert set(SERVER_OPTIONS.values()) <= known
        assert not known & {*SERVER_OPTIONS, *NOT_SERVED}


class TestWhereNoProcessBecomesAnother:
    @pytest.fixture(autouse=True)
    def windows(self, monkeypatch):
        monkeypatch.setattr(programs, "sys", SimpleNamespace(platform="win32"))

    def test_its_exit_code_is_ours(self):
        assert run_in_place([sys.executable, "-c", "raise SystemExit(7)"]) == 7

    def test_signals_are_handled_as_before(self):
        before = signal.getsignal(signal.SIGTERM)
        run_in_place([sys.executable, "-c", ""])
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a group of processes")
class TestSignals:
    CODE = """
import signal, sys, types
from morphkv_cpp import programs
programs.sys = types.SimpleNamespace(platform="win32")
sys.exit(programs.run_in_place([sys.executable, "-c", sys.argv[1]]))
"""
    CHILD = """
import signal, sys, time
def stop(*_):
    time.sleep(0.2)
    print("stopped", flush=True)
    sys.exit(9)
signal.signal(signal.{name}, stop)
print("running", flush=True)
time.sleep(60)
"""

    @pytest.fixture
    def start(self, tmp_path):
        def start(name):
            command = [sys.executable, "-c", self.CODE, self.CHILD.format(name=name)]
            pipe = subprocess.PIPE
            child = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
            assert child.stdout.readline() == "running\n"
            return child

        return start

    def test_ctrl_c_is_the_programs(self, start):
        """A console sends it to both."""
        child = start("SIGINT")
        programs.os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (9, "stopped\n", "")

    def test_who_ends_us_ends_the_program(self, start):
        child = start("SIGTERM")
        child.terminate()
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (9, "stopped\n", "")

    def test_a_program_that_a_signal_ended_is_told_as_shells_do(self, start):
        child = start("SIGINT")
        child.terminate()
        assert child.communicate(timeout=30) == ("", "")
        assert child.returncode == 128 + signal.SIGTERM
