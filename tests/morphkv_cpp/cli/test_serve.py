"""`morphkv serve`: the packaged llama-server, with MorphKV on unless its flags say otherwise."""

import sys

import pytest

from morphkv_cpp.cli.app import main
from morphkv_cpp.cli.serve import server_command
from support.server_process import TIGHT, ServerProcess, program

pytestmark = pytest.mark.skipif(not program("llama-server").is_file(), reason="built without llama-server")


@pytest.fixture
def serve(tiny_llama, tmp_path):
    started = []

    def start(*flags):
        command = [sys.executable, "-m", "morphkv_cpp.cli.app", "serve", str(tiny_llama())]
        server = ServerProcess("", *flags, log=tmp_path / f"{len(started)}.log", command=command)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.http.close()
        if server.process and server.is_alive():
            server.stop()


def test_it_serves_with_morphkv_on_and_passes_flags(serve):
    server = serve(*TIGHT[1:], "-np", 3)
    props = server.get("/props")
    assert props["morphkv"]["capacity"] == 128
    assert props["morphkv"]["keep_system"] is True
    assert props["total_slots"] == 3
    assert server.chat([{"role": "user", "content": "a long question " * 40}], 4)["timings"]["evicted_n"] > 0
    assert server.stop() == 0


def test_flags_come_last_and_win(serve):
    assert "morphkv" not in serve("--no-morphkv", "-np", 1, "-c", 512).get("/props")


def test_all_behind_the_model_is_the_servers(tiny_llama):
    flags = ["--help", "-c", "4096", "--alias", "x"]
    own = ["--model", str(tiny_llama()), "--morphkv", "--morphkv-keep-system", "--morphkv-archive", "auto"]
    assert server_command(str(tiny_llama()), flags)[1:] == [*own, *flags]


def test_options_are_called_as_in_other_commands(serve):
    names = ["--capacity", 128, "--window=16", "--interval", 16, "--prompt-room", 64, "--fusion", "max"]
    own = ["--keep", 6, "--seed", 7, "-np", 1]
    server = serve(*names, *own, "--archive", "ram", "--archive-type", "q8_0", "--recall", "off", "--no-keep-system")
    props = server.get("/props")
    shown = {name: props["morphkv"][name] for name in ("capacity", "window", "interval", "fusion", "keep")}
    assert shown == {"capacity": 128, "window": 16, "interval": 16, "fusion": "max", "keep": 6}
    assert props["morphkv"]["keep_system"] is False
    assert props["default_generation_settings"]["params"]["seed"] == 7
    assert server.chat([{"role": "user", "content": "a long question " * 40}], 4)["timings"]["recalls_n"] == 0


def test_what_llama_server_does_not_have_is_a_sentence(capsys, tiny_llama):
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(tiny_llama()), "--policy-seed", "1"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: llama-server has no --policy-seed: its seed is 0\n"


def test_the_system_prompt_is_kept_unless_flags_or_the_environment_say_no(serve, monkeypatch):
    chat = [{"role": "system", "content": "abcdefghij klmno"}, {"role": "user", "content": "a long question " * 20}]

    def kept(*flags):
        server = serve(*TIGHT[1:], "-np", 1, *flags)
        server.chat(chat, 4)
        return server.slot()["morphkv"]["keep"]

    assert kept() > 16
    assert kept("--no-morphkv-keep-system") == 4
    monkeypatch.setenv("LLAMA_ARG_MORPHKV_KEEP_SYSTEM", "0")
    assert kept() == 4


def test_a_missing_model_is_a_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["serve", "nothing.gguf", "--port", "8080"])
    assert stop.value.code == 1
    assert (
        capsys.readouterr().err
        == "error: MODEL must be a GGUF file, 'demo' or hf:OWNER/REPO:FILE, got 'nothing.gguf'\n"
    )
