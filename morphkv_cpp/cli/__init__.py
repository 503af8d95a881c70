"""The command line, `morphkv`: a file a command."""

from typing import Any


def __getattr__(name: str) -> Any:
    """As in 0.1.0 `main` can be had from here; nothing is imported before."""
    if name == "main":
        from .app import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
