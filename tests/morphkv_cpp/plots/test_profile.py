"""The plot of a profile: a bar for each layer, and which layers keep more."""

import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from morphkv_cpp import Profile
from morphkv_cpp.plots.profile import LARGE, SMALL, plot_profile

PROFILE = Profile((0.3, 0.1, 0.0, 0.2), model="a model")


@pytest.fixture(scope="module")
def svg(tmp_path_factory) -> ET.Element:
    path = tmp_path_factory.mktemp("plot") / "profile.svg"
    plot_profile(path, PROFILE)
    return ET.parse(path).getroot()


def bars(svg: ET.Element, color: str) -> list[float]:
    """Heights, in points; the box in the legend, which is a bar too, left out."""
    heights = []
    for path in svg.findall(".//{*}path"):
        if f"fill: {color}" in (path.get("style") or ""):
            ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path.get("d"))]
            heights.append(max(ys) - min(ys))
    return heights[:-1]


def test_the_layers_that_keep_more_are_dark(svg):
    assert PROFILE.large == (0,)
    assert len(bars(svg, LARGE)) == 1
    assert len(bars(svg, SMALL)) == 3


def test_bars_are_as_high_as_the_harm(svg):
    (first,), (second, _, last) = bars(svg, LARGE), bars(svg, SMALL)
    assert first / second == pytest.approx(3, rel=1e-2)
    assert last / second == pytest.approx(2, rel=1e-2)


def test_axes_say_what_they_are(svg):
    texts = {element.text for element in svg.findall(".//{*}text")}
    assert {"layer", "nats a token", "keeps more (50% of the harm)", "keeps less"} <= texts
    assert "a model: the harm that evictions do, layer by layer" in texts
