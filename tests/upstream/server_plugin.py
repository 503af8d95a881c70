"""pytest plugin for upstream's server tests: a hub on loopback, the lists of server_lists.py, tables at the end.

Environment: MORPHKV_TEST_HUB, a folder written by server_models.py; MORPHKV_TEST_WEBUI=1, the web page is built in.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import requests
from server_lists import EXPECTED_TO_FAIL, EXPECTED_TO_FAIL_WITHOUT_PAGE, NOT_RUN

from support.hub import Hub

HUB_FOLDER = Path(os.environ["MORPHKV_TEST_HUB"])
OUTCOMES = ("passed", "fails as listed", "not run", "wrong")

if os.environ.get("MORPHKV_TEST_WEBUI") != "1":
    EXPECTED_TO_FAIL |= EXPECTED_TO_FAIL_WITHOUT_PAGE

hub = Hub(HUB_FOLDER)
by_file: dict[str, Counter] = {}
by_reason: Counter = Counter()


# Upstream's utils import it; what they would download with it is a file of the hub. Before conftest.py is read.
sys.modules["wget"] = types.ModuleType("wget")


def pytest_configure(config):
    for name in list(os.environ):
        if name.startswith(("LLAMA_ARG_", "HF_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    # SLOW_TESTS: which of the slow tests are not run is said by our list.
    os.environ |= {"MODEL_ENDPOINT": hub.url, "PORT": str(free_port()), "SLOW_TESTS": "1"}
    send = requests.Session.request
    requests.Session.request = lambda self, method, url, *args, **options: send(
        self, method, from_hub(url), *args, **options
    )


def pytest_unconfigure(config):
    hub.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def from_hub(url: str) -> str:
    """The loopback address of a file for which a test names an address on upstream's hub."""
    return re.sub(r"^https://[^/]+/(?=[^/]+/[^/]+/resolve/)", hub.url, url)


def local_file(url: str, output_file_path: str | None = None) -> str:
    """The path of such a file."""
    repository, _, revision_and_name = url.partition("/resolve/")
    return str(HUB_FOLDER.joinpath(*repository.split("/")[-2:], revision_and_name.partition("/")[2]))


@pytest.hookimpl(tryfirst=True)  # before -k leaves some out
def pytest_collection_modifyitems(config, items):
    names = {name for item in items for name in names_of(item)}
    if config.args == ["unit"] and (unknown := (NOT_RUN.keys() | EXPECTED_TO_FAIL.keys()) - names):
        raise pytest.UsageError(f"upstream has no such tests any more: {sorted(unknown)}")
    for module in {item.module for item in items}:
        if hasattr(module, "get_img_url"):
            module.get_img_url = lambda name, get=module.get_img_url: from_hub(get(name))
        if hasattr(module, "download_file"):
            module.download_file = local_file
    for item in items:
        if reason := reason_in(NOT_RUN, item):
            item.add_marker(pytest.mark.skip(reason=reason), append=False)
        elif reason := reason_in(EXPECTED_TO_FAIL, item):
            # Strict: a listed test that passes fails. KeyError: upstream's reader of streams, on an error.
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=(AssertionError, KeyError)))


def names_of(item) -> tuple[str, str]:
    return f"{item.path.stem}::{item.originalname}", f"{item.path.stem}::{item.name}"


def reason_in(reasons: dict[str, str], item) -> str | None:
    return next((reasons[name] for name in names_of(item) if name in reasons), None)


def pytest_runtest_logreport(report):
    if report.when != "call" and report.passed:
        return
    if hasattr(report, "wasxfail"):
        outcome, reason = "fails as listed", report.wasxfail
    elif report.skipped:
        outcome, reason = "not run", report.longrepr[2].removeprefix("Skipped: ")
    else:
        outcome, reason = "passed" if report.passed else "wrong", None
    by_file.setdefault(Path(report.nodeid.partition("::")[0]).stem, Counter())[outcome] += 1
    if reason:
        by_reason[outcome, reason] += 1


def pytest_terminal_summary(terminalreporter):
    rows = [*sorted(by_file.items()), ("all", sum(by_file.values(), Counter()))]
    terminalreporter.section("by file")
    terminalreporter.write_line(f"{'':28}" + "".join(f"{outcome:>17}" for outcome in OUTCOMES))
    for name, counts in rows:
        terminalreporter.write_line(f"{name:28}" + "".join(f"{counts[outcome]:17}" for outcome in OUTCOMES))
    terminalreporter.section("by reason")
    for (outcome, reason), count in sorted(by_reason.items()):
        terminalreporter.write_line(f"{count:5} {outcome}: {reason}")
