"""A fuzzer of the files of sessions: whatever a file holds, it is loaded or refused with an error that is documented.

    python tests/fuzz/fuzz_session.py [--runs=N] [--seconds=S] [--seed=I] [--load-every=N] [FILE...]

Files are valid ones with damage. Half of them have a right checksum all the same, so that what is behind it is reached.
Each goes through saved_file.read and the checks of load_session; the native state, which fuzz_state covers, is loaded
for one in so many inputs, and the chat goes on. FILEs are inputs that have failed; one that fails is kept as
fuzz-session-last-input.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.cache import live_text, saved_file
from morphkv_cpp.cache.fingerprint import model_fingerprint
from morphkv_cpp.chat import identity, session
from morphkv_cpp.models.synthetic import write_tiny_llama

# isort: split
import numpy as np

REFUSALS = (OSError, ValueError)
LAST_INPUT = Path("fuzz-session-last-input")
IDENTITY = ("model", "settings", "chat template")
INTEGERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -(2**63), 10**400)
JSON_TEXTS = [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b'"\\ud800"', b"1e999", b"-Infinity", b"NaN", b"null"]
JSON_TEXTS += [b"1.5", b"{}", b"[]", b'""', b",", b":", b'"', b"}", b"\xff", b"\x00"]


class NotLoaded(RuntimeError):
    """Raised in the place of the native load, behind all checks."""


class Mutator:
    """Damages valid files."""

    def __init__(self, seed: int, contents: saved_file.Contents):
        self.random = random.Random(seed)
        self.contents = contents
        self.state = bytes(contents.state)

    def next(self, with_state: bool) -> bytes:
        """A file. with_state: with the native state and not a few bytes in its place."""
        state = self.state if with_state else self.state[:64]
        header: dict[str, Any] = copy.deepcopy(self.contents.header)
        ids = self.contents.ids.astype("<i4").tobytes()
        kind = self.random.randrange(5)
        if kind == 0:
            return self._damage(seal(json.dumps(header).encode(), ids, state))
        if kind == 1:
            self._change_values(header)
        text = json.dumps(header).encode()
        if kind == 2:
            text = self._damage_text(text)
        if kind == 3:
            ids, state = self._damage(ids), self._damage(state)
            ids = ids[: len(ids) // 4 * 4]
        return seal(text, ids, state, self._fields() if kind == 4 else {})

    def _change_values(self, header: dict[str, Any]) -> None:
        for _ in range(self.random.randrange(1, 4)):
            place = header
            # into the settings, too
            while (inner := [x for x in place.values() if isinstance(x, dict)]) and self.random.random() < 0.1:
                place = self.random.choice(inner)
            # those behind the ones that tell models apart
            keys = [key for key in place if key not in IDENTITY or self.random.random() < 0.1]
            key = self.random.choice([*keys, "other"])
            if self.random.random() < 0.15:
                place.pop(key, None)
            else:
                place[key] = self._value(place.get(key))

    def _value(self, old: Any, depth: int = 0) -> Any:
        choice = self.random.randrange(9)
        if choice == 0:
            return self.random.choice((None, True, False, 0.5, float("nan"), float("inf"), -1.0))
        if choice <= 2:
            return self.random.choice(INTEGERS)
        if choice <= 4 and isinstance(old, int):
            return old + self.random.randrange(-3, 4)
        if choice == 5:
            return self.random.choice(("", "a", "\ud800", "\0", "x" * 5_000, "<|im_end|>\n<|im_start|>", "\U0010ffff"))
        if choice == 6 and depth < 3:
            return [self._value(old, depth + 1) for _ in range(self.random.randrange(4))]
        if choice == 7 and depth < 3:
            return {"a": self._value(old, depth + 1)}
        return [self.random.choice(INTEGERS) for _ in range(self.random.choice((1, 2, 300)))]

    def _damage_text(self, text: bytes) -> bytes:
        data = bytearray(text)
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(data) + 1)
            choice = self.random.randrange(4)
            if choice == 0:
                data[at:at] = self.random.choice(JSON_TEXTS)
            elif choice == 1:
                data[at : at + self.random.randrange(1, 20)] = self.random.choice(JSON_TEXTS)
            elif choice == 2:
                del data[at : at + self.random.randrange(1, 50)]
            elif at < len(data):
                data[at] = self.random.randrange(256)
        return bytes(data)

    def _damage(self, file: bytes) -> bytes:
        data = bytearray(file)
        for _ in range(self.random.randrange(1, 4)):
            # the head's numbers as often as all the rest
            n = min(len(data), saved_file.HEAD.size) if self.random.random() < 0.5 else len(data)
            at = self.random.randrange(n + 1)
            choice = self.random.randrange(5)
            if choice == 0:
                del data[at:]
            elif choice == 1:
                data[at:at] = self.random.randbytes(self.random.randrange(1, 9))
            elif choice == 2:
                value = self.random.choice(INTEGERS) & (2**64 - 1)
                data[at // 4 * 4 : at // 4 * 4 + 4] = value.to_bytes(8, "little")[:4]
            elif at < len(data):
                data[at] ^= 1 << self.random.randrange(8)
        return bytes(data)

    def _fields(self) -> dict[str, int]:
        """Numbers of the head that are not those of the parts."""
        name = self.random.choice(("version", "n_header", "n_ids", "zero", "n_state"))
        return {name: self.random.choice(INTEGERS) & (2**64 - 1 if name == "n_state" else 2**32 - 1)}


def seal(header: bytes, ids: bytes, state: bytes, fields: dict[str, int] | None = None) -> bytes:
    """A file of these parts with its checksum. fields: what its head has in the place of what is true."""
    head = {"version": saved_file.VERSION, "n_header": len(header), "n_ids": len(ids) // 4, "zero": 0}
    head |= {"n_state": len(state)} | (fields or {})
    body = saved_file.HEAD.pack(saved_file.MAGIC["session"], *head.values()) + header + ids + state
    return body + hashlib.sha256(body).digest()


class Target:
    """A Llama, a file in memory, and what became of inputs."""

    def __init__(self, folder: Path):
        options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, "chat_format": "chatml"}
        morphkv = MorphKV(capacity=64, window=8, interval=8, keep=2, prompt_room=16)
        self.llm = Llama(str(write_tiny_llama(folder / "model.gguf")), morphkv=morphkv, **options)
        self.counts: Counter[str] = Counter()
        ram = Path("/dev/shm")
        handle, path = tempfile.mkstemp(prefix="fuzz-session-", dir=ram if ram.is_dir() else folder)
        os.close(handle)
        self.path = Path(path)
        # of the same file each time, and slow
        fingerprint = model_fingerprint(self.llm.model_path)
        identity.model_fingerprint = lambda path: fingerprint
        self.restore = live_text.LiveText.restore

    def valid_file(self) -> saved_file.Contents:
        chat = self.llm.session("abc")
        for question in ("one", "two", "three"):
            self.talk(chat, question)
        chat.save(self.path)
        return saved_file.read(self.path, "session")

    @staticmethod
    def talk(chat: session.Session, question: str) -> str:
        return "".join(chat.say(question, max_tokens=3, temperature=0.0))

    def run(self, data: bytes, loads: bool) -> None:
        """One input. loads: the native state too."""
        self.path.write_bytes(data)
        signal.alarm(60)
        live_text.LiveText.restore = self.restore if loads else refuse_to_load
        try:
            saved_file.read(self.path, "session")
        except REFUSALS:
            self.counts["refused by read"] += 1
            signal.alarm(0)
            return
        if loads:
            self._load()
        else:
            try:
                self.llm.load_session(self.path)
                raise AssertionError("a session cannot come without its state")
            except REFUSALS as error:
                self.counts["passed all checks" if isinstance(error.__cause__, NotLoaded) else "refused by checks"] += 1
        signal.alarm(0)

    def _load(self) -> None:
        before = self._held()
        try:
            chat = self.llm.load_session(self.path)
        except REFUSALS:
            self.counts["state not loaded"] += 1
            if self._held() != before:
                raise AssertionError("a session that was refused has changed the Llama") from None
            return
        self.counts["state loaded"] += 1
        try:
            self.talk(chat, "x")
            self.counts["state loaded, went on"] += 1
        except (ValueError, RuntimeError):
            self.counts["state loaded, no answer"] += 1
        chat.close()

    def _held(self) -> tuple[int, bytes, bytes]:
        state = self.llm.save_state()
        return self.llm.n_tokens, self.llm.input_ids[: self.llm.n_tokens].tobytes(), bytes(state.llama_state)


def refuse_to_load(*_: Any) -> None:
    raise NotLoaded("not loaded here")


def rss_mb() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, help="inputs; without it, for --seconds")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--load-every", type=int, default=200, help="inputs of which one loads the native state (200)")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()

    np.seterr(all="ignore")  # a damaged state may give logits that are not finite
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        try:
            mutator = Mutator(options.seed, target.valid_file())
            for file in options.files:
                target.run(file.read_bytes(), loads=True)
            print(f"{len(options.files)} files, then damaged ones with --seed={options.seed}", flush=True)
            mb, start_s, n = rss_mb(), time.monotonic(), 0
            while n < options.runs if options.runs else time.monotonic() - start_s < options.seconds:
                loads = n % options.load_every == 0
                data = mutator.next(loads)
                try:
                    target.run(data, loads)
                except BaseException:
                    LAST_INPUT.write_bytes(data)
                    raise
                n += 1
        finally:
            target.path.unlink()
    for what, count in sorted(target.counts.items()):
        print(f"{what:28} {count}")
    took_s = time.monotonic() - start_s
    print(f"{n} mutations in {took_s:.0f} s, largest RSS {mb:.0f} MB before and {rss_mb():.0f} MB after them")


if __name__ == "__main__":
    sys.exit(main())
