"""What a user does while the n-th call of an archive to its store fails, in a process of its own:
python -m support.store_faults OPERATION PLACE MODEL FOLDER, where PLACE is ram or file.

For every n that the operation makes and each errno. No case may end the process, lose a text, or change an answer where
nothing is recalled.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from morphkv_cpp import Archive, Llama, MorphKV, bridge
from support import chats
from support.tiny import QUIET

CONFIG = MorphKV(capacity=128, window=8, interval=8, keep=4, prompt_room=0)
ERRORS = {"ram": [errno.ENOMEM, errno.EIO], "file": [errno.ENOSPC, errno.EIO, errno.EDQUOT]}


def native_library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(next(path for path in bridge.LIB_DIR.iterdir() if path.name.startswith("libllama."))))
    library.morphkv_testing_fail_store.argtypes = [ctypes.c_int64, ctypes.c_int32]
    library.morphkv_testing_fail_store.restype = None
    library.morphkv_testing_n_store_calls.restype = ctypes.c_int64
    return library


class World:
    """A Llama with an archive, and two chats that are set back before each case."""

    def __init__(self, place: str, model: str, folder: Path):
        self.archive = "ram" if place == "ram" else folder / "archive"
        self.model, self.folder = model, folder
        self.llm = self.open()
        chat = self.llm.session("abc")
        for i in range(3):
            talk(chat, f"question {i}")
        chat.save(folder / "base")
        other = self.llm.session("xyz")
        talk(other, "hello")
        other.save(folder / "other")
        self.reset()
        self.wanted = talk(self.chat, "and now?")
        assert self.llm.cache_stats().n_archived > 100

    def open(self) -> Llama:
        quiet = {**QUIET, "chat_format": "chatml"}
        return Llama(self.model, morphkv=CONFIG, archive=Archive(self.archive, recall="off", share=0.6), **quiet)

    def reset(self) -> None:
        """The chat has the cache."""
        if self.llm.ctx is None:
            self.llm = self.open()
        self.chat = self.llm.load_session(self.folder / "base")
        self.saved = self.llm.save_state()
        self.is_as_before = True
        (self.folder / "saved").write_bytes(b"old")

    def check(self) -> None:
        """The chat goes on as if nothing had happened, and files are whole."""
        llm, chat = self.llm, self.chat
        assert not [name for name in os.listdir(self.folder) if name.startswith(".")]
        if llm.ctx is None:
            llm = self.llm = self.open()
        if not self.is_as_before and chat._llm is llm:
            assert talk(chat, "and now?")
            assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == chat._text.n_held
        if not self.is_as_before or chat._llm is not llm:
            chat = llm.load_session(self.folder / "base")
        if (self.folder / "saved").read_bytes() != b"old":
            assert talk(llm.load_session(self.folder / "saved"), "and now?") == self.wanted
        got = talk(chat, "and now?")
        assert got == self.wanted, (got, self.wanted)
        assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == chat._text.n_held


talk = functools.partial(chats.talk, n_tokens=12)


def evaluate(world: World) -> None:
    world.llm.eval([5, 6, 7] * 40)


def say(world: World) -> None:
    world.is_as_before = False
    assert talk(world.chat, "and now?") == world.wanted


def ask(world: World) -> None:
    """A question that recalls."""
    world.is_as_before = False
    world.llm.archive = replace(world.llm.archive, recall="prompt")
    try:
        assert talk(world.chat, "and now?")
    finally:
        world.llm.archive = replace(world.llm.archive, recall="off")
    assert world.llm.cache_stats().n_recalls > 0


def recall(world: World) -> None:
    world.is_as_before = False
    assert world.llm.recall().n_archived > 0


def fork(world: World) -> None:
    assert talk(world.chat.fork(), "and now?") == world.wanted


def switch(world: World) -> None:
    """The chat steps aside, and comes back."""
    with world.llm.session("xyz") as other:
        assert talk(other, "and you?")
    assert talk(world.chat, "and now?") == world.wanted
    world.is_as_before = False


def save(world: World) -> None:
    world.chat.save(world.folder / "saved")


def load_session(world: World) -> None:
    assert talk(world.llm.load_session(world.folder / "other"), "and you?")


def save_state(world: World) -> None:
    assert world.llm.save_state().n_tokens == world.saved.n_tokens


def load_state(world: World) -> None:
    world.llm.load_state(world.saved)
    assert world.llm.n_tokens == world.saved.n_tokens


def reset(world: World) -> None:
    world.llm.reset()
    world.llm.eval([9] * 80)


def completion(world: World) -> None:
    world.llm.create_completion("abc " * 30, max_tokens=12)


def close(world: World) -> None:
    world.llm.close()


def reopen(world: World) -> None:
    """All of a process's life: the only operation that may be refused."""
    world.llm.close()
    world.llm = world.open()
    world.llm.eval([5, 6, 7] * 40)


OPERATIONS: dict[str, Callable[[World], None]] = {
    "eval": evaluate,
    "say": say,
    "ask": ask,
    "recall": recall,
    "fork": fork,
    "switch": switch,
    "save": save,
    "load_session": load_session,
    "save_state": save_state,
    "load_state": load_state,
    "reset": reset,
    "completion": completion,
    "close": close,
    "reopen": reopen,
}


def run(name: str, place: str, model: str, folder: Path) -> dict[str, int]:
    library, world, operation = native_library(), World(place, model, folder), OPERATIONS[name]
    world.reset()
    library.morphkv_testing_fail_store(0, 0)
    operation(world)
    n_calls = library.morphkv_testing_n_store_calls()
    world.check()
    counts = {"calls": n_calls, "cases": 0, "refused": 0}
    for n in range(1, n_calls + 1):
        for error in ERRORS[place]:
            world.reset()
            library.morphkv_testing_fail_store(n, error)
            try:
                operation(world)
            except RuntimeError as refusal:
                if name != "reopen" or not str(refusal):
                    raise AssertionError(f"{name} with call {n} failing, {errno.errorcode[error]}") from refusal
                counts["refused"] += 1
            finally:
                library.morphkv_testing_fail_store(0, 0)
            world.check()
            counts["cases"] += 1
    return counts


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(run(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
