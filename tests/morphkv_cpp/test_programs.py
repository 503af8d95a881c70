"""Flags of llama-server by the names of our other commands."""

import inspect
import re

import pytest

from morphkv_cpp.cli.options import morphkv_options
from morphkv_cpp.cli.options_archive import archive_options
from morphkv_cpp.programs import NOT_SERVED, SERVER_OPTIONS, server_flags
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
        lines = run_program("llama-server", "--help").stdout.splitlines()
        names = [set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", line)) for line in lines]
        known = set().union(*names)
        assert {"--keep", "--seed"} <= known
        assert set(SERVER_OPTIONS.values()) <= known
        assert not known & {*NOT_SERVED}
        # a short name that it has is another one of the same option
        for found in names:
            for short in found & {*SERVER_OPTIONS}:
                assert SERVER_OPTIONS[short] in found, found
