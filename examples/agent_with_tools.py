"""An agent that calls a tool over `morphkv serve`. Its history may grow without end.

morphkv serve MODEL.gguf
python examples/agent_with_tools.py "What is 17 times 23?"
"""

import json
import sys

from openai import OpenAI

TOOL = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "Multiply two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


def choice(i_step: int, n_steps: int) -> str:
    """The first step must call a tool, the last one must answer; between them the model decides."""
    if i_step == 0:
        return "required"
    return "none" if i_step == n_steps - 1 else "auto"


def main(question: str, url: str = "http://127.0.0.1:8080/v1", n_steps: str = "5") -> None:
    client = OpenAI(base_url=url, api_key="none")
    messages = [{"role": "user", "content": question}]
    for i in range(int(n_steps)):
        answer = client.chat.completions.create(
            model="any", messages=messages, tools=[TOOL], tool_choice=choice(i, int(n_steps)), max_tokens=100
        )
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        cached = answer.usage.prompt_tokens_details.cached_tokens
        print(f"[step {i + 1}: {answer.usage.prompt_tokens} tokens of prompt, {cached} of them cached]")
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            numbers = json.loads(call.function.arguments)
            product = numbers["a"] * numbers["b"]
            print(f"multiply({numbers['a']}, {numbers['b']}) = {product}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(product)})


if __name__ == "__main__":
    main(*sys.argv[1:])
