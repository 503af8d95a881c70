"""`morphkv read`: writes a file that generate attaches."""

import json

import pytest

from morphkv_cpp.cli.app import main

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "--prompt-room", "0", "-t", "1"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code or 0


def test_a_text_is_read_and_attached(capsys, tiny_llama, tmp_path):
    model, text, into = str(tiny_llama()), tmp_path / "manual.txt", str(tmp_path / "manual.archive")
    text.write_text(" ".join(f"line {i}" for i in range(100)), encoding="utf-8")
    assert run("read", model, str(text), "--into", into, *TIGHT) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{into}\n"
    assert "tokens/s" in captured.err
    assert run("generate", model, "abc def", "-n", "20", "--attach", into, "--json", "--seed", "1", *TIGHT) == 0
    assert json.loads(capsys.readouterr().out)["cache"]["n_recalled"] > 0
    assert run("read", model, str(text), "--into", into, "--archive-type", "f16", "--json", *TIGHT) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["n_tokens"] > 100) == (into, True)


def test_what_is_refused(capsys, tiny_llama, tmp_path):
    model, text = str(tiny_llama()), tmp_path / "short.txt"
    text.write_text("short", encoding="utf-8")
    assert run("read", model, str(text), "--into", str(tmp_path / "x"), *TIGHT) == 1
    assert "fits into a prompt" in capsys.readouterr().err
    assert run("generate", model, "abc", "-n", "4", "--attach", str(text), *TIGHT) == 1
    assert "is no archive that a text was read into" in capsys.readouterr().err
