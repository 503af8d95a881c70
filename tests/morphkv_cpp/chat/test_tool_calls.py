"""Tools in sessions: calls and results as turns; on a tiny model, with a template as Qwen's."""

import json

import pytest

from morphkv_cpp import MorphKV, StateError
from morphkv_cpp.chat.tool_calls import answer_message
from support.chats import forced, talk, text_of
from support.tiny import bytes_of

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

SMALL = MorphKV(capacity=512, window=16, interval=16, keep=2, prompt_room=256)
TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') + "
    "'tools:' }}{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif message.role != 'system' %}{{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}"
    '{%- for call in message.tool_calls or [] %}{{- \'<tool_call>\n{"name": "\' + call.function.name + '
    "'\", \"arguments\": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time", "parameters": PARAMETERS}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def llm(open_llama):
    return open_llama(chat_handler=Jinja2ChatFormatter(TEMPLATE, eos_token="</s>", bos_token="").to_chat_handler())


def write(chat, question, text, **options) -> str:
    options |= {"max_tokens": len(text.encode()), "logits_processor": forced(bytes_of(text))}
    return "".join(chat.say(question, **options))


class TestCalls:
    def test_a_call_and_its_result_are_turns(self, llm):
        with llm.session("abc") as chat:
            write(chat, "Weather in Rome?", CALL, tools=[WEATHER])
            message = chat.history()[-1]
            (call,) = message["tool_calls"]
            assert (message["content"], call["type"], call["function"]["name"]) == (None, "function", "weather")
            assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
            n_before = chat.n_tokens
            chat.tool_result({"sky": "blue"})
            write(chat, None, "It is blue.")
            result = chat.history()[-2]
            assert result == {
                "role": "tool",
                "content": '{"sky": "blue"}',
                "tool_call_id": call["id"],
                "name": "weather",
            }
            assert chat.last.prompt_tokens <= chat.n_tokens - n_before
            text = llm.detokenize(text_of(chat)).decode(errors="ignore")
            assert text.strip().startswith(f"<|im_start|>system\nabctools:\n{json.dumps(WEATHER)}<|im_end|>\n")
            result = '<|im_start|>user\n<tool_response>\n{"sky": "blue"}\n</tool_response><|im_end|>\n'
            assert text.endswith(f"{CALL}<|im_end|>\n{result}<|im_start|>assistant\nIt is blue.")
            # what the tools are is never evicted
            assert chat.cache_stats().keep > len(json.dumps(WEATHER))
            chat.undo()
            assert [message["role"] for message in chat.history()] == ["system"]

    def test_results_come_in_the_order_of_the_calls_or_by_their_ids(self, llm):
        with llm.session("abc", tools=[WEATHER, TIME]) as chat:
            write(chat, "And there?", f"{CALL}\n{CALL.replace('weather', 'time')}")
            first, second = chat.history()[-1]["tool_calls"]
            chat.tool_result("blue")
            chat.tool_result("noon")
            assert [message["tool_call_id"] for message in chat.history()[-2:]] == [first["id"], second["id"]]
            assert [message["name"] for message in chat.history()[-2:]] == ["weather", "time"]
            chat.tool_result("?", "another", name="x")
            assert chat.history()[-1] == {"role": "tool", "content": "?", "tool_call_id": "another", "name": "x"}

    def test_a_named_tool_is_called(self, llm):
        with llm.session("abc", tools=[TIME, WEATHER]) as chat:
            choice = {"type": "function", "function": {"name": "weather"}}
            text = "".join(chat.say("Weather?", tool_choice=choice, temperature=1.0))
            assert json.loads(text)["city"] in ("Rome", "Oslo")
            message = chat.history()[-1]
            assert (message["content"], message["tool_calls"][0]["function"]["arguments"]) == (None, text)
            with pytest.raises(
                ValueError, match=r"tool_choice must name one of the tools, \['time', 'weather'\], got 'x'"
            ):
                chat.say("x", tool_choice={"type": "function", "function": {"name": "x"}})
            with pytest.raises(ValueError, match="tool_choice must be"):
                chat.say("x", tool_choice="required")

    def test_other_tools_are_said_at_the_beginning(self, llm):
        with llm.session("abc", tools=[WEATHER]) as chat:
            write(chat, "Weather in Rome?", CALL)
            chat.tool_result("blue")
            write(chat, None, "It is blue.")
            write(chat, "And the time?", "Noon.", tools=[TIME])
            assert chat.n_turns == 3
            assert [message["role"] for message in chat.history()] == (
                ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
            )
            text = llm.detokenize(text_of(chat)).decode(errors="ignore")
            assert (json.dumps(TIME) in text, json.dumps(WEATHER) in text) == (True, False)
            assert f"{CALL}<|im_end|>" in text
            # and none
            write(chat, "Thanks.", "Bye.", tools=[])
            assert "tools:" not in llm.detokenize(text_of(chat)).decode(errors="ignore")
            chat.undo()
            chat.undo()
            assert chat.history()[-1]["content"] == "It is blue."

    def test_a_saved_session_has_its_tools(self, llm, tmp_path):
        with llm.session("abc", tools=[WEATHER]) as chat:
            write(chat, "Weather in Rome?", CALL)
            chat.tool_result("blue")
            chat.save(tmp_path / "chat")
            again = llm.load_session(tmp_path / "chat")
            assert again.history() == chat.history()
            write(again, None, "It is blue.")
            write(again, "And in Oslo?", CALL.replace("Rome", "Oslo"))
            assert again.history()[-1]["tool_calls"][0]["function"]["name"] == "weather"

    def test_tools_without_room_change_nothing(self, llm):
        with llm.session("abc") as chat:
            talk(chat, "one")
            before = chat.history(), chat.n_tokens
            with pytest.raises(ValueError, match="the system prompt must have less than capacity - window tokens"):
                talk(chat, "two", tools=[WEATHER] * 5)
            assert (chat.history(), chat.n_tokens) == before
            talk(chat, "two")


