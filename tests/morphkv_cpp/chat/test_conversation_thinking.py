"""Sessions of models that think, with a template that leaves thoughts out of older answers; on a tiny model."""

import pytest

from morphkv_cpp import MorphKV
from support.chats import forced, talk, text_of
from support.tiny import bytes_of

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)
DROPS = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}{%- set content = "
    "message.content.split('</think>')[-1].lstrip('\n') %}{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
OPENS = DROPS.replace("<|im_start|>assistant\n' }}{%- endif %}", "<|im_start|>assistant\n<think>\n' }}{%- endif %}")
# only where a user has asked since, as Qwen 3 has it
DROPS_BEFORE_QUESTIONS = (
    "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}{%- if loop.index0 < ns.last %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
KEEPS = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
KEEPS += "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
THOUGHT = "so the walnut is a fruit, a stone fruit"


@pytest.fixture
def open_thinker(open_llama):
    def make(template, **options):
        formatter = Jinja2ChatFormatter(template, eos_token="</s>", bos_token="")
        return open_llama(chat_handler=formatter.to_chat_handler(), **options)

    return make


def think(chat, question, answer, opens=False):
    text = f"{THOUGHT}\n</think>\n\n{answer}"
    text = text if opens else f"<think>\n{text}"
    said = "".join(chat.say(question, max_tokens=len(text.encode()), logits_processor=forced(bytes_of(text))))
    assert said == text


@pytest.mark.parametrize(("template", "archive"), [(DROPS, None), (OPENS, "ram")], ids=["drops", "opens, archive"])
def test_thoughts_go_for_30_turns_at_the_cost_of_what_is_new(open_thinker, template, archive):
    llm = open_thinker(template, archive=archive)
    opens = template == OPENS
    with llm.session("abc") as chat:
        for i in range(30):
            before = chat.n_tokens
            think(chat, f"question {i}", f"answer {i}.", opens)
            if i > 0:
                # the last answer, this question, and the template's words; not what was thought
                n_new = len(f"answer {i}.<|im_end|>\n<|im_start|>user\nquestion {i}<|im_end|>\n<|im_start|>assistant\n")
                assert chat.last.prompt_tokens <= n_new + len("<think>\n") + 64
                assert chat.n_tokens < before + 2 * len(f"answer {i}.") + n_new + 20
        assert chat.cache_stats().n_evictions > 10
        text = llm.detokenize(text_of(chat)).decode(errors="ignore")
        # the last answer's alone
        assert text.count("walnut") == 1
        for i in range(29):
            assert f"question {i}<|im_end|>\n<|im_start|>assistant\nanswer {i}.<|im_end|>" in text
        # the caller sees what the model thought
        assert all(THOUGHT in message["content"] for message in chat.history() if message["role"] == "assistant")


def test_thoughts_stay_where_the_template_has_them(open_thinker):
    llm = open_thinker(KEEPS)
    with llm.session("abc") as chat:
        for i in range(3):
            think(chat, f"question {i}", f"answer {i}.")
        assert llm.detokenize(text_of(chat)).decode(errors="ignore").count("walnut") == 3
        assert chat.last.again_tokens == 0


def test_thoughts_between_calls_stay_until_the_next_question(open_thinker):
    llm = open_thinker(DROPS_BEFORE_QUESTIONS)
    with llm.session("abc") as chat:
        think(chat, "one", "a call")
        chat.tool_result("42")
        think(chat, None, "the answer")
        text = llm.detokenize(text_of(chat)).decode(errors="ignore")
        assert (text.count("walnut"), "<|im_start|>tool\n42<|im_end|>" in text) == (2, True)
        talk(chat, "two")
        text = llm.detokenize(text_of(chat)).decode(errors="ignore")
        assert "walnut" not in text
        assert "assistant\na call<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\nthe answer" in text


@pytest.mark.parametrize("template", [DROPS, OPENS], ids=["drops", "opens"])
def test_going_back_over_a_thought(open_thinker, template):
    llm, other = open_thinker(template), open_thinker(template)
    chat, same = llm.session("abc"), other.session("abc")
    for one in (chat, same):
        think(one, "one", "first", template == OPENS)
    think(chat, "two", "second", template == OPENS)
    talk(chat, "three")
    chat.undo()
    chat.undo()
    assert chat.history() == same.history()
    for one in (chat, same):
        talk(one, "and now")
    assert text_of(chat)[:-10] == text_of(same)[:-10]
    # an answer whose thoughts are gone can be given again
    chat.undo()
    assert "".join(chat.regenerate(max_tokens=3, logits_processor=forced(bytes_of("yes")))) == "yes"
    opening = "<|im_start|>system\nabc<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    end = "<think>\nyes" if template == OPENS else "yes"
    assert llm.detokenize(text_of(chat)).decode(errors="ignore").strip() == f"{opening}{end}"


def test_a_question_that_fails_leaves_the_chat(open_thinker, monkeypatch):
    llm, other = open_thinker(DROPS), open_thinker(DROPS)
    chat, same = llm.session("abc"), other.session("abc")
    for one in (chat, same):
        think(one, "one", "first")
    with monkeypatch.context() as patch:
        patch.setattr(llm._ctx, "decode", lambda batch: (_ for _ in ()).throw(RuntimeError("decode failed")))
        with pytest.raises(RuntimeError, match="decode failed"):
            talk(chat, "two")
    assert chat.history() == same.history()
    for one in (chat, same):
        talk(one, "three")
    assert text_of(chat)[:-10] == text_of(same)[:-10]
