"""The plot of a suite, read back from its SVG."""

import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from morphkv_cpp.plots.results import plot_results, value


def figure(task: str, arm: str, mean: float, measure: str = "score", **more) -> dict:
    return {"task": task, "n_tokens": 2048, "arm": arm, "mean": mean, "measure": measure, "error": 0.05} | more


FIGURES = [
    *[figure(task, arm, mean) for task in ("copy", "ruler-vt") for arm, mean in (("full", 0.9), ("morphkv", 0.6))],
    figure("perplexity", "full", 3.0, "nll"),
    figure("perplexity", "shift", 3.2, "nll", to_full=0.2, to_full_error=0.1),
    figure("perplexity", "morphkv", 3.1, "nll", to_full=0.1, to_full_error=None),
]


def test_each_arm_has_a_mark_for_each_task(tmp_path):
    path = tmp_path / "results.svg"
    plot_results(path, {"figures": FIGURES})
    svg = ET.parse(path).getroot()
    texts = [element.text for element in svg.findall(".//{*}text")]
    assert {"copy, 2,048", "ruler-vt, 2,048", "perplexity, 2,048", "score (1: all right)"} <= set(texts)
    assert {"full", "morphkv", "shift"} <= set(texts)
    # written the same each time
    plot_results(tmp_path / "again.svg", {"figures": FIGURES})
    assert path.read_bytes() == (tmp_path / "again.svg").read_bytes()


def test_perplexity_is_drawn_over_the_full_caches():
    mean, error = value(FIGURES[-1])
    assert mean == pytest.approx(10.517, abs=1e-3)
    assert error == 0.0


def test_without_figures_there_is_no_plot(tmp_path):
    with pytest.raises(ValueError, match="needs scores or perplexities"):
        plot_results(tmp_path / "a.svg", {"figures": [FIGURES[4]]})
