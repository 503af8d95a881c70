"""A fact that was evicted long ago comes back when it is asked for.

python examples/facts_from_the_archive.py MODEL.gguf
"""

import sys

from morphkv_cpp import Archive, Llama, MorphKV
from morphkv_cpp.eval import prose_sections

FACT = "The code of Anna's bicycle lock is 4711."
QUESTION = "\n\nThe code of Anna's bicycle lock is"


def ask(llm: Llama, n_held: int) -> str:
    """What the model writes behind the question; the text before it stays as it is."""
    prompt = [*llm.input_ids[:n_held].tolist(), *llm.tokenize(QUESTION.encode(), add_bos=False)]
    return llm.create_completion(prompt, max_tokens=6, temperature=0.0)["choices"][0]["text"]


def main(model: str) -> None:
    archive = Archive("ram", type="q8_0")
    with Llama(model, morphkv=MorphKV(capacity=512, prompt_room=0), archive=archive, verbose=False) as llm:
        text = f"{FACT}\n\n" + "\n\n".join(prose_sections())
        llm.eval(llm.tokenize(text.encode())[:4000])
        stats = llm.cache_stats()
        print(f"{stats.logical_pos + 1} tokens read, {stats.n_evicted} evicted, {stats.n_archived} in the archive")
        print(f"{FACT[:-6]}:{ask(llm, llm.n_tokens)!r}")
        recalled = sum(recall.n_recalled for recall in llm.last_recalls)
        print(f"{len(llm.last_recalls)} recalls brought {recalled} tokens of all layers and heads back")


if __name__ == "__main__":
    main(sys.argv[1])
