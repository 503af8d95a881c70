"""Images and sound in sessions and in create_chat_completion, by llama_cpp's chat handlers with random projectors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV, bridge
from morphkv_cpp.models.synthetic import N_BYTE_TOKENS
from morphkv_cpp.text.tokens import end_tokens
from morphkv_cpp.text.write import BanTokens
from support import TESTS
from support.chats import no_end, talk
from support.projectors import TEMPLATE, with_image, with_sound, write_projector
from support.tiny import FLASH, QUIET, last_logits
from support.vision import ALL_KINDS, KINDS, MORE_KINDS, MORE_SOUNDS, SOUNDS, kinds, shown

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp import LogitsProcessorList
from llama_cpp.llama_chat_format import Llava15ChatHandler, MTMDChatHandler

SMALL = MorphKV(capacity=128, window=32, interval=32, prompt_room=96, keep=2)
LARGE = MorphKV(capacity=1024, prompt_room=256)


class Handler(MTMDChatHandler):
    """For models whose files have no template."""

    CHAT_FORMAT = TEMPLATE

    def _get_chat_template(self, llama_model):
        return TEMPLATE


@pytest.fixture
def open_vision(tiny_vision):
    opened = []

    def make(kind, morphkv=SMALL, handler=Handler, **options):
        model, projector = tiny_vision(kind)
        options = (QUIET if morphkv else FLASH) | {"n_ctx": 16384} | options
        chat_handler = handler(clip_model_path=str(projector), verbose=False)
        opened.append(Llama(str(model), morphkv=morphkv, chat_handler=chat_handler, **options))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def complete(llm: Llama, messages: list[dict], **options) -> str:
    options = {"max_tokens": 24, "temperature": 0.0, "logits_processor": no_end(llm)} | options
    return llm.create_chat_completion(messages, **options)["choices"][0]["message"]["content"]


def go_on(llm: Llama, chat, kind: str, n_tokens: int) -> str:
    """What a session answers next, and the bits of the logits behind it."""
    answer = talk(chat, shown(kind, "and this", 9), n_tokens)
    return f"{answer}\n{hashlib.sha256(last_logits(llm).tobytes()).hexdigest()}"


def go_on_elsewhere(kind: str, model: Path, projector: Path, session: Path, capacity: int, n_tokens: int) -> str:
    """What the session does next in another process."""
    command = [sys.executable, __file__, kind, str(model), str(projector), str(session), str(capacity), str(n_tokens)]
    # an empty path is the folder that this runs in
    paths = filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()  # as it is: a text may hold carriage returns


def check_as_stock(open_vision, kind: str, monkeypatch, **size: int) -> None:
    """What a handler answers to a picture, bit by bit, behind each batch."""
    seen = []
    for morphkv in (None, LARGE):
        llm, logits = open_vision(kind, morphkv), []

        def evaluate(tokens, llm=llm, logits=logits, eval_=llm.eval):
            eval_(tokens)
            logits.append(last_logits(llm))

        monkeypatch.setattr(llm, "eval", evaluate)
        complete(llm, [{"role": "user", "content": with_image("what is it", 1, **size)}])
        seen.append(logits)
    n = len(seen[1])  # llama_cpp writes some tokens more, where a character is torn
    assert 24 <= n <= len(seen[0])
    assert np.array_equal(seen[0][:n], seen[1])


@pytest.mark.parametrize("kind", KINDS | MORE_KINDS)
def test_before_the_first_eviction_a_handler_s_logits_are_those_of_stock(open_vision, kind, monkeypatch):
    check_as_stock(open_vision, kind, monkeypatch)


@pytest.mark.parametrize(("kind", "n_tokens"), [("deepseekocr", 210 + 273), ("deepseekocr2", 2 * 144 + 257)])
def test_deepseek_ocr_sees_a_large_picture_in_tiles(open_vision, kind, n_tokens, monkeypatch):
    """Two of them, and then all of it."""
    size = {"width": 1300, "height": 650}
    check_as_stock(open_vision, kind, monkeypatch, **size)
    with open_vision(kind, LARGE).session() as chat:
        talk(chat, with_image("what is it", 1, **size), 4)
        assert chat.last.media_tokens == n_tokens


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_another_picture_or_sound_leads_to_other_bits(open_vision, kind):
    llm, logits = open_vision(kind, LARGE), []
    for seed in (1, 2):
        with llm.session(keep=None) as chat:
            talk(chat, shown(kind, "what is it", seed), 1)
            logits.append(last_logits(llm))
    assert np.isfinite(logits).all()
    assert not np.array_equal(*logits)


@pytest.mark.parametrize("kind", ["gemma3", "qwen2vl_merger"])
def test_retention_shows_an_image_as_one_piece(open_vision, kind):
    llm = open_vision(kind)
    messages = []
    for i in range(4):
        messages.append({"role": "user", "content": with_image("word " * 20, i)})
        messages.append({"role": "assistant", "content": complete(llm, messages)})
    found = llm.retention()
    assert llm.cache_stats().n_evictions > 0
    media = found.to_dict()["media"]
    assert [(n, what) for _, n, what in media] == [(KINDS[kind].n_positions, "image")] * 4
    assert all(found.pieces[first : first + n] == ("",) * n for first, n, _ in media)
    assert found.heads.min() >= 0
    assert '"image"' in found.to_html()


@pytest.mark.parametrize("kind", kinds(MORE_KINDS, MORE_SOUNDS, of=KINDS | SOUNDS))
def test_a_session_answers_as_the_handler_does(open_vision, kind):
    llm = open_vision(kind, LARGE)
    # no bytes: of a character that is torn a completion writes the rest, a session has its tokens
    words = LogitsProcessorList([BanTokens([*end_tokens(llm), *range(3, 3 + N_BYTE_TOKENS)])])
    asked = [{"role": "user", "content": shown(kind, "what is it", 1)}]
    expected = complete(llm, asked, max_tokens=20, logits_processor=words)
    with llm.session(keep=None) as chat:
        assert talk(chat, shown(kind, "what is it", 1), 20, logits_processor=words) == expected != ""
        n_more = chat.last.media_tokens - ALL_KINDS[kind].n_tokens
        assert 0 <= n_more <= ALL_KINDS[kind].n_fill
        n_words = chat.last.prompt_tokens + chat.last.cached_tokens
        assert chat.n_tokens == n_words + ALL_KINDS[kind].n_positions + n_more + 20


@pytest.mark.parametrize("kind", kinds(MORE_KINDS, MORE_SOUNDS, of=KINDS | SOUNDS))
@pytest.mark.parametrize("archive", [None, "ram"])
def test_a_chat_with_many_images_takes_constant_cells(open_vision, kind, archive):
    llm = open_vision(kind, archive=archive)
    with llm.session("you see") as chat:
        for i in range(8):
            talk(chat, shown(kind, "word " * 10 + "what is it", i), 12)
            assert llm.cache_stats().n_used <= SMALL.capacity + SMALL.prompt_room
            talk(chat, "and now", 6)
        stats = chat.cache_stats()
        assert stats.n_evictions > 3
        assert stats.n_used + stats.n_evicted == chat.n_tokens - len(chat._text.ahead) + 8 * (
            ALL_KINDS[kind].n_tokens - ALL_KINDS[kind].n_positions
        )
        assert archive is None or stats.n_recalls > 0


@pytest.mark.parametrize("kind", kinds(MORE_KINDS, MORE_SOUNDS, of=KINDS | SOUNDS))
def test_a_saved_session_goes_on_in_another_process(open_vision, tiny_vision, tmp_path, kind):
    llm = open_vision(kind)
    with llm.session("you see") as chat:
        for i in range(5):
            talk(chat, shown(kind, "word " * 10 + "what is it", i), 12)
        chat.save(tmp_path / "chat.session")
        expected = go_on(llm, chat, kind, 20)
    model, projector = tiny_vision(kind)
    assert go_on_elsewhere(kind, model, projector, tmp_path / "chat.session", 128, 20) == expected != ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_twenty_images_and_5000_tokens_in_one_chat(open_vision, tiny_vision, tmp_path, kind):
    llm = open_vision(kind, MorphKV(capacity=1024), archive="ram", n_ctx=32768)  # of positions
    n_limit = 1024 + MorphKV().prompt_room
    with llm.session("you see", keep="system") as chat:
        for i in range(20):
            talk(chat, shown(kind, "a word " * 50 + "what is it", i), 24)
            stats = llm.cache_stats()
            assert stats.n_used <= n_limit
            assert np.isfinite(last_logits(llm)).all()
        assert stats.n_evictions > 3
        assert stats.n_used + stats.n_evicted >= 5000
        chat.save(tmp_path / "chat.session")
        expected = go_on(llm, chat, kind, 40)
    model, projector = tiny_vision(kind)
    assert go_on_elsewhere(kind, model, projector, tmp_path / "chat.session", 1024, 40) == expected


def test_a_projector_of_both_kinds_sees_and_hears_in_one_chat(open_vision):
    llm = open_vision("qwen2.5o")
    with llm.session("you see and hear") as chat:
        for i in range(4):
            talk(chat, with_image("what is it", i), 8)
            assert chat.last.media_tokens == ALL_KINDS["qwen2.5vl_merger"].n_tokens
            talk(chat, with_sound("what is it", i), 8)
            assert chat.last.media_tokens == ALL_KINDS["qwen2a"].n_tokens
            assert llm.cache_stats().n_used <= SMALL.capacity + SMALL.prompt_room
        assert np.isfinite(last_logits(llm)).all()


def test_two_sessions_take_turns(open_vision):
    llm = open_vision("qwen2vl_merger")
    one, two = llm.session("one"), llm.session("two")
    for i in range(4):
        talk(one, with_image("what is it", i), 8)
        talk(two, with_image("and that", 10 + i), 8)
    fork = one.fork()
    assert talk(one, "go on") == talk(fork, "go on")


@pytest.mark.parametrize(
    ("kind", "other", "said"), [("ultravox", "janus_pro", "sound and no images"), ("janus_pro", "ultravox", "bitmap")]
)
def test_what_a_projector_does_not_read_is_refused(open_vision, kind, other, said):
    llm, content = open_vision(kind), shown(other, "what is it", 1)
    with pytest.raises(ValueError, match=said):
        complete(llm, [{"role": "user", "content": content}])
    chat = llm.session()
    with pytest.raises(ValueError, match=said):
        talk(chat, content)
    assert talk(chat, "go on")


def test_a_projector_that_llama_cpp_cannot_load_is_refused_and_the_text_goes_on(tiny_vision, tmp_path):
    projector = write_projector(tmp_path / "gemma3n.gguf", "gemma3na")
    handler = Handler(clip_model_path=str(projector), verbose=False)
    with Llama(str(tiny_vision("mlp")[0]), morphkv=SMALL, chat_handler=handler, n_ctx=4096, **QUIET) as llm:
        chat = llm.session()
        asked = with_image("what is it", 1)
        for ask in (lambda: talk(chat, asked), lambda: complete(llm, [{"role": "user", "content": asked}])):
            with pytest.raises(ValueError, match="Failed to load mtmd context"):
                ask()
        assert talk(chat, "go on", 4)


def test_a_question_whose_image_cannot_be_read_is_taken_back(open_vision):
    llm = open_vision("janus_pro")
    chat = llm.session()
    talk(chat, with_image("what is it", 1), 4)
    n_tokens = chat.n_tokens
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(ValueError, match="bitmap"):
        talk(chat, broken)
    assert chat.n_tokens == n_tokens
    talk(chat, "go on", 4)


def test_an_image_that_does_not_fit_is_refused_with_the_rule(open_vision):
    llm = open_vision("gemma3", MorphKV(capacity=128, window=32, interval=16, prompt_room=16))
    chat = llm.session()
    talk(chat, "word " * 60, 4)
    with pytest.raises(RuntimeError, match=r"max\(interval, prompt_room\) = 16 of them, got 36"):
        talk(chat, with_image("what is it", 1))
    talk(chat, "go on", 4)


@pytest.mark.parametrize("morphkv", [SMALL, LARGE])
def test_an_image_beyond_a_micro_batch_is_refused_before_it_is_decoded(open_vision, morphkv):
    """In create_chat_completion too, whose handler would end the process."""
    llm = open_vision("gemma3", morphkv, n_ubatch=32)
    asked = with_image("what is it", 1)
    sentence = r"must fit n_batch and n_ubatch, got 36 tokens with 32"
    with pytest.raises(bridge.NativeError, match=sentence):
        complete(llm, [{"role": "user", "content": asked}])
    assert complete(llm, [{"role": "user", "content": "still there"}])
    with llm.session() as chat, pytest.raises(bridge.NativeError, match=sentence):
        talk(chat, asked)


def test_an_image_that_has_no_room_is_refused_with_the_rule_in_a_chat_by_messages(open_vision):
    llm = open_vision("gemma3", MorphKV(capacity=128, window=32, interval=16, prompt_room=16))
    with pytest.raises(bridge.NativeError, match=r"max\(interval, prompt_room\) = 16 of them, got 36"):
        complete(llm, [{"role": "user", "content": [{"type": "text", "text": "word " * 60}, *with_image("what", 1)]}])


def test_what_is_no_question_is_refused(open_vision, open_llama):
    chat = open_vision("janus_pro").session()
    for wrong in (5, b"x", [{"type": "video"}], ["x"]):
        with pytest.raises(TypeError, match="must"):
            chat.say(wrong)
    text_only = open_llama().session()
    with pytest.raises(ValueError, match="a session reads images and sound with a chat handler"):
        text_only.say(with_image("what", 1))
    assert talk(text_only, [{"type": "text", "text": "words"}])


def test_a_chat_handler_is_not_advised_where_morphkv_has_no_images(open_llama):
    llm = open_llama()
    llm.metadata["general.architecture"] = "hunyuan_vl"
    with pytest.raises(ValueError, match="MorphKV cannot have images in a text of hunyuan_vl"):
        llm.session().say(with_image("what", 1))


def test_llava_s_own_template_serves_sessions_too(open_vision):
    llm = open_vision("janus_pro", handler=Llava15ChatHandler)
    with llm.session(keep=None) as chat:
        talk(chat, with_image("what is it", 1), 8)
        talk(chat, "go on", 8)
        assert chat.last.prompt_tokens < 60


def test_a_chat_by_messages_keeps_its_system_prompt(open_vision):
    llm = open_vision("qwen2vl_merger")
    system = {"role": "system", "content": "you see all that there is"}
    messages = [system]
    for i in range(6):
        messages += [{"role": "user", "content": with_image("word " * 8, i)}, {"role": "assistant", "content": "a"}]
    messages.append({"role": "user", "content": [{"type": "text", "text": "what"}]})
    complete(llm, messages)
    stats = llm.cache_stats()
    assert stats.n_evictions > 0
    assert stats.keep > len(system["content"])


def _go_on(kind: str, model: str, projector: str, path: str, capacity: str, n_tokens: str) -> None:
    config, archive = (SMALL, None) if capacity == "128" else (MorphKV(capacity=int(capacity)), "ram")
    handler = Handler(clip_model_path=projector, verbose=False)
    with Llama(model, morphkv=config, archive=archive, chat_handler=handler, n_ctx=32768, **QUIET) as llm:
        print(go_on(llm, llm.load_session(path), kind, int(n_tokens)), end="")


if __name__ == "__main__":
    _go_on(*sys.argv[1:])
