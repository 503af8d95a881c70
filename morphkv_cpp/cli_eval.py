"""`morphkv recall` and `morphkv texts`: what a cut cache still knows, and prose to read."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from . import MorphKV
from .eval import recall as recall_eval
from .eval.arms import FULL, parse_arms
from .eval.bars import missed, parse_bars
from .eval.texts import fetch_texts
from .options import Model, llama_options, morphkv_options, with_options
from .show import find_model, print_table, progress_bar, remark, report_bars

RECALL_ARMS = f"{FULL},morphkv@256,morphkv@512,recency@256,recency@512,random@256,random@512"


@with_options(morphkv=morphkv_options, llama=llama_options)
def recall(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    arms: Annotated[
        str,
        typer.Option(
            "--arms", metavar="ARMS", help="caches to compare, e.g. 'full,morphkv@256,morphkv@512:window=16:votes=8'"
        ),
    ] = RECALL_ARMS,
    documents: Annotated[
        int, typer.Option("--documents", metavar="N", help=f"documents, at most {recall_eval.N_DOCUMENTS}")
    ] = recall_eval.N_DOCUMENTS,
    questions: Annotated[
        int, typer.Option("--questions", metavar="N", help="questions, spread over the documents")
    ] = 60,
    require: Annotated[
        Optional[list[str]],
        typer.Option(
            "--require", metavar="BAR", help="exit with 1 if missed, e.g. 'morphkv@256>=0.80' or 'recency<0.40'"
        ),
    ] = None,
    show_wrong: Annotated[bool, typer.Option("--show-wrong", help="print wrong answers")] = False,
) -> None:
    """Ask about facts early in long prompts: does a cache that was cut after the question still know them?"""
    chosen = parse_arms(arms, morphkv)
    bars = parse_bars(require or [], [arm.name for arm in chosen])
    path = find_model(model)
    rows, shares = [], {}
    with progress_bar(len(chosen) * questions, "recall") as advance:
        for arm in chosen:

            def show(question: recall_eval.Question, answer: str, right: bool, arm=arm) -> None:
                advance(1, arm.name)
                if show_wrong and not right:
                    remark(f"{arm.name}, document {question.i_document}: {question.fact.line} Answer:{answer!r}")

            right = recall_eval.run(path, arm.morphkv, documents, questions, show, **llama)
            low, high = recall_eval.wilson(sum(right), len(right))
            shares[arm.name] = sum(right) / len(right)
            rows.append(
                (arm.name, f"{sum(right)} of {len(right)}", f"{shares[arm.name]:.2f}", f"{low:.2f} .. {high:.2f}")
            )
    print_table(
        f"Facts among the first {recall_eval.N_FACT_TOKENS} of {recall_eval.N_TOKENS} tokens, asked for at the end",
        ("cache", "right", "share", "95% interval"),
        rows,
    )
    report_bars(missed(bars, shares), len(bars))


def texts(
    folder: Annotated[Path, typer.Argument(help="where the texts go")],
) -> None:
    """Fetch English prose by package name, for `morphkv perplexity`, and print the paths."""
    for path in fetch_texts(folder, remark):
        print(path)
