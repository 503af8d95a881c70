"""llama.cpp's own page, where it was built in (MORPHKV_WEBUI=ON): what its context gauge shows."""

import os
import re
from pathlib import Path

import pytest

from support.browser import WIDE, why_no_browser, with_browser
from support.page_stub import PAGE
from support.server_process import TIGHT

pytestmark = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser() or "-")

DIAL, CARD, ENTER = "[data-context-gauge-trigger]", "form [role=status]", "\ue007"
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


def gauge(browser) -> str:
    """What the card says, its words apart by single spaces; the card is open then."""
    browser.wait("return document.querySelector(arguments[0])", DIAL)
    if not browser.run("return document.querySelector(arguments[0])", CARD):
        browser.press(DIAL, ENTER)
    browser.wait("return document.querySelector(arguments[0])", CARD)
    return re.sub(r"\s+", " ", browser.run("return document.querySelector(arguments[0]).innerText", CARD))


def keep(browser, name: str) -> None:
    """As an artefact, where a folder for these is named."""
    if folder := os.environ.get("MORPHKV_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder) / f"{name}.png")


def test_with_a_cache_of_constant_size_it_shows_kept_and_seen(browser, start_server, tiny_llama):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "-n", N_ANSWER, "--temp", 0)
    open_page(browser, server)
    shown = []
    for _ in range(4):
        say(browser, "the sea is wide and the ships go far out into the night")
        shown.append(gauge(browser))
        # what the server says of the same moment; an answer's last token is decoded with what follows
        seen = server.get("/morphkv/retained?id_slot=0")
        n_kept, n_seen = seen["cache"]["n_used"], seen["n_tokens"] + 1
        share = round(100 * n_kept / n_seen)
        wanted = f"Context · {n_kept} kept / {n_seen} seen {share}% kept {n_seen - n_kept} evicted "
        assert shown[-1].startswith(wanted)
    assert n_kept < n_seen
    browser.click(f"{CARD} button")
    assert f"KV cache total {n_kept} tok" in gauge(browser)
    keep(browser, "webui-gauge")
    # after an answer that was stopped, and in a page that is loaded anew
    browser.open(browser.run("return location.href"))
    assert gauge(browser).startswith(wanted)
    assert browser.errors() == []


def test_an_answer_that_is_stopped_has_told_what_is_kept(browser, start_server, tiny_llama):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "-n", 100_000, "--temp", 0, "--ignore-eos")
    open_page(browser, server)
    browser.press("form textarea", "go on" + ENTER)
    browser.wait("return document.querySelector(arguments[0])", DIAL)
    while_written = gauge(browser)
    browser.run("[...document.querySelectorAll('form .sr-only')].find((e) => e.textContent === 'Stop').click()")
    wait_until_written(browser)
    for text in (while_written, gauge(browser)):
        assert re.match(r"Context · \d+ kept / [\d.K]+ seen \d+% kept [\d.K]+ evicted ", text)


def test_without_morphkv_it_is_llama_cpps(browser, start_server, tiny_llama):
    server = start_server(tiny_llama(), "-c", 1024, "-np", 1, "-n", N_ANSWER, "--temp", 0)
    open_page(browser, server)
    say(browser, "the sea is wide and the ships go far out into the night")
    n = server.get("/slots")[0]["n_past"]
    assert gauge(browser).startswith(f"Context · {n} / 1.02K {round(100 * n / 1024)}% used {1024 - n} remaining ")
    keep(browser, "webui-gauge-off")
