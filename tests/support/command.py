"""The command line in this process."""

from __future__ import annotations

import pytest

from morphkv_cpp.cli.app import main


def run(*arguments: str) -> int:
    """`morphkv ARGUMENTS`; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code or 0
