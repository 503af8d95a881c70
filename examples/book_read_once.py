"""A book is read once and saved; then you ask, by sentences that the model completes, each from the same place.

python examples/book_read_once.py MODEL.gguf BOOK.txt "The captain's name is" ["The ship sank" ...]
"""

import sys
from pathlib import Path

from morphkv_cpp import Llama, MorphKV


def main(model: str, book: str, *questions: str) -> None:
    state, store = Path(book).with_suffix(".state"), Path(book).with_suffix(".archive")
    with Llama(model, morphkv=MorphKV(capacity=512, prompt_room=0), archive=store, verbose=False) as llm:
        if state.is_file():
            llm.load_state_file(state)  # constant size, however long the book is; the rest of it is in the archive
        else:
            llm.eval(llm.tokenize(Path(book).read_bytes()))
            llm.save_state_file(state)
        print(f"{llm.n_tokens} tokens in {state.name}, {state.stat().st_size / 2**20:.1f} MiB")

        text = llm.input_ids[: llm.n_tokens].tolist()
        for question in questions:
            prompt = llm.tokenize(f"\n\n{question}".encode(), add_bos=False)
            answer = llm.create_completion([*text, *prompt], max_tokens=12, temperature=0.0)
            print(question + " ".join(answer["choices"][0]["text"].split("\n")))
            print(f"  {answer['usage']['prompt_tokens']} tokens, {answer['timings']['recalls_n']} recalls")
            llm.load_state_file(state)  # the next question knows nothing of this one


if __name__ == "__main__":
    main(*sys.argv[1:])
