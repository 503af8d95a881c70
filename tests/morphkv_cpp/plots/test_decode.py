"""The plot of decoding, read back from its SVG: axes, both caches, their points, their names."""

import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from morphkv_cpp.bench.depths import MORPHKV, STOCK, DepthPoint
from morphkv_cpp.plots.decode import LINES, plot_decode

TITLE = "model: MorphKV (capacity 1,024) and stock llama.cpp"
POINTS = [
    *[DepthPoint(MORPHKV, depth, 26 * 2**20, [rate]) for depth, rate in ((1000, 80.0), (2000, 81.0), (4000, 79.0))],
    *[DepthPoint(STOCK, depth, depth * 2**15, [rate]) for depth, rate in ((1000, 85.0), (2000, 70.0), (4000, 50.0))],
]
NAMES = {"MorphKV": "MorphKV", "stock-llama.cpp": "stock llama.cpp"}


@pytest.fixture(scope="module")
def svg(tmp_path_factory) -> ET.Element:
    path = tmp_path_factory.mktemp("plot") / "decode.svg"
    plot_decode(path, TITLE, POINTS)
    return ET.parse(path).getroot()


def texts(svg: ET.Element) -> list[str]:
    return [element.text for element in svg.findall(".//{*}text")]


def line(svg: ET.Element, name: str) -> ET.Element:
    return next(element for element in svg.findall(".//{*}g") if element.get("id") == name)


def marks(svg: ET.Element, name: str) -> list[tuple[float, float]]:
    """Where the line's markers are, in the picture, whose y grows downwards."""
    return [(float(mark.get("x")), float(mark.get("y"))) for mark in line(svg, name).findall(".//{*}use")]


def test_axes_say_what_they_are_and_their_units(svg):
    found = texts(svg)
    assert found.count("depth (tokens)") == 2
    assert {"decode speed (tok/s)", "K and V (MiB)", TITLE, "4,000"} <= set(found)


def test_each_line_is_named(svg):
    assert texts(svg).count("MorphKV") == texts(svg).count("stock llama.cpp") == 2


@pytest.mark.parametrize("of", ["speed", "memory"])
@pytest.mark.parametrize("cache", NAMES)
def test_each_line_has_a_mark_for_each_depth(svg, of, cache):
    xs = [x for x, _ in marks(svg, f"{of}-{cache}")]
    assert len(xs) == 3
    assert (xs[2] - xs[1]) / (xs[1] - xs[0]) == pytest.approx(2, abs=1e-3)  # 1,000, 2,000, 4,000


def test_marks_are_as_high_as_what_was_measured(svg):
    speed = {name: [y for _, y in marks(svg, f"speed-{name}")] for name in NAMES}
    assert speed["stock-llama.cpp"] == sorted(speed["stock-llama.cpp"])  # slower and slower
    falls = [b - a for a, b in zip(speed["stock-llama.cpp"], speed["stock-llama.cpp"][1:])]
    assert falls[1] / falls[0] == pytest.approx(20 / 15, abs=1e-3)
    memory = {name: [y for _, y in marks(svg, f"memory-{name}")] for name in NAMES}
    assert len(set(memory["MorphKV"])) == 1
    assert memory["stock-llama.cpp"][0] > memory["stock-llama.cpp"][2]


def test_lines_differ_in_grey_too(svg):
    styles = [re.search("stroke-dasharray", line(svg, f"speed-{name}").find("{*}path").get("style")) for name in NAMES]
    assert [bool(style) for style in styles] == [False, True]
    assert len({style["marker"] for style in LINES.values()}) == len(LINES)


def test_it_is_the_same_every_time(tmp_path):
    for name in "ab":
        plot_decode(tmp_path / f"{name}.svg", TITLE, POINTS)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()


def test_the_names_of_two_lines_that_meet_do_not(tmp_path):
    path = tmp_path / "same.svg"
    plot_decode(path, TITLE, [DepthPoint(cache, depth, 2**20, [80.0]) for cache in LINES for depth in (1, 2)])
    names = [element for element in ET.parse(path).getroot().findall(".//{*}text") if element.text in NAMES.values()]
    heights = [float(re.search(r"-?[\d.]+\)$", name.get("transform")).group()[:-1]) for name in names]
    assert abs(heights[0] - heights[1]) > 9  # of 10 pt each