class TestWaiting:
    """Messages may end with one that waits for an answer."""

    @pytest.mark.parametrize("end", [{"role": "user", "content": "two"}, {"role": "tool", "content": "42"}])
    def test_say_answers_it(self, llm, end):
        messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "xyz"}, end]
        with llm.session("abc", messages=messages) as chat:
            assert chat.history()[-1] == end
            talk(chat, None)
            assert [message["role"] for message in chat.history()[-2:]] == [end["role"], "assistant"]
            assert end["content"] in llm.detokenize(text_of(chat)).decode(errors="ignore")
            with pytest.raises(ValueError, match=r"say\(\) needs a text: nothing waits for an answer"):
                chat.say()

    def test_with_a_question_both_are_asked(self, llm):
        with llm.session(messages=[{"role": "user", "content": "one"}]) as chat:
            talk(chat, "two")
            assert [message["content"] for message in chat.history()[:2]] == ["one", "two"]

    def test_a_result_without_a_chat(self, llm):
        with llm.session() as chat, pytest.raises(StateError, match="a tool's result must follow an answer"):
            chat.tool_result("42")


@pytest.mark.parametrize(
    ("text", "names", "rest"),
    [
        (CALL, ["weather"], None),
        (f"Let me look.\n{CALL}", ["weather"], "Let me look."),
        (f"<think>\n{CALL}\n</think>\n{CALL}", ["weather"], f"<think>\n{CALL}\n</think>"),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {}}]', ["weather"], None),
        ('{"name": "weather", "parameters": {"city": "Rome"}}', ["weather"], None),
        (CALL.removesuffix("\n</tool_call>"), ["weather"], None),
        (CALL.replace("weather", "another"), [], "all"),
        ('{"name": "Anna"}', [], "all"),
        ("<tool_call>\n{", [], "all"),
        ("It is blue.", [], "all"),
    ],
)
def test_calls_in_a_text(text, names, rest):
    message = answer_message(text, [WEATHER], None)
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == names
    assert message["content"] == (text if rest == "all" else rest)
