"""A fact that was evicted long ago comes back when it is asked for.

python examples/facts_from_the_archive.py MODEL.gguf
"""

import sys

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval import prose_sections

FACT = "The code of Anna's bicycle lock is 4711."
QUESTION = "\n\nThe code of Anna's bicycle lock is"


def main(model: str) -> None:
    with Llama(model, morphkv=MorphKV(capacity=512, prompt_room=0), archive="ram", verbose=False) as llm:
        text = f"{FACT}\n\n" + "\n\n".join(prose_sections())
        llm.eval(llm.tokenize(text.encode())[:4000])
        stats = llm.cache_stats()
        print(f"{stats.logical_pos + 1} tokens read, {stats.n_evicted} evicted, {stats.n_archived} in the archive")

        # a prompt that goes on where the text ended, so only the question is evaluated
        prompt = [*llm.input_ids[: llm.n_tokens].tolist(), *llm.tokenize(QUESTION.encode(), add_bos=False)]
        answer = llm.create_completion(prompt, max_tokens=6, temperature=0.0)
        print(QUESTION.strip() + answer["choices"][0]["text"])
        print(f"{answer['timings']['recalls_n']} recalls, {answer['timings']['recall_ms']:.0f} ms")


if __name__ == "__main__":
    main(sys.argv[1])
