"""A chat of twenty turns as any client has it: asked again, edited, and cheap all the while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.server_process import ServerProcess

Messages = list[dict[str, Any]]

SYSTEM = "You speak of Lisbon, and of nothing else."
N_TURNS = 20
N_ANSWER = 40  # tokens, most


def live_a_chat(server: ServerProcess, ask: Callable[[Messages], tuple[str, int, int]]) -> None:
    """ask(messages) -> the answer, its prompt's tokens and those of them that were cached."""

    def n_tokens(messages: Messages) -> int:
        prompt = server.post("/apply-template", {"messages": messages}).json()["prompt"]
        return len(server.post("/tokenize", {"content": prompt, "add_special": True}).json()["tokens"])

    messages: Messages = [{"role": "system", "content": SYSTEM}]
    n_before = 0
    for turn in range(N_TURNS):
        messages.append({"role": "user", "content": f"{turn}: what about the trams and the old tiles there"})
        answer, n_prompt, n_cached = ask(messages)
        assert n_prompt == n_tokens(messages)
        # what is new: the answer before, and the question
        assert n_prompt - n_cached <= n_prompt - n_before + 1, turn
        n_before = n_prompt
        if turn % 5 == 4:
            _, n_prompt, n_cached = ask(messages)
            assert n_prompt - n_cached <= 64, f"the answer of turn {turn} was asked for again"
        if turn % 7 == 6:
            messages[-1]["content"] = f"{turn}: or rather, what about the river"
            answer, n_prompt, n_cached = ask(messages)
            new = n_tokens(messages) - n_tokens(messages[:-1]) + 64
            assert n_prompt - n_cached <= new + 64, f"the question of turn {turn} was edited"
            n_before = n_prompt
        messages.append({"role": "assistant", "content": answer})
    assert n_before > 1500
