"""A disk that is full or fails ends archives and refuses saves. It ends no answer and loses no chat, no saved slot."""

import sys
import threading

import pytest

from support import preload
from support.server_process import TIGHT
from support.server_process import some_tokens as tokens

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")

# 512 bytes a token, so that an archive ends after some 700; more than the server writes into its log
FILE_BYTES = 384 * 1024

# as a full copy-on-write disk: what is there cannot be written again either
FAILING = r"""
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static int is_full(void) {
    return access(getenv("DISK_IS_FULL"), F_OK) == 0;
}

typedef ssize_t (*writer)(int, const void *, size_t, off_t);

ssize_t pwrite(int fd, const void * data, size_t n, off_t at) {
    if (is_full()) { errno = ENOSPC; return -1; }
    return ((writer) dlsym(RTLD_NEXT, "pwrite"))(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void * data, size_t n, off_t at) { return pwrite(fd, data, n, at); }

int ftruncate(int fd, off_t n) {
    if (is_full()) { errno = ENOSPC; return -1; }
    return ((int (*)(int, off_t)) dlsym(RTLD_NEXT, "ftruncate"))(fd, n);
}
"""


class Disk:
    """Full from fill() on."""

    def __init__(self, folder):
        self.library, self.mark = preload.build(folder, "full", FAILING), folder / "is-full"

    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "DISK_IS_FULL": str(self.mark)}

    def fill(self) -> None:
        self.mark.touch()


@pytest.fixture(params=["limit", "full"])
def start_broken(request, start_server, tiny_llama, tmp_path):
    """start(*flags) -> a server with an archive in a file, and a function after which that can be written no more."""

    def start(*flags):
        flags = [*TIGHT, "--slots", "--morphkv-archive", tmp_path / "chats", *flags]
        if request.param == "full":
            disk = Disk(tmp_path)
            return start_server(tiny_llama(), *flags, env=disk.env()), disk.fill
        return start_server(tiny_llama(), *flags, file_bytes=FILE_BYTES), lambda: None

    return start


def test_several_answers_on_a_full_disk_end_no_other(start_broken):
    server, fill = start_broken("-np", 4)
    prompt = tokens(1000)
    server.complete(tokens(900, seed=2), 4, id_slot=3)
    fill()

    other = {}
    thread = threading.Thread(target=lambda: other.update(server.complete(tokens(900, seed=2), 400, id_slot=3)))
    thread.start()
    several = {"prompt": prompt, "n": 2, "max_tokens": 30, "temperature": 0}
    answers = [server.post("/v1/completions", several) for _ in range(3)]
    thread.join()

    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    assert all(len({choice["text"] for choice in answer.json()["choices"]}) == 1 for answer in answers)
    assert len(other["tokens"]) == 400
    assert any(slot["morphkv"]["archive_stopped"] for slot in server.get("/slots"))
    assert server.is_alive()


def test_a_checkpoint_is_loaded_on_a_full_disk(start_broken):
    server, fill = start_broken("-np", 1)
    text = tokens(1000)
    text += server.complete(text, 4)["tokens"]
    question = [*text, *tokens(40, seed=5)[1:]]
    server.complete(question, 120)  # long enough for evictions that cannot be taken back
    fill()
    for _ in range(2):
        again = server.complete(question, 120)
        assert len(question) - 8 <= again["timings"]["cache_n"] < len(question)
        assert len(again["tokens"]) == 120
    edited = [*question[:50], 299, *question[51:]]
    assert server.complete(edited, 20)["timings"]["cache_n"] == 0
    assert server.is_alive()


@pytest.fixture
def damage(tmp_path):
    """Flips a byte of each page of an archive's file."""

    def flip():
        path = tmp_path / "chats"
        data = bytearray(path.read_bytes())
        for i in range(2000, len(data), 2000):
            data[i] ^= 0xFF
        with path.open("r+b") as file:  # the server has it open
            file.write(data)

    return flip


def test_a_chat_whose_archive_is_damaged_leaves_its_slot_and_comes_back(start_server, tiny_llama, tmp_path, damage):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--cache-ram", 64, "--morphkv-archive", tmp_path / "chats")
    text = tokens(400)
    text += server.complete(text, 20)["tokens"]
    damage()
    server.complete(tokens(300, seed=4), 20)
    again = server.complete([*text, 260, 261], 20)
    assert len(again["tokens"]) == 20
    assert again["timings"]["cache_n"] in (0, len(text) - 1)


def test_a_save_that_fails_leaves_what_was_saved(start_server, tiny_llama, tmp_path):
    """The state grows with the archive, until it is too large for a file."""
    slots = tmp_path / "slots"
    slots.mkdir()
    flags = [*TIGHT, "-np", 2, "--slots", "--morphkv-archive", "ram", "--slot-save-path", slots]
    server = start_server(tiny_llama(), *flags, file_bytes=FILE_BYTES)
    text = tokens(300)
    text += server.complete(text, 4, id_slot=0)["tokens"]
    assert server.slot_action(0, "save", filename="a.bin").status_code == 200
    before = (slots / "a.bin").read_bytes()

    longer = tokens(1500, seed=3)
    longer += server.complete(longer, 4, id_slot=0)["tokens"]
    refused = server.slot_action(0, "save", filename="a.bin")
    assert (refused.status_code, refused.json()["error"]["message"]) == (500, "Unable to save slot")
    assert [path.name for path in slots.iterdir()] == ["a.bin"]
    assert (slots / "a.bin").read_bytes() == before

    assert server.slot_action(1, "restore", filename="a.bin").json()["n_restored"] == len(text) - 1
    assert server.complete([*text, 260], 4, id_slot=1)["timings"]["cache_n"] == len(text) - 1
    assert server.complete([*longer, 260], 4, id_slot=0)["timings"]["cache_n"] == len(longer) - 1


def test_a_damaged_archive_destroys_no_saved_slot(start_server, tiny_llama, tmp_path, damage):
    slots = tmp_path / "slots"
    slots.mkdir()
    flags = [*TIGHT, "-np", 2, "--slots", "--morphkv-archive", tmp_path / "chats", "--slot-save-path", slots]
    server = start_server(tiny_llama(), *flags)
    text = tokens(400)
    text += server.complete(text, 4, id_slot=0)["tokens"]
    assert server.slot_action(0, "save", filename="a.bin").status_code == 200
    damage()
    server.slot_action(0, "save", filename="a.bin")
    assert server.slot_action(1, "restore", filename="a.bin").json()["n_restored"] == len(text) - 1


@pytest.mark.parametrize("archive", [[], ["--morphkv-archive", "ram"]], ids=["", "archive"])
@pytest.mark.parametrize("cut", ["missing", "header", "half", "last byte"])
def test_a_file_that_is_not_restored_leaves_the_slot_as_it_was(start_server, tiny_llama, tmp_path, cut, archive):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--slots", "--slot-save-path", tmp_path, *archive)
    server.complete(tokens(300, seed=7), 4)
    assert server.slot_action(0, "save", filename="a.bin").status_code == 200
    data = (tmp_path / "a.bin").read_bytes()
    if cut != "missing":
        (tmp_path / "b.bin").write_bytes(data[: {"header": 10, "half": len(data) // 2, "last byte": -1}[cut]])
    text = tokens(400)
    text += server.complete(text, 4)["tokens"]
    expected = server.slot()["morphkv"]
    refused = server.slot_action(0, "restore", filename="b.bin")
    assert refused.status_code == 400
    assert "Unable to restore slot" in refused.json()["error"]["message"]
    assert server.slot()["morphkv"] == expected
    assert server.complete([*text, 260], 4)["timings"]["cache_n"] == len(text) - 1


def test_a_link_goes_on_pointing_where_it_did(start_server, tiny_llama, tmp_path):
    server = start_server(tiny_llama(), *TIGHT, "-np", 1, "--slot-save-path", tmp_path)
    server.complete(tokens(50), 4)
    (tmp_path / "elsewhere.bin").write_bytes(b"older")
    (tmp_path / "a.bin").symlink_to(tmp_path / "elsewhere.bin")
    assert server.slot_action(0, "save", filename="a.bin").status_code == 200
    assert (tmp_path / "a.bin").is_symlink()
    assert (tmp_path / "elsewhere.bin").stat().st_size > 1000
    assert server.slot_action(0, "restore", filename="elsewhere.bin").status_code == 200
