"""A chat that goes on for as long as you like, and where the last one ended.

python examples/endless_chat.py MODEL.gguf
"""

import sys
from pathlib import Path

from morphkv_cpp import Llama, MorphKV

FILE = Path("endless.session")


def main(model: str) -> None:
    with Llama(model, morphkv=MorphKV(capacity=1024), archive="ram", verbose=False) as llm:
        chat = llm.load_session(FILE) if FILE.exists() else llm.session("You answer in one or two short sentences.")
        for line in sys.stdin:
            for piece in chat.say(line.strip(), max_tokens=200):
                print(piece, end="", flush=True)
            stats = chat.cache_stats()
            print(f"\n[{chat.n_tokens} tokens so far, {stats.n_used} cells in use, {stats.n_evictions} evictions]")
            chat.save(FILE)


if __name__ == "__main__":
    main(sys.argv[1])
