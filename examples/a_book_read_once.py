"""A book that is read once, and asked whenever you like: the second time the first answer comes at once.

python examples/a_book_read_once.py MODEL.gguf BOOK.txt "What is the code of the lock?"
"""

import sys
import time
from pathlib import Path

from morphkv_cpp import Llama, MorphKV

CONFIG = MorphKV(capacity=512, prompt_room=256)


def read(model: str, book: Path, archive: Path) -> None:
    """K and V of the whole book go into a file; memory stays as it is however long the book is."""
    with Llama(model, morphkv=CONFIG, verbose=False) as llm:
        found = llm.read(book, into=archive)
    print(f"{found.n_tokens} tokens read in {found.seconds:.0f} s, {found.n_bytes / 2**20:.0f} MiB in {found.path}")


def main(model: str, book: str, question: str) -> None:
    archive = Path(book).with_suffix(".archive")
    if not archive.exists():
        read(model, Path(book), archive)

    # any chat of this model attaches the file, several at a time, also in other processes
    start = time.perf_counter()
    with Llama(model, morphkv=CONFIG, archive=[archive], verbose=False) as llm, llm.session() as chat:
        for i, piece in enumerate(chat.say(question, max_tokens=40, temperature=0.0)):
            if i == 0:
                print(f"first word {time.perf_counter() - start:.1f} s after the file was opened")
            print(piece, end="", flush=True)
        print()
        for source in chat.last.sources:
            print(f"looked up in {source.path}: {source.passages[0].strip()[:100]!r} ...")


if __name__ == "__main__":
    main(*sys.argv[1:])
