"""`morphkv generate --json`: one object with the text and what it took, and nothing else on standard output."""

import json

import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.cli import generate as module
from morphkv_cpp.cli.app import main

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "--prompt-room", "0", "-t", "1", "--seed", "1"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *arguments])
    return stop.value.code or 0


def test_the_object_holds_the_text_and_the_statistics(capsys, tiny_llama):
    model = str(tiny_llama())
    arguments = [model, "abc", "-n", "300", "--ignore-eos", *TIGHT]
    assert run(*arguments) == 0
    as_text = capsys.readouterr()
    assert run(*arguments, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == ""
    assert found["text"] + "\n" == as_text.out
    assert (found["model"], found["finish_reason"]) == (model, "length")
    assert MorphKV(**found["morphkv"]) == MorphKV(capacity=64, window=8, interval=16, prompt_room=0)
    assert found["archive"] is None
    assert (found["n_written"], found["n_ctx"], found["n_ctx_train"]) == (300, 2**31 - 1, 8192)
    assert found["prompt_s"] > 0 < found["rate_tok_s"]
    cache = found["cache"]
    assert found["kv_bytes"] == cache["kv_bytes"] > 0
    # what the line says of the same run
    assert f"{cache['n_used']} of {cache['n_limit']} cells in use; {cache['n_evictions']} evictions" in as_text.err
    assert as_text.err.startswith(f"{found['n_prompt']} prompt tokens")


def test_stock_has_no_counters(capsys, tiny_llama):
    arguments = ["--stock", "--ctx-size", "256", "--ignore-eos", "--seed", "1", "-t", "1", "--json"]
    assert run(str(tiny_llama()), "abc", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["morphkv"], found["cache"]) == (None, None)
    assert found["finish_reason"] == "length"
    assert found["n_prompt"] + found["n_written"] == found["n_ctx"] == 256
    assert found["kv_bytes"] > 0


def test_an_archive_is_told(capsys, tiny_llama):
    assert run(str(tiny_llama()), "abc", "-n", "200", "--ignore-eos", *TIGHT, "--archive", "ram", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["archive"]["place"] == "ram"
    assert found["cache"]["n_archived"] > 100


@pytest.mark.parametrize("n_written", [0, 1])
def test_what_was_not_measured_is_null(capsys, monkeypatch, tiny_llama, n_written):
    monkeypatch.setattr(module, "write", lambda *arguments, **options: iter([70] * n_written))
    assert run(str(tiny_llama()), "abc", *TIGHT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_written"], found["finish_reason"]) == (n_written, "stop")
    assert (found["prompt_s"] is None, found["rate_tok_s"]) == (n_written == 0, None)


def test_ctrl_c_leaves_an_object(capsys, monkeypatch, tiny_llama):
    def interrupted(*arguments, **options):
        yield 3 + ord("x")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write", interrupted)
    assert run(str(tiny_llama()), "abc", *TIGHT, "--json") == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["n_written"], found["finish_reason"]) == ("x", 1, "interrupted")


def test_what_is_refused_prints_no_object(capsys, tiny_llama):
    assert run(str(tiny_llama()), "x", "--capacity", "20", "--json") == 1
    assert capsys.readouterr().out == ""
