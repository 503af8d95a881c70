"""Turns rendered alone are what the template writes for the whole chat; on templates as models bring them."""

import pytest

import morphkv_cpp  # noqa: F401  says what libllama is loaded
from morphkv_cpp.chat.template import ANSWER, QUESTION, SYSTEM, ChatTemplate

# isort: split
from llama_cpp import llama_chat_format
from llama_cpp.llama_chat_format import Jinja2ChatFormatter, get_chat_completion_handler

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

LLAMA_31 = (
    "{{- bos_token }}{%- set date_string = strftime_now('%d %b %Y') %}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}"
    "{%- set system_message = '' %}{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

MISTRAL_V2 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

# says the system text again in front of the newest question
MISTRAL_NEMO = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}"
    "{{- '[INST]' + system_message + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST]' + message['content'] + '[/INST]' }}{%- endif %}{%- elif message['role'] == 'assistant' %}"
    "{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)

# drops a system text without a word
PHI_3_MINI = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + "
    "message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)

PHI_3_SMALL = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

# thoughts are cut out of older answers, and the next one begins with one
THINKING = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}{%- set content = "
    "message.content.split('</think>')[-1].lstrip('\n') %}{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)

WITH_SYSTEM_ROLE = {
    "smollm2": SMOLLM2,
    "llama-3": LLAMA_3,
    "llama-3.1": LLAMA_31,
    "llama-2": LLAMA_2,
    "phi-3-small": PHI_3_SMALL,
}
WITHOUT_SYSTEM_ROLE = {"mistral-v2": MISTRAL_V2, "gemma": GEMMA, "phi-3-mini": PHI_3_MINI}
NAMED = {"chatml": "format_chatml", "llama-3": "format_llama3", "llama-2": "format_llama2"}
NAMED_WITHOUT_SYSTEM_ROLE = {"mistral-instruct": "format_mistral_instruct", "vicuna": "format"}

TEXTS = ["Who are you?", "Nobody.", "Really?\n\nI doubt it.", "So do I.", "Good.", "Bye.", "stand-in-answer"]


def jinja(template: str) -> Jinja2ChatFormatter:
    return Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>")


def conversation(texts: list, system=None) -> list[dict]:
    roles = ["user", "assistant"] * len(texts)
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": role, "content": text} for role, text in zip(roles, texts)]


def turn_by_turn(template: ChatTemplate, texts: list, system=None, gap: str = "") -> str:
    """The chat as a session writes it."""
    text = template.opening(conversation([], system), texts[0]).text
    for answer, question in zip(texts[1::2], texts[2::2]):
        text += gap + answer + template.turn(question).text
    return text


@pytest.mark.parametrize("n_texts", [1, 3, 5, 7])
class TestSameAsWhole:
    @pytest.mark.parametrize("system", [None, "Be brief."])
    @pytest.mark.parametrize("name", WITH_SYSTEM_ROLE)
    def test_with_a_system_role(self, name, system, n_texts):
        formatter = jinja(WITH_SYSTEM_ROLE[name])
        whole = formatter(messages=conversation(TEXTS[:n_texts], system)).prompt
        template = ChatTemplate(formatter.to_chat_handler())
        # a blank that the model writes itself
        gap = " " if name == "llama-2" else ""
        assert turn_by_turn(template, TEXTS[:n_texts], system, gap) == whole

    @pytest.mark.parametrize("system", [None, "Be brief."])
    @pytest.mark.parametrize("name", WITHOUT_SYSTEM_ROLE)
    def test_without_one_the_system_text_comes_before_the_first_question(self, name, system, n_texts):
        formatter = jinja(WITHOUT_SYSTEM_ROLE[name])
        texts = TEXTS[:n_texts]
        first = texts[0] if system is None else f"{system}\n\n{texts[0]}"
        whole = formatter(messages=conversation([first, *texts[1:]])).prompt
        assert turn_by_turn(ChatTemplate(formatter.to_chat_handler()), texts, system) == whole

    @pytest.mark.parametrize("system", [None, "Be brief."])
    @pytest.mark.parametrize("name", NAMED | NAMED_WITHOUT_SYSTEM_ROLE)
    def test_formats_of_llama_cpp(self, name, system, n_texts):
        texts = TEXTS[:n_texts]
        whole_texts, whole_system = texts, system
        if name in NAMED_WITHOUT_SYSTEM_ROLE and system is not None:
            whole_texts, whole_system = [f"{system}\n\n{texts[0]}", *texts[1:]], None
        formatter = getattr(llama_chat_format, (NAMED | NAMED_WITHOUT_SYSTEM_ROLE)[name])
        whole = formatter(messages=conversation(whole_texts, whole_system)).prompt
        template = ChatTemplate(get_chat_completion_handler(name))
        gap = " " if name == "vicuna" else ""
        assert turn_by_turn(template, texts, system, gap) == whole


class TestTurn:
    def test_a_system_text_is_said_once_even_where_the_template_repeats_it(self):
        template = ChatTemplate(jinja(MISTRAL_NEMO).to_chat_handler())
        text = turn_by_turn(template, TEXTS[:5], "Be brief.")
        assert text == (
            "<s>[INST]Be brief.\n\nWho are you?[/INST]Nobody.</s>[INST]Really?\n\nI doubt it.[/INST]So do I.</s>"
            "[INST]Good.[/INST]"
        )

    def test_a_turn_ends_the_answer_and_begins_the_next(self):
        turn = ChatTemplate(jinja(THINKING).to_chat_handler()).turn("Why?")
        assert turn.text == "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n"

    def test_a_question_may_be_anything(self):
        template = ChatTemplate(jinja(SMOLLM2).to_chat_handler())
        for question in ("", SYSTEM, QUESTION, ANSWER, f"{ANSWER}{ANSWER}", "{{ 1/0 }}"):
            assert template.turn(question).text.count("<|im_start|>") == 2
            assert question in template.turn(question).text

    def test_stop_strings_and_bos_are_those_of_the_handler(self):
        assert ChatTemplate(jinja(GEMMA).to_chat_handler()).turn("x")[1:] == (False, ("</s>",))
        assert ChatTemplate(get_chat_completion_handler("chatml")).turn("x")[1:] == (True, ("<|im_end|>",))

    def test_a_handler_that_gives_create_completion_a_text(self):
        template = ChatTemplate(get_chat_completion_handler("chatml-function-calling"))
        assert template.turn("Hi").text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


class TestBeforeQuestion:
    @pytest.mark.parametrize("system", ["Be brief.", f"Say {QUESTION}.", ""])
    @pytest.mark.parametrize("template", [SMOLLM2, LLAMA_2, GEMMA, PHI_3_MINI])
    def test_it_is_the_start_of_every_first_prompt(self, template, system):
        template = ChatTemplate(jinja(template).to_chat_handler())
        before = template.before_question(system).text
        assert system in before
        opening = template.opening(conversation([], system), "Who?").text
        assert opening.startswith(before + "Who?")

    def test_it_holds_the_default_of_the_template(self):
        assert "named SmolLM" in ChatTemplate(jinja(SMOLLM2).to_chat_handler()).before_question(None).text


class TestRefusals:
    def test_a_template_that_leaves_answers_out(self):
        template = ChatTemplate(
            jinja("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}").to_chat_handler()
        )
        with pytest.raises(
            ValueError, match="chat handler must write every message as it is; it leaves out 'stand-in-answer'"
        ):
            template.turn("x")

    def test_a_handler_that_does_more_than_render(self):
        def handler(*, llama, messages):
            llama.eval([1])

        with pytest.raises(
            ValueError, match=r"pictures does more than render text, which a session cannot follow: .*eval"
        ):
            ChatTemplate(handler, "pictures").turn("x")

    def test_a_handler_that_completes_nothing(self):
        with pytest.raises(ValueError, match="must end in a completion"):
            ChatTemplate(lambda **_: None).turn("x")
