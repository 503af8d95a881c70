"""The page in a real browser: chats, what it shows of the cache, hostile text, accessibility, long texts."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.browser import NARROW, WAIT_SECONDS, WIDE, BrowserError, why_no_browser, with_browser
from support.page_stub import long_text, page_server
from support.projectors import with_image
from support.server_process import TIGHT
from support.vision import KINDS

pytestmark = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser() or "-")

N_LONG = 100_000
HOSTILE = "</script><img src=x onerror=document.title='hit'><script>document.title='hit'</script>{{7*7}}&lt;b&gt;"
# by a screen reader's users the page is not usable with one of these
SERIOUS = {"serious", "critical"}
SCRIPTS = {"FunctionCall", "FireAnimationFrame", "TimerFire"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from with_browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama):
    return start_shared(tiny_llama(), *TIGHT, "-np", 1, "--morphkv-archive", "ram", "--temp", 0)


def keep(browser, name: str) -> None:
    """As an artefact, where a folder for these is named."""
    if folder := os.environ.get("MORPHKV_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder) / f"{name}.png")


def open_page(browser, url: str, size=WIDE) -> None:
    browser.look_as(size)
    browser.open(url)
    browser.wait("return document.getElementById('state').textContent === 'ready'")


def say(browser, text: str, button: str = "#send", **body) -> str:
    """The answer."""
    browser.run("window.morphkvBody = arguments[0]", {"ignore_eos": True, "max_tokens": 40, **body})
    if text:
        browser.press("#say", text)
    browser.click(button)
    return wait_for_answer(browser)


def wait_for_answer(browser) -> str:
    browser.wait("return !isStreaming && messages.length && messages.at(-1).role === 'assistant'")
    return browser.run("return document.querySelector('article.assistant:last-of-type .said').textContent")


def settled(browser) -> None:
    """What the page shows is of the last eviction, and was seen after the call: a look may be under way."""
    n_looks = browser.run("return slot.last ? slot.last.n_looks : 0")
    browser.wait(
        """
        look();
        return slot.last && slot.last.n_looks > arguments[0] + 1 && !slot.last.is_processing && slot.layers &&
            versionOf(slot.last) === slot.layersOf""",
        n_looks,
    )


def show_all_tokens(browser) -> list[tuple[int, int, bool]]:
    """Of each token: its number, how many heads the page says keep it, whether it is marked as recalled."""
    script = """
        for (const block of blocks) { block.node.scrollIntoView(); fill(block); }
        return [...document.querySelectorAll('#text span')].map(
            (s) => [Number(s.dataset.token), Number(s.dataset.heads), s.classList.contains('back')])"""
    return [tuple(one) for one in browser.run(script)]


def test_a_chat_is_streamed_asked_again_and_edited(browser, server):
    open_page(browser, f"{server.url}/morphkv")
    browser.requests()
    first = say(browser, "hello there")
    assert len(first) > 0
    assert browser.text(".user .said") == "hello there"
    assert "tok/s" in browser.text("article.assistant .acts")
    assert say(browser, "", button="article.assistant .acts button") == first  # greedy
    browser.click("article.user .acts button")
    browser.press("article.user textarea", " again")
    browser.click("article.user .acts button")
    wait_for_answer(browser)
    assert browser.text(".user .said") == "hello there again"
    assert browser.run("return document.querySelectorAll('article').length") == 2
    say(browser, "and on")
    assert browser.run("return document.querySelectorAll('article').length") == 4
    assert browser.errors() == []
    assert {url.split("/")[2] for url in browser.requests()} == {server.url.removeprefix("http://")}


def test_an_answer_can_be_stopped(browser, server):
    open_page(browser, f"{server.url}/morphkv")
    browser.run("window.morphkvBody = {ignore_eos: true, max_tokens: 100000}")
    browser.press("#say", "go on\n")  # Enter sends
    browser.wait("return messages.length === 2 && messages[1].content.length > 20")
    browser.click("#stop")
    assert wait_for_answer(browser)
    assert "stopped" in browser.text("article.assistant .acts")
    assert not browser.run("return document.getElementById('send').hidden")


def test_a_token_fades_when_it_is_evicted_and_lights_up_when_it_is_recalled(browser, server):
    open_page(browser, f"{server.url}/morphkv")
    say(browser, "a fact of long ago: the lamp is blue", max_tokens=8)
    settled(browser)
    n_heads = browser.run("return slot.last.n_heads")
    before = show_all_tokens(browser)
    assert {heads for _, heads, _ in before} == {n_heads}
    marked: set[int] = set()
    for _ in range(6):
        say(browser, "tell me of something else, and of the sea and the ships that go far", max_tokens=60)
        settled(browser)
        shown = show_all_tokens(browser)
        marked |= {token for token, _, is_back in shown if is_back}
    assert {heads for _, heads, _ in shown} >= {0, n_heads}
    assert any(heads == 0 for token, heads, _ in shown if token < len(before))
    # what is marked had left the window, and some head has it again
    first_recent = browser.run("return slot.last.first_recent")
    assert marked
    assert all(heads > 0 and token < first_recent for token, heads, is_back in shown if is_back)
    keep(browser, "chat")


def test_what_it_shows_is_what_is_retained(browser, server):
    open_page(browser, f"{server.url}/morphkv")
    for _ in range(5):
        say(browser, "the sea is wide and the ships go far out into the night", max_tokens=60)
    settled(browser)
    seen = server.get("/morphkv/retained?id_slot=0&layers=1")
    counts = np.full(seen["n_tokens"], 0)
    counts[seen["first_recent"] :] = seen["n_heads"]
    for layer in seen["layers"]:
        for head in layer["heads"]:
            counts[np.cumsum(head)] += 1
    shown = show_all_tokens(browser)
    assert [token for token, _, _ in shown] == list(range(seen["n_tokens"]))
    assert [heads for _, heads, _ in shown] == counts.tolist()
    figures = browser.run(
        "return Object.fromEntries([...document.querySelectorAll('#stats div')].map((d) => "
        "[d.dataset.name, d.lastChild.textContent]))"
    )
    assert figures["seen"] == f"{seen['n_tokens']:,}"
    assert figures["kept"] == f"{seen['n_kept']:,}"
    assert figures["evictions"] == f"{seen['cache']['n_evictions']:,}"
    # layer by layer, by keyboard
    token = int(np.argmax((counts > 0) & (counts < seen["n_heads"])))
    browser.run("here = arguments[0] - 1; document.getElementById('text').focus()", token)
    browser.press("#text", "\ue014")
    assert f"kept by {counts[token]} of {seen['n_heads']} heads" in browser.text("#about")
    bars = browser.run("return [...document.querySelectorAll('#layers i')].map((i) => i.title)")
    by_layer = [sum(token in np.cumsum(head) for head in layer["heads"]) for layer in seen["layers"]]
    assert bars == [f"layer {i}: {n} of {seen['layers'][i]['n_heads']}" for i, n in enumerate(by_layer)]


def test_a_long_prompt_says_how_far_it_is(browser, start_server, tiny_llama):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "-b", 64)
    open_page(browser, f"{server.url}/morphkv")
    browser.run("""
        window.told = [];
        const words = $('reads-text');
        new MutationObserver(() => told.push(words.textContent)).observe(words, {childList: true})""")
    say(browser, "the sea is wide and the ships go far " * 100, max_tokens=4)
    told = browser.run("return told")
    assert len(told) > 3
    assert all(re.fullmatch(r"reading the prompt: \d+% of [\d,]+ tokens(, \d+ (s|min) left)?", text) for text in told)
    shares = [int(re.search(r"(\d+)%", text).group(1)) for text in told]
    assert shares == sorted(shares)
    assert any("left" in text and 0 < share < 100 for text, share in zip(told, shares))
    assert browser.run("return $('reads').classList.contains('hidden')")


@pytest.mark.parametrize("kind", ["gemma3", "qwen2vl_merger"])
def test_an_image_is_one_marked_piece(browser, start_server, tiny_vision, kind):
    model, projector = tiny_vision(kind)
    server = start_server(model, "--mmproj", projector, *TIGHT, "-np", 1)
    messages = []
    for i in range(4):
        messages.append({"role": "user", "content": with_image("a word and another one " * 2, i)})
        messages.append(server.chat(messages, 8, ignore_eos=True)["choices"][0]["message"])
    open_page(browser, f"{server.url}/morphkv")
    browser.errors()
    settled(browser)
    show_all_tokens(browser)
    pieces = browser.run("return [...document.querySelectorAll('[data-medium]')].map((s) => s.textContent)")
    assert pieces == [f"[image, {KINDS[kind].n_tokens} tokens]"] * 4
    browser.click("[data-medium]")
    first = browser.run("return slot.media[0][0]")
    about = browser.text("#about")
    assert about.startswith(f"Tokens {first} to {first + KINDS[kind].n_tokens - 1}, image: ")
    # as many bars as layers, and by keyboard on to what is behind the image
    assert browser.run("return document.querySelectorAll('#layers i').length === slot.layers.length")
    browser.press("#text", "\ue014")
    assert f"Token {first + KINDS[kind].n_tokens}," in browser.text("#about")
    assert browser.errors() == []


def test_hostile_text_stays_text(browser, server):
    open_page(browser, f"{server.url}/morphkv")
    browser.errors()
    grammar = "root ::= " + '"' + HOSTILE.replace("\\", "\\\\").replace('"', '\\"') + '"'
    answer = say(browser, HOSTILE, grammar=grammar, max_tokens=200, ignore_eos=False)
    assert answer == HOSTILE
    assert browser.text(".user .said") == HOSTILE
    settled(browser)
    show_all_tokens(browser)
    assert HOSTILE in browser.run(
        "return [...document.querySelectorAll('#text span')].map((s) => s.textContent).join('')"
    )
    assert (
        browser.run("return document.querySelectorAll('img, body script[src], article script, #text script').length")
        == 0
    )
    assert browser.run("return document.title") == "MorphKV"
    assert browser.errors() == []
    with pytest.raises(BrowserError, match="TrustedHTML"):
        browser.run("document.body.innerHTML = '<p>'")


def test_a_key_is_asked_for(browser, start_server, tiny_llama):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--api-key", "secret")
    browser.look_as(WIDE)
    browser.open(f"{server.url}/morphkv")
    browser.wait("return document.getElementById('state').textContent.includes('API key')")
    assert not browser.run("return document.getElementById('key-label').hidden")
    browser.press("#key", "secret\t")
    browser.wait("return document.getElementById('state').textContent === 'ready'")
    assert say(browser, "hello")


def axe(folder: Path) -> str:
    """axe-core's source, from the npm registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core needs npm")
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no axe-core: {done.stderr[-200:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.slow
def test_axe_finds_no_serious_fault(browser, server, tmp_path):
    source = axe(tmp_path)
    open_page(browser, f"{server.url}/morphkv")
    for _ in range(4):
        say(browser, "the sea is wide and the ships go far out into the night", max_tokens=60)
    settled(browser)
    for size in (WIDE, NARROW):
        for dark in (False, True):
            browser.look_as(size, dark)
            browser.wait("return document.getAnimations().length === 0")  # colours fade into each other
            for tab in ("chat", "cache") if size == NARROW else ("chat",):
                browser.run("document.querySelector(`.tabs button[data-to=${arguments[0]}]`).click()", tab)
                browser.run(source + "; window.axe = window.axe || axe")
                found = browser.run("return axe.run(document).then((r) => r.violations)")
                faults = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS]
                assert faults == [], (size, dark, tab)
                keep(browser, f"{size[0]}-{'dark' if dark else 'light'}-{tab}")
                # nothing is wider than a phone
                assert browser.run("return document.documentElement.scrollWidth") <= size[0]


@pytest.mark.slow
def test_a_long_text_stays_smooth_and_small(browser):
    with page_server(long_text(N_LONG)) as url:
        browser.look_as(WIDE)
        browser.trace()
        browser.open(url)
        browser.wait("return slot.n === arguments[0]", N_LONG)
        assert browser.run("return document.querySelectorAll('#text span').length") < 2000
        browser.run("""
            window.nFrames = 0;
            const text = document.getElementById('text');
            const next = () => {
                text.scrollTop = nFrames * 4999 % text.scrollHeight;
                if (++nFrames < 200) requestAnimationFrame(next);
            };
            requestAnimationFrame(next)""")
        browser.wait("return nFrames === 200", seconds=600)
        browser.devtools("HeapProfiler.collectGarbage")  # that of the tests before as well, which had the same process
        kilobytes = memory_of_renderers(browser)
        browser.open("about:blank")  # ends the trace
        # CPU time of each script, in microseconds; garbage is collected when the browser likes
        scripts = traced_scripts(browser, n_frames=200)
        longest_ms = max(event.get("tdur", 0) for event in scripts) / 1000
        frames_ms = [event.get("tdur", 0) / 1000 for event in scripts if event["name"] == "FireAnimationFrame"]
        print(f"frames up to {max(frames_ms):.1f} ms, scripts up to {longest_ms:.1f} ms, {kilobytes / 1024:.0f} MB")
        assert len(frames_ms) >= 200
        # of 100 frames 95; the others share the cores with whatever else runs
        assert sorted(frames_ms)[len(frames_ms) * 95 // 100] < 16
        assert kilobytes < 300 * 1024


def traced_scripts(browser, n_frames: int) -> list[dict[str, Any]]:
    """Of a trace that has ended, once it has so many frames: a busy browser tells them later."""
    scripts: list[dict[str, Any]] = []
    end = time.monotonic() + WAIT_SECONDS
    while sum(event["name"] == "FireAnimationFrame" for event in scripts) < n_frames and time.monotonic() < end:
        scripts += [event for event in browser.trace() if event.get("name") in SCRIPTS]
        time.sleep(0.1)
    return scripts


def memory_of_renderers(browser) -> int:
    """Proportional set size, kB, of the largest process that shows a page of this browser."""
    sizes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"--type=renderer" in command and str(browser.folder).encode() in command:
                rollup = (process / "smaps_rollup").read_text()
                sizes.append(int(rollup.split("\nPss:")[1].split()[0]))
        except (OSError, IndexError):
            continue
    return max(sizes)
