"""`morphkv selftest`: a row per case, a sum per device, exit code 1 where a device differs."""

import json

from morphkv_cpp import bridge
from support.command import run


def selftest(capsys, *arguments: str) -> tuple[int, str]:
    return run("selftest", *arguments), capsys.readouterr().out


def test_this_machine_passes(capsys):
    code, output = selftest(capsys)
    assert code == 0
    rows = [line.split() for line in output.splitlines() if " evict " in line or " rebase " in line]
    assert {(row[1], row[2]) for row in rows if row[0] == "CPU"} == {
        (graph, name) for graph in ("evict", "rebase") for name in ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0")
    }
    n_cpu = sum(row[0] == "CPU" for row in rows)
    assert f"CPU: {n_cpu} same\n" in output


def test_one_object_holds_every_case(capsys):
    code, output = selftest(capsys, "--json")
    assert code == 0
    found = json.loads(output)
    n_cpu = sum(case["device"] == "CPU" for case in found["cases"])
    assert found["figures"]["CPU"] == {"same": n_cpu, "different": 0, "refused": 0}
    assert n_cpu == 84


def test_threads_are_the_librarys(capsys, monkeypatch):
    seen = []
    original = bridge.selftest
    monkeypatch.setattr(bridge, "selftest", lambda *given: seen.append(given) or original(*given))
    code, output = selftest(capsys, "-t", "3")
    assert (code, seen) == (0, [(None, 3)])
    assert " different" not in output


def test_no_threads_are_a_sentence(capsys):
    assert run("selftest", "--threads", "0") == 1
    assert capsys.readouterr().err == "error: --threads must be at least 1, got 0\n"


def test_servers_pass(capsys, rpc_servers):
    names = [server.name for server in rpc_servers]
    code, output = selftest(capsys, "--rpc", ",".join(names))
    assert code == 0
    for name in names:
        device = next(line.split(":")[0] for line in output.splitlines() if line.endswith(f": {name}"))
        assert device.startswith("RPC")
        assert f"{device}: 84 same\n" in output


def test_a_difference_is_told_and_is_an_error(capsys, monkeypatch):
    def tampered(*given):
        for row in original(*given):
            wrong = {"result": "different", "reason": "head 0, slot 3: the row is not that of token 7"}
            yield {**row, **wrong} if row["i_case"] == 2 else row

    original = bridge.selftest
    monkeypatch.setattr(bridge, "selftest", tampered)
    code, output = selftest(capsys)
    assert code == 1
    assert "head 0, slot 3: the row is not that of token 7" in output
    assert "1 different" in output


def test_what_is_refused_is_told_and_is_no_error(capsys, monkeypatch):
    def lacking(*given):
        for row in original(*given):
            yield {**row, "result": "refused", "reason": "CPU does not support ARGSORT"} if row["i_case"] == 1 else row

    original = bridge.selftest
    monkeypatch.setattr(bridge, "selftest", lacking)
    code, output = selftest(capsys)
    assert code == 0
    assert "CPU does not support ARGSORT" in output
    assert "1 refused" in output


def test_servers_that_do_not_answer_are_a_sentence(capsys):
    assert run("selftest", "--rpc", "127.0.0.1:1") == 1
    assert "no RPC server answers at 127.0.0.1:1" in capsys.readouterr().err
