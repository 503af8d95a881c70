"""Which tokens of your own text the cache still holds: in numbers, as a picture, and as a page.

python examples/what_is_kept.py MODEL.gguf TEXT.txt OUT.html
"""

import sys
from pathlib import Path

from morphkv_cpp import Llama, MorphKV


def main(model: str, text: str, page: str) -> None:
    with Llama(model, morphkv=MorphKV(capacity=512, prompt_room=0), verbose=False) as llm:
        llm.eval(llm.tokenize(Path(text).read_bytes()))
        found = llm.retention()

    # of the tokens that are no longer recent, those that most heads keep
    old = found.shares[: found.first_recent]
    n_kept, n_by_all = (found.heads > 0).sum(), (old == 1).sum()
    print(f"{len(found.tokens)} tokens read, {n_kept} kept by some head, {n_by_all} old ones by all")
    for token in sorted(range(len(old)), key=lambda i: -old[i])[4:12]:  # the first four always stay
        print(f"{old[token]:4.0%}  token {token:5}  {''.join(found.pieces[max(0, token - 5) : token + 1])!r}")

    found.save_html(page)  # open it in a browser; in a notebook `found` alone shows it, and found.plot() draws it


if __name__ == "__main__":
    main(*sys.argv[1:])
