"""Fixtures that find or make models and libraries; each skips with its reason where something is missing."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.device import DEVICE
from support.rpc_process import RPC_SERVER, RpcServer

LONG_SECONDS = 3600  # for a test that may take minutes, where the machine is busy


def pytest_sessionstart() -> None:
    """A device that was asked for and is not there is an error: tests would pass on the CPU."""
    if DEVICE:
        from morphkv_cpp import bridge

        names = [device["name"] for device in bridge.devices()]
        if DEVICE not in names:
            pytest.exit(f"MORPHKV_DEVICE must name a device of this build, one of {names}, got {DEVICE!r}", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_long = any(map(item.get_closest_marker, ("demo", "slow", "archs")))
        if is_long and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_SECONDS))


@pytest.fixture(scope="session", autouse=True)
def layers_stay_here() -> Iterator[None]:
    """As on a machine without a GPU, where a test does not say how many layers go there."""
    try:
        from morphkv_cpp.cache import context
    except ImportError:  # some tests need no package
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "has_gpu", lambda: False)
        yield


@pytest.fixture(scope="module", autouse=True)
def log_stays() -> Iterator[None]:
    """llama.cpp's log is one for the process: a module that sets it sets it back."""
    if "llama_cpp" not in sys.modules:
        yield
        return
    from support.log import log_address

    before = log_address()
    yield
    assert log_address() == before


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's GGUF."""
    from morphkv_cpp.models.demo import demo_model_path

    try:
        return demo_model_path()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"no demo model: {error}")


@pytest.fixture(scope="session")
def gemma_model() -> Path:
    """The GGUF of Gemma 3 270M; optional, as it has to be fetched."""
    from morphkv_cpp.models.gemma import gemma_model_path

    try:
        return gemma_model_path()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"no Gemma: {error}")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Callable[..., Path]:
    """Factory of tiny llama GGUFs: tiny_llama(n_head=6, ...) -> path; each shape is written once a session."""
    synthetic = pytest.importorskip("morphkv_cpp.models.synthetic", reason="tiny models need the gguf package")
    folder = tmp_path_factory.mktemp("tiny_llama")
    written: dict[tuple, Path] = {}

    def make(**shape) -> Path:
        key = tuple(sorted(shape.items()))
        if key not in written:
            written[key] = synthetic.write_tiny_llama(folder / f"{len(written)}.gguf", **shape)
        return written[key]

    return make


@pytest.fixture(scope="session")
def tiny_hybrid(tmp_path_factory) -> Path:
    """GGUF of a tiny model with recurrent layers, and tiny_llama's vocabulary."""
    hybrids = pytest.importorskip("support.hybrids", reason="tiny models need the gguf package")
    return hybrids.write_tiny_hybrid(tmp_path_factory.mktemp("tiny_hybrid") / "hybrid.gguf")


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """Factory of tiny models that see, by their projector's name: tiny_vision("lfm2") -> model, projector."""
    vision = pytest.importorskip("support.vision", reason="tiny models need the gguf package")
    folder = tmp_path_factory.mktemp("tiny_vision")
    return functools.cache(lambda kind: vision.write_vision(folder, kind))


@pytest.fixture
def open_llama(request, tiny_llama) -> Iterator[Callable[..., Any]]:
    """Factory of tiny models for chats, with settings SMALL and options OPEN of the test's module.

    They are closed at the end.
    """
    from morphkv_cpp import Llama
    from support.tiny import QUIET

    opened = []

    def make(morphkv=request.module.SMALL, *, shape=(), **options):
        options = QUIET | {"chat_format": "chatml"} | getattr(request.module, "OPEN", {}) | options
        opened.append(Llama(str(tiny_llama(**dict(shape))), morphkv=morphkv, **options))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


@pytest.fixture(scope="session")
def links(tmp_path_factory) -> None:
    """Skips what makes symbolic links where this user may not: Windows has a right for that."""
    folder = tmp_path_factory.mktemp("links")
    try:
        (folder / "link").symlink_to(folder)
    except OSError as error:
        pytest.skip(f"no symbolic links: {error}")


@pytest.fixture(scope="session")
def stock_lib_dir() -> Path:
    """Folder of an unpatched build's libraries, of the pinned upstream version."""
    folder = os.environ.get("MORPHKV_STOCK_LIB")
    if not folder:
        pytest.skip("MORPHKV_STOCK_LIB names no folder with an unpatched libllama")
    if not list(Path(folder).glob("*llama.*")):
        pytest.skip(f"MORPHKV_STOCK_LIB has no libllama: {folder}")
    return Path(folder)


@pytest.fixture(scope="module")
def rpc_servers(tmp_path_factory) -> Iterator[list[RpcServer]]:
    """Two RPC servers, for the tests of a module. What was loaded on them must be closed by the test that loaded it."""
    if not RPC_SERVER.is_file():
        pytest.skip("built without ggml-rpc-server")
    folder = tmp_path_factory.mktemp("rpc")
    servers = []
    try:
        for i in range(2):
            servers.append(RpcServer(folder / f"{i}.log"))
        yield servers
    finally:
        for server in servers:
            server.stop()
