"""What stands at / and /morphkv: our page; at / llama.cpp's where it was built in (MORPHKV_WEBUI=ON)."""

import pytest

from support.page_stub import PAGE


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama):
    return start_shared(tiny_llama(), "-c", 256)


def test_morphkv_is_the_page_as_it_is_in_the_source(server):
    answer = server.http.get("/morphkv")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == PAGE.read_bytes()


def test_root_shows_a_page(server):
    answer = server.http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<!doctype html>" in answer.text


def test_no_ui_leaves_out_both(start_server, tiny_llama):
    server = start_server(tiny_llama(), "-c", 256, "--no-ui")
    assert server.http.get("/").status_code == server.http.get("/morphkv").status_code == 404


def test_other_paths_are_not_found(server):
    assert server.http.get("/no-such-page").status_code == 404


def test_the_page_sets_text_as_text_alone_and_names_no_other_host():
    page = PAGE.read_text(encoding="utf-8")
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "http:",
        "//www",
    ):
        assert sink not in page
    assert "https:" not in page
    assert "require-trusted-types-for 'script'" in page
    assert "connect-src 'self'" in page
