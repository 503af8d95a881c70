"""`morphkv archs` prints the list, by what is done for each."""

from __future__ import annotations

import json

from morphkv_cpp.architectures import Architecture, architectures
from morphkv_cpp.cli.archs import describe
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
    assert run("archs", "deci") == 0
    assert capsys.readouterr().out == (
        "Every layer with a KV cache is cut (2):\n"
        "  deci               [equal heads]\n"
        "  deci               [layers without KV heads]\n\n"
    )


def test_limits_are_told(capsys):
    assert run("archs", "starcoder") == 0
    assert "  starcoder          positions are not rebased; no archive\n" in capsys.readouterr().out


def test_what_there_is_beside_text_is_told():
    def told(*values: str) -> str:
        return describe(Architecture("name", "", "part", "layers that attend", *values))

    assert told("no", "yes", "yes", "no", "no") == "layers that attend; tokens cannot be taken back; no images; no MTP"
    assert told("to marks", "yes", "yes", "M-RoPE", "inside") == (
        "layers that attend; goes back to the end of a prompt; images: M-RoPE; MTP: inside"
    )
    assert told("exactly", "yes", "no", "", "") == "layers that attend; no archive"


def test_the_list_has_its_own_words():
    for each in architectures():
        assert each.goes_back in (("exactly", "to marks", "no") if each.is_served else ("",)), each
        assert {each.is_rebased, each.is_archived} <= ({"yes", "no"} if each.is_served else {""}), each
        assert each.images in ("M-RoPE", "one position", "no", ""), each
        assert each.mtp in ("inside", "beside", "no", ""), each
