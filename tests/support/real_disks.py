"""A chat whose archive's disk fails, in a process of its own: python -m support.real_disks FAULT RECALL MODEL FOLDER.

Under a mount namespace of its own it mounts what it needs itself, and all is gone when it ends. Exits with 77 and a
reason where the system cannot set up the fault.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from morphkv_cpp import Archive, Llama, MorphKV
from support import chats
from support.tiny import QUIET

CANNOT = 77
CONFIG = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)


def open_llama(model: str, **options) -> Llama:
    quiet = {**QUIET, "chat_format": "chatml"}
    return Llama(model, morphkv=CONFIG, **quiet, **options)


talk = functools.partial(chats.talk, n_tokens=24)


def cannot(reason: str) -> None:
    print(reason)
    sys.exit(CANNOT)


def mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        cannot(f"no mount: {error}")
    if done.returncode:
        cannot(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def mount_tmpfs(folder: Path) -> None:
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))


def mount_btrfs(folder: Path) -> None:
    image = folder.parent / "btrfs.image"
    with open(image, "wb") as file:
        file.truncate(120 * 2**20)
    try:
        done = subprocess.run(["mkfs.btrfs", "-q", str(image)], capture_output=True, text=True, check=False)
    except OSError as error:
        cannot(f"no mkfs.btrfs (Debian: btrfs-progs): {error}")
    if done.returncode:
        cannot(f"mkfs.btrfs: {done.stderr.strip()}")
    mount("-o", "loop", str(image), str(folder))


def fill_disk(folder: Path) -> None:
    """Large files, then ever smaller ones, until not one byte more goes in."""
    for i, n_bytes in enumerate((2**20, 2**16, 4096, 1)):
        n_failed = 0
        for j in range(1000):
            try:
                with open(folder / f"filler.{i}.{j}", "wb") as file:
                    file.write(bytes(n_bytes))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                n_failed += 1
                if n_failed == 3:
                    break


def limit_files(archive: Path) -> None:
    """No file can grow beyond what the archive has now; RLIMIT_FSIZE then fails its next page with EFBIG."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (archive.stat().st_size,) * 2)


def full_disk(model: str, folder: Path, recall: str, fill: Callable[[], None]) -> dict:
    """Turns, forks, other use, files and states while the archive cannot write; a twin has no archive at all."""
    archive, saved = folder / "chat.archive", folder / "chat.session"
    llm, twin = open_llama(model, archive=Archive(archive, recall=recall)), open_llama(model)
    pairs = [(one.session("abc"), two.session("abc")) for one, two in ((llm, twin), (llm, twin))]
    is_exact = recall == "off"  # then an archive changes no answer
    n_turns = 0

    def turn(i_pair: int, question: str) -> None:
        nonlocal n_turns
        mine, theirs = (talk(chat, question) for chat in pairs[i_pair])
        n_turns += 1
        assert len(mine) > 0
        assert mine == theirs or not is_exact, (question, mine, theirs)

    for i in range(4):
        turn(0, f"question {i}")
    assert llm.cache_stats().n_archived > 0
    pairs[0][0].save(saved)
    whole = saved.read_bytes()
    fill()
    for i in range(6):
        turn(0, f"more {i}")
    n_archived = llm.cache_stats().n_archived
    # a new text begins the archive anew, which takes a write
    for i in range(3):
        for i_pair in range(2):
            turn(i_pair, f"in turns {i}")
    pairs.append(tuple(chat.fork() for chat in pairs[0]))
    for i_pair in (2, 0, 1, 2):
        turn(i_pair, "and now?")
    failed = None
    try:
        pairs[0][0].save(saved)
    except OSError as error:
        failed = str(error)
        assert saved.read_bytes() == whole
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []
    turn(0, "after the file")
    state = llm.save_state()
    llm.eval([5] * 200)
    llm.load_state(state)
    assert llm.n_tokens == state.n_tokens == llm.cache_stats().logical_pos + 1
    llm.reset()
    llm.eval([7] * 300)
    llm.create_completion("abc", max_tokens=40)
    turn(0, "after other use")
    llm.close()
    pairs[0][1].close()
    return {"n_turns": n_turns, "n_archived": n_archived, "save": failed}


def spoil(archive: Path, how: str) -> None:
    n_bytes = archive.stat().st_size
    if how == "shortened":
        os.truncate(archive, 4096)
    elif how == "removed":
        archive.unlink()
    elif how == "replaced":
        other = archive.with_suffix(".other")
        other.write_bytes(os.urandom(n_bytes))
        os.replace(other, archive)
    else:
        with open(archive, "r+b") as file:
            for at in range(4096, n_bytes, 97):
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 0x10]))


def spoiled_file(model: str, folder: Path, recall: str, how: str) -> dict:
    """The archive's file changes under a living chat. One that has only lost its name is as good as ever."""
    archive = folder / "chat.archive"
    is_whole = how in ("removed", "replaced")
    llm = open_llama(model, archive=Archive(archive, recall=recall))
    twin = open_llama(model, archive=Archive(recall=recall))
    chat, same = llm.session("abc"), twin.session("abc")
    for i in range(12):
        assert talk(chat, f"question {i}") == talk(same, f"question {i}")
    n_before, n_archived = chat.n_tokens, llm.cache_stats().n_archived
    assert n_archived > 200
    spoil(archive, how)
    answers = [(talk(chat, f"and {i}?"), talk(same, f"and {i}?")) for i in range(3)]
    assert all(len(mine) > 0 for mine, _ in answers)
    # what is recalled after this differs where pages are lost
    if is_whole or recall == "off":
        assert all(mine == theirs for mine, theirs in answers), answers
    n_asked = chat.n_tokens - n_before
    assert n_asked == same.n_tokens - n_before
    stats = llm.cache_stats()
    n_damaged = stats.n_archive_damaged
    saved = None
    try:
        chat.save(folder / "chat.session")
        again = llm.load_session(folder / "chat.session")
        assert len(talk(again, "still there?")) > 0
    except RuntimeError as error:
        saved = str(error)
        assert not (folder / "chat.session").exists()
    assert len(talk(chat, "goodbye?")) > 0
    other = llm.session("xyz")
    assert len(talk(other, "hello?")) > 0
    assert len(talk(chat, "goodbye again?")) > 0
    llm.close()
    return {"n_damaged": n_damaged, "save": saved, "n_recalled": stats.n_recalled}


def run(fault: str, recall: str, model: str, folder: Path) -> dict:
    if fault in ("shortened", "removed", "replaced", "flipped"):
        return spoiled_file(model, folder, recall, fault)
    if fault == "limit":
        return full_disk(model, folder, recall, lambda: limit_files(folder / "chat.archive"))
    {"tmpfs": mount_tmpfs, "btrfs": mount_btrfs}[fault](folder)
    try:
        return full_disk(model, folder, recall, lambda: fill_disk(folder))
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = run(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    print(json.dumps({**result, "warnings": [str(one.message) for one in told]}))
