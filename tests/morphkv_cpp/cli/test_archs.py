"""`morphkv archs` prints the list, by what is done for each."""

from __future__ import annotations

import json

from morphkv_cpp.architectures import architectures
from support.command import run


def test_every_architecture_is_in_one_group(capsys):
    assert run("archs") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(names) == sorted(each.name for each in architectures())


def test_one_object_holds_the_list(capsys):
    assert run("archs", "gpt-oss", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["architectures"]
    assert (found["name"], found["support"], found["why"]) == ("gpt-oss", "part", "layers without a sliding window")


def test_a_part_of_a_name_chooses(capsys):
    assert run("archs", "gpt-oss") == 0
    assert capsys.readouterr().out == (
        "Some layers are cut (1):\n  gpt-oss            layers without a sliding window\n\n"
    )
    assert run("archs", "no-such") == 1
    assert "must contain 'no-such'" in capsys.readouterr().err


def test_variants_are_told_apart(capsys):
    assert run("archs", "glm4moe") == 0
    assert capsys.readouterr().out == (
        "Every layer with a KV cache is cut (2):\n"
        "  glm4moe            [no rope sections]\n"
        "  glm4moe            [rope sections]; positions are not rebased\n\n"
    )


def test_limits_are_told(capsys):
    assert run("archs", "qwen35") == 0
    assert "layers that attend; tokens cannot be taken back; positions are not rebased" in capsys.readouterr().out
