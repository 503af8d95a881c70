"""States in files: whole or refused, and never executed."""

from dataclasses import replace

import pytest

from morphkv_cpp import Llama, MorphKV, NoMorphKVError, SessionFileError
from support.tiny import greedy, held

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
PROMPT = list(range(3, 103))


def test_another_process_goes_on_where_it_was_saved(open_llama, tmp_path):
    llm, other = open_llama(), open_llama()
    llm.eval(PROMPT)
    llm.save_state_file(tmp_path / "chat.state")
    other.load_state_file(tmp_path / "chat.state")
    assert held(other) == PROMPT
    assert greedy(other, held(other), 30) == greedy(llm, held(llm), 30)


def test_a_file_of_other_settings_or_another_model_is_refused(open_llama, tmp_path):
    llm = open_llama()
    llm.eval(PROMPT)
    llm.save_state_file(tmp_path / "chat.state")
    for other, what in (
        (open_llama(replace(SMALL, window=9)), "settings"),
        (open_llama(shape=(("seed", 5),)), "model"),
    ):
        other.eval(PROMPT[:10])
        with pytest.raises(SessionFileError, match=f"was saved with another {what}"):
            other.load_state_file(tmp_path / "chat.state")
        assert other.n_tokens == 10


@pytest.mark.parametrize("at", [0, 20, 60, -1])
def test_a_damaged_file_is_refused(open_llama, tmp_path, at):
    llm, path = open_llama(), tmp_path / "chat.state"
    llm.eval(PROMPT)
    llm.save_state_file(path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(SessionFileError):
        llm.load_state_file(path)
    assert llm.n_tokens == len(PROMPT)


def test_a_session_is_no_state(open_llama, tmp_path):
    llm = open_llama()
    with llm.session(keep=4) as chat:
        "".join(chat.say("x", max_tokens=2))
        chat.save(tmp_path / "chat")
    with pytest.raises(SessionFileError, match="is not a state file"):
        llm.load_state_file(tmp_path / "chat")
    llm.save_state_file(tmp_path / "state")
    with pytest.raises(SessionFileError, match="is not a session file"):
        llm.load_session(tmp_path / "state")


def test_without_morphkv_there_is_none(tiny_llama, tmp_path):
    with Llama(tiny_llama(), n_ctx=64, verbose=False) as llm, pytest.raises(NoMorphKVError):
        llm.save_state_file(tmp_path / "x")
    assert not (tmp_path / "x").exists()
