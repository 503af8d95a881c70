"""What is renamed keeps its old name for one version, and says so."""

from __future__ import annotations

import functools
import warnings
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


def warn_old(sentence: str, stacklevel: int = 2) -> None:
    """stacklevel: 2 is the caller of whoever calls this."""
    warnings.warn(sentence, DeprecationWarning, stacklevel=stacklevel + 1)


def fields_by_position(cls: T) -> T:
    """Let the keyword-only fields of a dataclass still come by position, with a warning."""
    by_keyword = cls.__init__  # type: ignore[misc]
    names = [field.name for field in fields(cls)]
    n_plain = sum(not field.kw_only for field in fields(cls))

    @functools.wraps(by_keyword)
    def init(self: Any, *values: Any, **settings: Any) -> None:
        old = dict(zip(names[n_plain:], values[n_plain:]))
        if old:
            words = ", ".join(f"{name}={value!r}" for name, value in old.items())
            warn_old(f"settings of {cls.__name__} are given by name from the next version on: {words}", 2)
        if twice := sorted(old.keys() & settings.keys()):
            raise TypeError(f"{cls.__name__} got {', '.join(twice)} twice")
        if len(values) > len(names):
            raise TypeError(f"{cls.__name__} has {len(names)} settings, got {len(values)}")
        by_keyword(self, *values[:n_plain], **old, **settings)

    cls.__init__ = init  # type: ignore[misc]
    return cls
