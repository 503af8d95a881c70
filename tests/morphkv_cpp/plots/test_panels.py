"""Lines and bars side by side, read back from their SVG."""

import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from morphkv_cpp.plots.panels import STYLES, Bar, Bars, Line, Lines, plot_panels

LINES = Lines(
    "speed",
    "tokens of the text",
    "tok/s",
    [Line("ours", [1000, 2000, 4000], [80, 80, 80]), Line("stock", [1000, 2000, 4000], [90, 60, 30])],
)
BARS = Bars("right", "share", [Bar("full", 0.8, 0.7, 0.9), Bar("recency", 0.2)])


@pytest.fixture(scope="module")
def svg(tmp_path_factory) -> ET.Element:
    path = tmp_path_factory.mktemp("plot") / "panels.svg"
    plot_panels(path, "a model", [LINES, BARS])
    return ET.parse(path).getroot()


def part(svg: ET.Element, name: str) -> ET.Element:
    return next(element for element in svg.findall(".//{*}g") if element.get("id") == name)


def test_panels_say_what_they_show(svg):
    texts = {element.text for element in svg.findall(".//{*}text")}
    assert {"a model", "tokens of the text", "tok/s", "share", "ours", "stock", "full", "recency", "4,000"} <= texts


def test_marks_are_as_high_as_the_values(svg):
    ours, stock = ([float(mark.get("y")) for mark in part(svg, name).findall(".//{*}use")] for name in
                   ("speed-ours", "speed-stock"))  # fmt: skip
    assert len(set(ours)) == 1
    assert (stock[2] - stock[0]) / (stock[1] - stock[0]) == pytest.approx(2, abs=1e-3)


def test_bars_are_as_long_as_the_values(svg):
    widths = []
    for name in ("right-full", "right-recency"):
        xs = [float(x) for x in re.findall(r"[ML] (\S+) \S+", part(svg, name).find("{*}path").get("d"))]
        widths.append(max(xs) - min(xs))
    assert widths[0] / widths[1] == pytest.approx(4, rel=1e-2)


def test_lines_differ_in_grey_too():
    def grey(color: str) -> float:
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert (
        len({style["marker"] for style in STYLES}) == len({str(style["linestyle"]) for style in STYLES}) == len(STYLES)
    )
    assert abs(grey(STYLES[0]["color"]) - grey(STYLES[1]["color"])) > 50


def test_loose_marks_are_named_and_not_joined(tmp_path):
    marks = [Line("full", [8.0], [12.0]), Line("morphkv", [1.0], [14.0])]
    plot_panels(tmp_path / "a.svg", "", [Lines("bytes", "MiB", "perplexity", marks, is_loose=True)])
    svg = ET.parse(tmp_path / "a.svg").getroot()
    assert len(part(svg, "bytes-full").findall(".//{*}use")) == 1
    assert {"full", "morphkv"} <= {element.text for element in svg.findall(".//{*}text")}


def test_a_long_line_has_few_marks(tmp_path):
    many = Line("many", list(range(1000)), [1.0] * 1000)
    plot_panels(tmp_path / "a.svg", "", [Lines("x", "", "", [many])])
    assert len(part(ET.parse(tmp_path / "a.svg").getroot(), "x-many").findall(".//{*}use")) < 40


def test_it_is_the_same_every_time(tmp_path):
    for name in "ab":
        plot_panels(tmp_path / f"{name}.svg", "a model", [LINES, BARS])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
