"""The figures of the documentation are those that were measured and lie in docs/results."""

import decimal
import json
import re
from pathlib import Path

import pytest

from morphkv_cpp.eval.results_page import put_in_page

ROOT = Path(__file__).resolve().parent.parent
FOLDER, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md"
ROWS = json.loads((FOLDER / "commands.json").read_text(encoding="utf-8"), parse_float=decimal.Decimal)["rows"]


def said(row: dict, page: str) -> str:
    """A page's words with the figures in them. Halves are rounded up: 27.45 is 27.5."""
    with decimal.localcontext() as context:
        context.rounding = decimal.ROUND_HALF_UP
        return row[page].format(**row["figures"])


def test_the_tables_are_what_the_summaries_say():
    assert put_in_page(PAGE, FOLDER) == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["command"][:24])
def test_pages_have_the_figures_that_a_command_gave(row, page):
    assert said(row, page) in (ROOT / page).read_text(encoding="utf-8")


def test_every_measured_row_of_the_readme_is_checked():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\n\| what \| result \|\n\|---\|---\|\n((?:\|.*\n)+)", readme)[1]
    results = [line.split(" | ")[1].removesuffix(" |") for line in table.splitlines()]
    assert results == [said(row, "README.md") for row in ROWS]


def test_the_limit_on_quality_is_the_measured_one():
    figures = next(row["figures"] for row in ROWS if "morphkv" in row["figures"])
    percent = 100 * (figures["morphkv"] / figures["full"] - 1)
    words = f"about {percent:.0f}% higher ({said({'x': '{morphkv:.1f} against {full:.1f}', 'figures': figures}, 'x')})"
    assert words in (ROOT / "README.md").read_text(encoding="utf-8")
