"""Messages of users and tools, as a session puts them to the model."""

from __future__ import annotations

import json
from typing import Any

from .history import History
from .media import Content, text_of
from .model import ChatModel
from .template import Message

N_START = 40  # characters of a question that a warning shows


def user_message(llm: ChatModel, content: Content) -> Message:
    """Raises TypeError for what is no content of a message, ValueError for images that this Llama cannot read."""
    text_of(llm, content)
    return {"role": "user", "content": content if isinstance(content, str) else list(content)}


def tool_message(history: History, content: Any, tool_call_id: str | None, name: str | None) -> Message:
    """content: what is no text is written as JSON. Without an id it is that of the first call without a result."""
    message = {"role": "tool", "content": content if isinstance(content, str) else json.dumps(content)}
    answers = [one for one in history.messages if one["role"] == "assistant"]
    answered = {one.get("tool_call_id") for one in history.pending}
    calls = [call for call in (answers[-1].get("tool_calls") or () if answers else ()) if call["id"] not in answered]
    call = next((call for call in calls if tool_call_id in (None, call["id"])), None)
    tool_call_id = call["id"] if tool_call_id is None and call is not None else tool_call_id
    name = call["function"]["name"] if name is None and call is not None else name
    given = {"tool_call_id": tool_call_id, "name": name}
    return {**message, **{key: value for key, value in given.items() if value is not None}}


def start(content: Content | None) -> str:
    """How a question is shown in a warning."""
    if content is None:
        return ""
    text = content if isinstance(content, str) else str(content)
    return repr(text if len(text) <= N_START else f"{text[:N_START]}...")
