"""Calls of tools in an answer: from the text that a model writes to what create_chat_completion's messages have."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from llama_cpp.llama_grammar import LlamaGrammar

from .template import Message

Tool = dict[str, Any]  # {"type": "function", "function": {"name": ..., "parameters": ...}}

# Hermes, Qwen, Granite and others; Mistral; Llama 3.1, which writes the JSON alone
MARKED = (
    re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL),
    re.compile(r"\[TOOL_CALLS\]\s*(.*)\Z", re.DOTALL),
    re.compile(r"(?:<\|python_tag\|>)?\s*(\{.*\})\s*\Z", re.DOTALL),
)
THOUGHT = re.compile(r"\A.*</think>", re.DOTALL)


def tool_names(tools: Sequence[Tool] | None) -> list[str]:
    return [tool["function"]["name"] for tool in tools or ()]


def forced_tool(tools: Sequence[Tool] | None, choice: Any) -> Tool | None:
    """The tool that a tool_choice names. Raises ValueError for one that is not among the tools."""
    if choice in (None, "auto"):
        return None
    if not isinstance(choice, dict):
        raise ValueError(f'tool_choice must be "auto", None or {{"type": "function", ...}}, got {choice!r}')
    name = choice["function"]["name"]
    for tool in tools or ():
        if tool["function"]["name"] == name:
            return tool
    raise ValueError(f"tool_choice must name one of the tools, {tool_names(tools)}, got {name!r}")


def arguments_grammar(tool: Tool) -> LlamaGrammar:
    """An answer that is the tool's arguments, as create_chat_completion has it."""
    return LlamaGrammar.from_json_schema(json.dumps(tool["function"]["parameters"]), verbose=False)


def answer_message(written: str, tools: Sequence[Tool] | None, forced: str | None) -> Message:
    """The message of an answer. forced: the tool whose arguments it is."""
    if forced is not None:
        return {"role": "assistant", "content": None, "tool_calls": [_call(forced, written)]}
    calls, rest = _calls_in(written, set(tool_names(tools)))
    if not calls:
        return {"role": "assistant", "content": written}
    return {"role": "assistant", "content": rest or None, "tool_calls": calls}


def _calls_in(text: str, names: set[str]) -> tuple[list[dict[str, Any]], str]:
    """Calls of these tools, and the text without them."""
    thought = THOUGHT.match(text)
    start = thought.end() if thought else 0
    for pattern in MARKED if names else ():
        found = [(match, _read(match[1], names)) for match in pattern.finditer(text, start)]
        if calls := [call for _, some in found for call in some]:
            for match, some in reversed(found):
                text = text[: match.start()] + text[match.end() :] if some else text
            return calls, text.strip()
    return [], text


def _read(text: str, names: set[str]) -> list[dict[str, Any]]:
    try:
        values = json.loads(text)
    except ValueError:
        return []
    calls = []
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, dict) or value.get("name") not in names:
            return []
        calls.append(_call(value["name"], json.dumps(value.get("arguments", value.get("parameters", {})))))
    return calls


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:9]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
