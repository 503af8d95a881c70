"""llama.cpp's own page, where it was built in (MORPHKV_WEBUI=ON): what its context gauge shows."""

import os
import re
import time
from pathlib import Path

import pytest

from support.browser import WAIT_SECONDS, WIDE, why_no_browser, with_browser
from support.page_stub import PAGE
from support.server_process import TIGHT

pytestmark = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser() or "-")

DIAL, CARD, ENTER = "[data-context-gauge-trigger]", "form [role=status]", "\ue007"
KEPT = r"^Context · (\d+) / ([\d.K]+) \d+% kept \2 seen "
N_ANSWER = 40


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from with_browser(tmp_path_factory.mktemp("browser"))


def open_page(browser, server, size=WIDE) -> None:
    if server.http.get("/").content == PAGE.read_bytes():
        pytest.skip("the package was built without llama.cpp's page (MORPHKV_WEBUI=ON)")
    browser.look_as(size)
    browser.open(server.url)
    browser.wait("return document.querySelector('form textarea')")


def say(browser, text: str) -> None:
    n = browser.run("return document.querySelectorAll('[aria-label=\"Assistant message with actions\"]').length")
    browser.press("form textarea", text + ENTER)
    browser.wait(
        "return document.querySelectorAll('[aria-label=\"Assistant message with actions\"]').length > arguments[0]", n
    )
    wait_until_written(browser)


def wait_until_written(browser) -> None:
    browser.wait("return ![...document.querySelectorAll('form .sr-only')].some((e) => e.textContent === 'Stop')")


def open_gauge(browser) -> None:
    browser.wait("return document.querySelector(arguments[0])", DIAL)
    browser.press(DIAL, ENTER)
    browser.wait("return document.querySelector(arguments[0])", CARD)


def shown(browser, pattern: str) -> re.Match[str]:
    """In the open card of the gauge, its words apart by single spaces."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        text = re.sub(r"\s+", " ", browser.run("return document.querySelector(arguments[0]).innerText", CARD))
        if found := re.search(pattern, text):
            return found
        assert time.monotonic() < end, (pattern, text)
        time.sleep(0.1)


def number(text: str) -> float:
    """As the page writes it, from 1,000 on with a K."""
    return 1000 * float(text[:-1]) if text.endswith("K") else float(text)


def keep(browser, name: str) -> None:
    """As an artefact, where a folder for these is named."""
    if folder := os.environ.get("MORPHKV_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder) / f"{name}.png")


def test_with_a_cache_of_constant_size_it_shows_kept_and_seen(browser, start_server, tiny_llama):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "-n", N_ANSWER, "--temp", 0)
    open_page(browser, server)
    for i in range(4):
        say(browser, "the sea is wide and the ships go far out into the night")
        if i == 0:
            open_gauge(browser)
        # what the server says of the same moment; an answer's last token is decoded with what follows
        seen = server.get("/morphkv/retained?id_slot=0")
        n_kept, n_seen = seen["cache"]["n_used"], seen["n_tokens"] + 1
        wanted = f"^Context · {n_kept} / {n_seen} {round(100 * n_kept / n_seen)}% kept {n_seen} seen "
        shown(browser, wanted)
    assert n_kept < n_seen
    browser.click(f"{CARD} button")
    shown(browser, f"KV cache total {n_kept} tok")
    keep(browser, "webui-gauge")
    browser.run("window.isOld = true; location.reload()")
    browser.wait("return !window.isOld")
    open_gauge(browser)
    shown(browser, wanted)


def test_it_shows_them_while_an_answer_is_written_and_when_that_is_stopped(browser, start_server, tiny_llama):
    # as slow as a page is that lays out each token
    slow = tiny_llama(n_layer=8, n_embd=512, n_ff=2048)
    server = start_server(slow, *TIGHT, "-np", 1, "-n", 5000, "--temp", 0, "--ignore-eos")
    open_page(browser, server)
    browser.press("form textarea", "go on" + ENTER)
    open_gauge(browser)
    n_kept, n_seen = shown(browser, KEPT).groups()
    n_written = shown(browser, f"(?!.* {n_seen} seen ){KEPT}")[2]
    browser.run("[...document.querySelectorAll('form .sr-only')].find((e) => e.textContent === 'Stop').click()")
    wait_until_written(browser)
    assert number(n_seen) < number(n_written) <= number(shown(browser, KEPT)[2])
    assert 0 < int(n_kept) < 1000


def test_without_morphkv_it_is_llama_cpps(browser, start_server, tiny_llama):
    server = start_server(tiny_llama(), "-c", 1024, "-np", 1, "-n", N_ANSWER, "--temp", 0)
    open_page(browser, server)
    say(browser, "the sea is wide and the ships go far out into the night")
    open_gauge(browser)
    n_used, percent, n_left = map(
        int, shown(browser, r"^Context · (\d+) / 1\.02K (\d+)% used (\d+) remaining ").groups()
    )
    assert n_used > N_ANSWER
    assert (percent, n_left) == (round(100 * n_used / 1024), 1024 - n_used)
    keep(browser, "webui-gauge-off")
