"""Modules that lay elsewhere in 0.1.0 can be imported by their old names for one version, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

from .deprecation import warn_old

MOVED = {
    "answer": "text.pieces",
    "archive": "cache.archive",
    "chat_keep": "chat.keep",
    "chat_template": "chat.template",
    "cli_chat": "cli.chat",
    "cli_demo": "cli.demo",
    "cli_generate": "cli.generate",
    "cli_perplexity": "cli.eval.perplexity",
    "cli_serve": "cli.serve",
    "completion": "text.completion",
    "demo": "cli.demo_text",
    "draft": "cache.draft",
    "live_text": "cache.live_text",
    "logprobs": "text.logprobs",
    "one_thread": "cache.one_thread",
    "options": "cli.options",
    "reuse": "cache.reuse",
    "session": "chat.session",
    "session_file": "cache.saved_file",
    "show": "cli.show",
    "stats": "cache.stats",
    "stream": "text.write",
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The module of an old name is the module of the new one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, module = name.rpartition(".")
        if package != __package__ or module not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = f"{__package__}.{MOVED[spec.name.rpartition('.')[2]]}"
        warn_old(f"{spec.name} is now {new}", stacklevel=6)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # importlib has given the module the old name's spec
        module.__spec__ = self._spec


def install() -> None:
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
