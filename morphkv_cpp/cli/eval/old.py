"""`morphkv recall`, `remember` and `perplexity`, as they were: for one version more."""

import functools
from collections.abc import Callable
from typing import Any

from ...deprecation import warn_old
from ..options import llama_options, morphkv_options, with_options
from ..options_archive import archive_options
from .facts import eval_facts
from .memory import eval_memory
from .perplexity import eval_perplexity

MEMORY_DEFAULTS = {"capacity": 512, "prompt_room": 0, "archive": "ram"}
PERPLEXITY_DEFAULTS = {"prompt_room": 0, "interval": 64}


def renamed(old: str, new: str, command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(**given: Any) -> None:
        warn_old(f"`morphkv {old}` is now `morphkv {new}`")
        command(**given)

    return run


groups: dict[str, Any] = {"morphkv": morphkv_options, "llama": llama_options}
recall = with_options(**groups)(renamed("recall", "eval facts", eval_facts))
remember = with_options(MEMORY_DEFAULTS, archive=archive_options, **groups)(
    renamed("remember", "eval memory", eval_memory)
)
perplexity = with_options(PERPLEXITY_DEFAULTS, **groups)(renamed("perplexity", "eval perplexity", eval_perplexity))
