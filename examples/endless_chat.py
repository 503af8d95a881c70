"""A chat that goes on for as long as you like, and the next time where it ended. Each line that you type is a question.

python examples/endless_chat.py MODEL.gguf [CAPACITY]
"""

import sys
from pathlib import Path

from morphkv_cpp import Llama, MorphKV

FILE = Path("endless.session")


def main(model: str, capacity: str = "1024") -> None:
    config = MorphKV(capacity=int(capacity))
    with Llama(model, morphkv=config, archive="ram", verbose=False) as llm:
        if FILE.exists():
            chat = llm.load_session(FILE)
            print(f"[going on with {FILE}: {chat.n_turns} turns, {chat.n_tokens} tokens]")
        else:
            chat = llm.session(system="You answer in one or two short sentences.")
        for line in sys.stdin:
            for piece in chat.say(line.strip(), max_tokens=100):
                print(piece, end="", flush=True)
            stats = chat.cache_stats()
            print(f"\n[{chat.n_tokens} tokens so far, {stats.n_used} cells in use, {stats.n_evictions} evictions]")
            chat.save(FILE)


if __name__ == "__main__":
    main(*sys.argv[1:])
