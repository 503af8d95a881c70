"""An agent that calls a tool over `morphkv serve`; its history may grow without end.

morphkv serve MODEL.gguf --jinja &
python examples/agent_with_tools.py "What is 17 times 23?"
"""

import json
import sys

from openai import OpenAI

TOOL = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "The product of two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


def main(question: str, url: str = "http://127.0.0.1:8080/v1", n_most: int = 5) -> None:
    client = OpenAI(base_url=url, api_key="none")
    messages = [{"role": "user", "content": question}]
    for _ in range(n_most):
        answer = client.chat.completions.create(model="any", messages=messages, tools=[TOOL], max_tokens=300)
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        cached = answer.usage.prompt_tokens_details.cached_tokens
        print(f"[{answer.usage.prompt_tokens} tokens of history, {cached} of them known]")
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            numbers = json.loads(call.function.arguments)
            result = {"role": "tool", "tool_call_id": call.id, "content": str(numbers["a"] * numbers["b"])}
            messages.append(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
