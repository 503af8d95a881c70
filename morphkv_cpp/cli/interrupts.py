"""Ctrl-C while llama.cpp samples."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def noted_interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises KeyboardInterrupt, but where llama.cpp calls a logits processor, whose exceptions are lost, later.

    Gives a function that raises what is due, to be called after each token; at the end it is raised anyway.
    """
    is_due = False

    def interrupt(_number: int, frame: FrameType | None) -> None:
        nonlocal is_due
        is_due = True
        if not _in_sampler(frame):
            raise KeyboardInterrupt

    def check() -> None:
        if is_due:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, before)


def _in_sampler(frame: FrameType | None) -> bool:
    """Whether the frame is that of llama_cpp's function for custom samplers, or was called from there."""
    while frame is not None:
        if frame.f_code.co_name == "apply_wrapper" and frame.f_globals.get("__name__") == "llama_cpp._internals":
            return True
        frame = frame.f_back
    return False
