"""Libraries that only some commands need; they are installed by an extra's name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of what an extra installs. Raises ModuleNotFoundError with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is needed for this: pip install 'morphkv_cpp[{extra}]'", name=error.name
        ) from error
