"""What stands at /: llama.cpp's page where it was built in (MORPHKV_WEBUI=ON), else a message."""

import pytest


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama):
    return start_shared(tiny_llama(), "-c", 256)


def test_root_shows_the_page_or_says_that_none_was_built(server):
    answer = server.http.get("/")
    assert answer.status_code == 200
    if answer.headers["content-type"].startswith("text/html"):
        assert "<!doctype html>" in answer.text
    else:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert "built without a web page" in answer.text
        assert "MORPHKV_WEBUI=ON" in answer.text


def test_other_paths_are_not_found(server):
    assert server.http.get("/no-such-page").status_code == 404
