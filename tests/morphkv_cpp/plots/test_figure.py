"""Files that a plot can be, and what is said where it cannot."""

import sys

import pytest

from morphkv_cpp.plots.figure import check_plot, saved_figure


@pytest.mark.parametrize(
    "name, start", [("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.PNG", b"\x89PNG")]
)
def test_the_suffix_is_the_form(tmp_path, name, start):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    with saved_figure(tmp_path / name, 2, 1) as figure:
        figure.subplots().plot([1, 2])
    assert (tmp_path / name).read_bytes().startswith(start)


def test_what_was_set_for_other_plots_is_left_alone_and_does_not_show(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")
    with saved_figure(tmp_path / "a.svg", 2, 1) as figure:
        figure.subplots().plot([1, 2])
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.hashsalt": "mine"}):
        with saved_figure(tmp_path / "b.svg", 2, 1) as figure:
            figure.subplots().plot([1, 2])
        assert matplotlib.rcParams["svg.hashsalt"] == "mine"
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("name", ["plot", "plot.jpg", "svg"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"a plot's file must end in \.svg, \.png, \.pdf, got '.*{name}'"):
        check_plot(tmp_path / name)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a plot's folder must be there, got '.*a\.svg'"):
        check_plot(tmp_path / "no" / "a.svg")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"^matplotlib.* is needed .* pip install 'morphkv_cpp\[plot\]'$"):
        check_plot(tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []
