"""Texts that are read once, and attached: by several at once, beside a text's own archive; on tiny random models."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import Archive, ArchiveError, AttachError, Llama, MorphKV, NoMorphKVError, ReadText, Source, bridge
from support.tiny import QUIET, greedy, some_tokens

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)
ROOMY = replace(SMALL, capacity=512)
TEXT = " ".join(f"line {i} says {i * 37 % 101}." for i in range(120))


@pytest.fixture
def read(open_llama, tmp_path):
    """Writes a file, and gives what read() says of it."""

    def make(name="manual.archive", text=TEXT, **options) -> ReadText:
        return open_llama().read(text=text, into=tmp_path / name, progress=False, **options)

    return make


def test_a_text_is_read_into_a_file_and_the_text_in_the_cache_stays(open_llama, tmp_path):
    llm = open_llama(archive="ram")
    llm.eval(some_tokens(300))
    before, n_tokens = bridge.state(llm.ctx), []
    (tmp_path / "manual.txt").write_text(TEXT, encoding="utf-8")
    found = llm.read(
        tmp_path / "manual.txt", into=tmp_path / "new.archive", progress=lambda n, n_all: n_tokens.append((n, n_all))
    )
    assert bridge.state(llm.ctx) == before
    assert found.path == str(tmp_path / "new.archive")
    assert found.n_bytes == os.path.getsize(found.path)
    assert found.n_tokens == len(llm.tokenize(TEXT.encode(), add_bos=False))
    assert n_tokens[-1][0] == n_tokens[-1][1] >= found.n_tokens + 16
    assert n_tokens[-1][0] % 16 == 0
    assert sorted(os.listdir(tmp_path)) == ["manual.txt", "new.archive"]


def test_what_is_attached_is_recalled_for_a_short_prompt(open_llama, read):
    file = read()
    llm = open_llama(archive=[file.path])
    assert llm.archive == Archive("ram", type="q8_0", attach=(file.path,))
    [attached] = llm.attached()
    assert (attached.path, attached.n_recalled, attached.bytes) == (file.path, 0, file.n_bytes)
    assert 0 < attached.n_tokens - file.n_tokens < 48
    kv_bytes = llm.cache_stats().kv_bytes
    greedy(llm, some_tokens(20, seed=1), 30)
    stats = llm.cache_stats()
    assert stats.n_recalls == len(llm.last_recalls) == 1
    [source] = llm.last_recalls[0].sources
    assert isinstance(source, Source)
    assert source.path == file.path
    assert source.n_recalled == llm.last_recalls[0].n_recalled > 0
    assert 0 < llm.last_recalls[0].n_reread <= 240
    assert all(passage.strip() in TEXT for passage in source.passages)
    assert llm.attached()[0].n_recalled >= sum(recall.n_recalled for recall in llm.last_recalls)
    assert stats.kv_bytes == kv_bytes
    assert stats.n_used <= stats.n_limit
    # beside what the text has of its own
    greedy(llm, some_tokens(300, seed=2), 30, reset=False)
    assert llm.cache_stats().n_archived > 200
    positions = np.concatenate([llm.retained(layer).ravel() for layer in range(2)])
    assert (positions < -1).any()
    assert (positions >= 0).any()


def test_pages_can_come_as_they_were_read(open_llama, read):
    llm = open_llama(archive=Archive(attach=[read().path], reread=False))
    greedy(llm, some_tokens(20, seed=1), 10)
    assert [recall.n_reread for recall in llm.last_recalls] == [0, 0]  # and the prompt asks twice
    assert llm.last_recalls[0].n_recalled > 0
    with pytest.raises(TypeError, match="reread must be True or False, got 1"):
        Archive(reread=1)


def test_several_chats_and_processes_share_a_file(open_llama, read, tiny_llama, tmp_path):
    file = read()
    llms = [open_llama(archive=Archive(attach=[file.path])) for _ in range(2)]
    texts = [greedy(llm, some_tokens(20, seed=1), 30) for llm in llms]
    script = (
        "import sys; from morphkv_cpp import *; from support.tiny import *\n"
        "small = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)\n"
        "llm = Llama(sys.argv[1], morphkv=small, archive=Archive(attach=[sys.argv[2]]), **QUIET)\n"
        "print(greedy(llm, some_tokens(20, seed=1), 30), llm.attached()[0].n_recalled > 0)\n"
    )
    command = [sys.executable, "-c", script, str(tiny_llama()), file.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.strip() == f"{texts[0]} True", done.stderr
    assert texts[0] == texts[1]


def test_a_session_tells_from_which(open_llama, read):
    files = [read(f"{name}.archive", TEXT.replace("line", name)) for name in ("one", "two")]
    llm = open_llama(ROOMY, archive=[file.path for file in files])
    chat = llm.session("You answer.")
    chat.ask("What does line 7 say?", max_tokens=8, temperature=0)
    assert chat.last.n_recalled == sum(source.n_recalled for source in chat.last.sources) > 0
    assert {source.path for source in chat.last.sources} <= {file.path for file in files}
    assert all(source.passages for source in chat.last.sources)
    answer = llm.create_chat_completion([{"role": "user", "content": "And line 8?"}], max_tokens=4)
    from_files = answer["timings"]["recalled_from"]
    assert sum(from_files.values()) == answer["timings"]["recalled_n"] > 0
    assert answer["timings"]["reread_n"] > 0
    # without files nothing is told
    plain = open_llama(ROOMY, archive="ram").create_chat_completion([{"role": "user", "content": "And?"}], max_tokens=4)
    assert "recalled_from" not in plain["timings"]


def test_states_and_sessions_name_what_is_attached(open_llama, read, tmp_path):
    file, other = read(), read("other.archive", TEXT[::-1])
    llm = open_llama(archive=[file.path])
    chat = llm.session()
    chat.ask("What does line 7 say?", max_tokens=8, temperature=0)
    chat.save(tmp_path / "chat.session")
    state, ids = llm.save_state(), llm._input_ids.tolist()
    again = open_llama(archive=[file.path])
    again.load_state(state)
    assert again._input_ids.tolist() == ids
    assert again.cache_stats().n_recalled == llm.cache_stats().n_recalled > 0
    assert again.load_session(tmp_path / "chat.session").ask("And line 8?", max_tokens=8, temperature=0) == chat.ask(
        "And line 8?", max_tokens=8, temperature=0
    )
    for archive in ([other.path], "auto"):
        with pytest.raises(RuntimeError, match="other attached files"):
            open_llama(archive=archive).load_state(state)
    copy = pickle.loads(pickle.dumps(Archive(attach=[file.path])))
    assert copy.attach == (file.path,)


def test_an_edit_and_a_checkpoint_go_back_with_files_attached(open_llama, read):
    llm = open_llama(archive=[read().path])
    prompt = some_tokens(300)
    first = greedy(llm, prompt, 10)
    assert greedy(llm, prompt, 10) == first
    assert llm.last_prompt.n_cached == 299
    greedy(llm, prompt[:150] + some_tokens(20, seed=3), 10)
    assert llm.cache_stats().n_recalls > 0


def test_a_damaged_page_is_not_recalled_and_a_damaged_index_not_asked(open_llama, read, capfd):
    file = read()
    with open(file.path, "r+b") as opened:
        opened.seek(4096 + 5000)
        opened.write(b"damage")
    llm = open_llama(archive=[file.path])
    greedy(llm, some_tokens(20, seed=1), 4)
    assert llm.last_recalls[0].n_recalled > 0
    size = os.path.getsize(file.path)
    with open(file.path, "r+b") as opened:
        n_tokens = llm.attached()[0].n_tokens
        opened.seek(size - 4 * n_tokens - 100)  # the index ends where the tokens begin
        opened.write(b"damage")
    llm = open_llama(archive=[file.path])
    answer = greedy(llm, some_tokens(20, seed=1), 4)
    assert len(answer) == 4
    assert llm.cache_stats().n_recalled == 0


def test_what_is_refused(open_llama, read, tiny_llama, tmp_path):
    file = read()
    for change, why in {
        "none": "cannot be opened",
        "text": "is no archive that a text was read into",
        "short": "is truncated: it must have",
        "damaged": "is damaged: the checksum of its header",
        "model": "was read with another model",
    }.items():
        path, options = tmp_path / change, {}
        data = bytearray((tmp_path / "manual.archive").read_bytes())
        if change == "text":
            data = bytearray(TEXT.encode())
        elif change == "short":
            data = data[:-100]
        elif change == "damaged":
            data[40] ^= 1
        elif change == "model":
            options["shape"] = {"seed": 5}
        if change != "none":
            path.write_bytes(data)
        with pytest.raises(AttachError, match=why) as caught:
            open_llama(archive=[path], **options)
        assert str(path) in str(caught.value)
    with pytest.raises(AttachError, match="attached already"):
        open_llama(archive=[file.path, file.path])
    with pytest.raises(AttachError, match="must have at least as many tokens as there are slots for"):
        open_llama(MorphKV(capacity=4000), archive=[file.path])
    with pytest.raises(TypeError, match="attach must be a list of paths"):
        Archive(attach=file.path)
    llm = open_llama(archive="ram")
    with pytest.raises(ArchiveError, match="only the recall settings"):
        llm.archive = Archive(attach=[file.path])


def test_what_cannot_be_read(open_llama, tmp_path, tiny_llama):
    llm, into = open_llama(), tmp_path / "x"
    with pytest.raises(ValueError, match="needs a path or a text"):
        llm.read(into=into)
    with pytest.raises(ValueError, match="type must be one of"):
        llm.read(text=TEXT, into=into, type="q2_k")
    with pytest.raises(FileNotFoundError):
        llm.read(tmp_path / "none.txt", into=into)
    with pytest.raises(ArchiveError, match=r"as many tokens as there are slots for .*= 80.*fits into a prompt"):
        llm.read(text="short", into=into)
    with pytest.raises(ArchiveError, match="a folder that is there"):
        llm.read(text=TEXT, into=tmp_path / "no" / "x")
    assert os.listdir(tmp_path) == []
    with Llama(str(tiny_llama()), **QUIET) as stock, pytest.raises(NoMorphKVError):
        stock.read(text=TEXT, into=into)
