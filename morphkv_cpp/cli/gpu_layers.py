"""How many layers a command puts on the GPUs where it is not said."""

import functools
from collections.abc import Callable
from typing import Any

from ..cache.gpu_layers import AUTO, has_gpu, layers_of


def gpu_layers(given: str | int | None, rpc: str | None) -> str | int:
    """As Llama takes it; all of them where nothing is given and there is something to store them in."""
    if given is None:
        return -1 if rpc is not None or has_gpu() else 0
    return layers_of(given, "--gpu-layers")


def fitted(group: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The group llama_options, but as many as fit where nothing is given: for commands that compare nothing."""

    @functools.wraps(group)
    def options(**given: Any) -> dict[str, Any]:
        res = group(**given)
        return {**res, "n_gpu_layers": AUTO} if given["gpu_layers"] is None and given["rpc"] is None else res

    return options
