"""`morphkv show`: reads a text, and shows which of its tokens the cache still holds."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import Archive, Llama, MorphKV
from ..cache.retention import Retention
from ..plots.figure import check_plot
from ..plots.retention import plot_retention
from ..text.pieces import TokenText
from ..text.tokens import require_utf8
from ..text.write import write
from .demo import print_kept
from .demo_text import kept_by_layer
from .gpu_layers import fitted
from .options import Model, llama_options, morphkv_options, with_options
from .options_archive import archive_options, archived
from .plots import Plot
from .show import Json, find_model, print_json, progress_bar, remark, remark_gpu_layers

N_ANSWER = 64  # tokens


@with_options(morphkv=morphkv_options, archive=archived(archive_options), llama=fitted(llama_options))
def show(
    model: Model,
    text: Annotated[str, typer.Argument(help="file of a text, UTF-8; - reads it from stdin")],
    morphkv: MorphKV,
    archive: Archive | None,
    llama: dict[str, Any],
    ask: Annotated[
        str | None,
        typer.Option(
            "--ask",
            metavar="TEXT",
            help=f"then let the model go on with this, for up to {N_ANSWER} tokens: what it recalls is marked",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="write a page: the text, shaded by what is kept of it", show_default=False
        ),
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Let MODEL read TEXT, and show which tokens the heads of its layers still keep."""
    for path in (html, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of a file that is to be written must be there, got {str(path)!r}")
    if plot is not None:
        check_plot(plot)
    data = sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()
    with Llama(find_model(model), morphkv=morphkv, archive=archive, **llama) as llm:
        remark_gpu_layers(llm)
        read(llm, llm.tokenize(require_utf8(data, text)))
        if ask is not None:
            print(ask + answer(llm, ask), file=sys.stderr if as_json else sys.stdout)
        found = llm.retention()
    if html is not None:
        found.save_html(html)
        remark(f"written: {html}")
    if plot is not None:
        plot_retention(plot, found)
        remark(f"written: {plot}")
    if as_json:
        print_json(found.to_dict())
    else:
        print_retention(found)


def read(llm: Llama, tokens: list[int]) -> None:
    if not tokens:
        raise ValueError("the text must have at least one token, got none")
    with progress_bar(len(tokens), "reading") as advance:
        for start in range(0, len(tokens), llm.n_batch):
            batch = tokens[start : start + llm.n_batch]
            llm.decode(batch)
            advance(len(batch))


def answer(llm: Llama, question: str) -> str:
    """What follows the question behind the text, greedy."""
    prompt = [*llm.input_ids[: llm.n_tokens].tolist(), *llm.tokenize(question.encode(), add_bos=False)]
    text = TokenText(llm._piece)
    return "".join(text(token) for token in write(llm, prompt, N_ANSWER, temp=0.0))


def print_retention(found: Retention) -> None:
    n_kept = int((found.heads > 0).sum())
    print(
        f"{len(found.tokens):,} tokens read, {n_kept:,} of them kept by at least one of {found.n_heads} heads, "
        f"{len(found.tokens) - found.first_recent:,} by all as they are recent; {found.stats.n_evictions:,} evictions, "
        f"{found.stats.n_recalls:,} recalls"
    )
    print_kept(kept_by_layer(found.positions.values(), len(found.tokens), found.stats.keep), found.stats.keep)
