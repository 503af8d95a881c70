"""The tables of model families in docs/models.md and README.md say what the list of `morphkv archs` says."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("morphkv_cpp")

from archs import families

ROOT = Path(__file__).parents[2]


def missing(page: str, lines: list[str]) -> list[str]:
    """python tests/archs/families.py prints them."""
    there = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line not in there]


def test_each_family_is_in_the_page_of_models():
    assert missing("docs/models.md", families.full()) == []
    assert len(families.FAMILIES) == 26


def test_what_is_not_whole_is_named_with_its_reason():
    assert missing("docs/models.md", families.reasons()) == []
    assert families.summary() in (ROOT / "docs/models.md").read_text(encoding="utf-8")


def test_the_table_of_the_readme_is_the_same_in_short():
    assert missing("README.md", families.short()) == []
    named = {name for _, names in families.SHORT for name in names}
    assert {name for _, names, _ in families.FAMILIES for name in names} - named == {"deepseek2-ocr"}
