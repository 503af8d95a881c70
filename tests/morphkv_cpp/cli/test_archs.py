"""`morphkv archs` prints the list, by what is done for each."""

from __future__ import annotations

import json

import pytest

morphkv_cpp = pytest.importorskip("morphkv_cpp")

from morphkv_cpp.architectures import architectures  # noqa: E402
from morphkv_cpp.cli.app import main  # noqa: E402


def test_every_architecture_is_in_one_group(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["archs"])
    assert not exit_.value.code
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(names) == sorted(each.name for each in architectures())


def test_one_object_holds_the_list(capsys):
    with pytest.raises(SystemExit):
        main(["archs", "gpt-oss", "--json"])
    (found,) = json.loads(capsys.readouterr().out)["architectures"]
    assert (found["name"], found["support"], found["why"]) == ("gpt-oss", "part", "layers without a sliding window")


def test_a_part_of_a_name_chooses(capsys):
    with pytest.raises(SystemExit):
        main(["archs", "gpt-oss"])
    assert capsys.readouterr().out == (
        "Some layers are cut (1):\n  gpt-oss            layers without a sliding window\n\n"
    )
    with pytest.raises(SystemExit) as exit_:
        main(["archs", "no-such"])
    assert exit_.value.code == 1
    assert "must contain 'no-such'" in capsys.readouterr().err


def test_variants_are_told_apart(capsys):
    with pytest.raises(SystemExit):
        main(["archs", "glm4moe"])
    assert capsys.readouterr().out == (
        "Every layer with a KV cache is cut (2):\n"
        "  glm4moe            [no rope sections]\n"
        "  glm4moe            [rope sections]; positions are not rebased\n\n"
    )


def test_limits_are_told(capsys):
    with pytest.raises(SystemExit):
        main(["archs", "qwen35"])
    assert "layers that attend; tokens cannot be taken back; positions are not rebased" in capsys.readouterr().out
