"""The pictures in docs/images: what the page looks like, and that it does so with the demo model.

MORPHKV_SCREENSHOTS=docs/images python -m pytest tests/server/test_page_pictures.py    # makes them anew
"""

import os
import struct
from pathlib import Path

import pytest

from support.browser import NARROW, WIDE, why_no_browser, with_browser
from support.command import run

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
N_MOST = 200_000  # bytes of a picture
SHOWN = {"page-1280": WIDE, "page-1280-dark": WIDE, "page-390": NARROW, "page-390-cache": NARROW}
QUESTIONS = ("What is a telescope for?", "Tell me something about the planet Mars.")

# points at a token that some heads keep
A_TOKEN = """
    const isSome = (n, i) => i > 40 && n > 10 && n < slot.last.n_heads && slot.pieces[i].trim().length > 3;
    here = [...slot.heads].findIndex(isSome) - 1;
    document.getElementById('text').focus()"""


def keep_small(path: Path) -> None:
    """With as many colours as the page needs."""
    Image = pytest.importorskip("PIL.Image", reason="pictures are made smaller by Pillow")
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(96)
    few.save(path, optimize=True)


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_is_small_and_of_its_width(name):
    data = (IMAGES / f"{name}.png").read_bytes()
    assert len(data) < N_MOST
    assert struct.unpack(">II", data[16:24]) == SHOWN[name]


def test_the_map_is_small():
    assert (IMAGES / "kept.svg").stat().st_size < N_MOST


@pytest.fixture(scope="module")
def text() -> str:
    from morphkv_cpp.eval import prose_sections

    first, *others = prose_sections()
    return f"{first[:700]}\n\nThe code of Anna's bicycle lock is 4711.\n\n" + "\n\n".join(others)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    named = os.environ.get("MORPHKV_SCREENSHOTS")
    return Path(named).absolute() if named else tmp_path_factory.mktemp("pictures")


@pytest.mark.demo
@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser() or "-")
def test_the_page_in_light_and_dark_wide_and_narrow(start_server, demo_model, text, folder, tmp_path):
    small = ("--morphkv-capacity", 160, "--morphkv-interval", 32, "--morphkv-prompt-room", 128)
    server = start_server(demo_model, "--morphkv", *small, "-np", 1, "--morphkv-archive", "ram", "--temp", 0)
    for browser in with_browser(tmp_path):
        browser.look_as(WIDE)
        browser.open(f"{server.url}/morphkv")
        browser.wait("return document.getElementById('state').textContent === 'ready'")
        browser.run("window.morphkvBody = {max_tokens: 32}")
        for question in (f"Read this.\n\n{text[:1500]}", *QUESTIONS):
            browser.run("document.getElementById('say').value = arguments[0]", question)
            browser.click("#send")
            browser.wait("return !isStreaming && messages.at(-1).role === 'assistant'", seconds=600)
        browser.wait("return slot.layers && versionOf(slot.last) === slot.layersOf && !slot.last.is_processing")
        seen = browser.run("return [slot.last.n_kept, slot.last.n_tokens, slot.last.cache.n_evictions]")
        assert seen[0] < seen[1]
        assert seen[2] > 2
        browser.run(A_TOKEN)
        browser.press("#text", "\ue014")
        # those of whatever machine makes the pictures
        browser.run("""
            rate = 0;
            showStats();
            for (const message of messages) message.note = (message.note || '').replace(/ [0-9.]+ tok\\/s,?/, '');
            renderAll()""")
        for name, size in SHOWN.items():
            browser.look_as(size, dark=name.endswith("dark"))
            tab = "cache" if name.endswith("cache") else "chat"
            browser.run("document.querySelector(`.tabs button[data-to=${arguments[0]}]`).click()", tab)
            browser.run("document.activeElement.blur(); document.getElementById('log').scrollTop = 1e6")
            browser.wait("return document.getAnimations().length === 0")
            assert browser.run("return document.documentElement.scrollWidth") <= size[0]
            browser.screenshot(folder / f"{name}.png")
            keep_small(folder / f"{name}.png")
            assert (folder / f"{name}.png").stat().st_size < N_MOST


@pytest.mark.demo
@pytest.mark.slow
def test_the_map_of_a_text(demo_model, text, folder, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    (tmp_path / "manual.txt").write_text(text[:7000], encoding="utf-8")
    plot = folder / "kept.svg"
    options = ["--capacity", "512", "--prompt-room", "0", "--no-archive", "--plot", str(plot)]
    assert run("show", str(demo_model), str(tmp_path / "manual.txt"), *options) == 0
    assert plot.stat().st_size < N_MOST
