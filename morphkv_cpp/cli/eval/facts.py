"""`morphkv eval facts`: facts early in long prompts, asked for at the end."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ... import Llama, MorphKV
from ...eval.arms import FULL, Arm, parse_arms
from ...eval.bars import parse_bars
from ...eval.kept import kept_bytes
from ...eval.recall import N_DOCUMENTS, N_FACT_TOKENS, N_TOKENS, Question, run, wilson
from ...extras import needs_extra
from ...plots.quality import against_bytes, share_bars
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, print_table, progress_bar, remark, report

ARMS = f"{FULL},morphkv@256,morphkv@512,recency@256,recency@512,random@256,random@512"


def eval_facts(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    arms: Annotated[
        str,
        typer.Option(
            "--arms", metavar="ARMS", help="caches to compare, e.g. 'full,morphkv@256,morphkv@512:window=16:votes=8'"
        ),
    ] = ARMS,
    documents: Annotated[
        int, typer.Option("--documents", metavar="N", help=f"documents, at most {N_DOCUMENTS}")
    ] = N_DOCUMENTS,
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
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Ask about facts early in long prompts: does a cache that was cut after the question still know them?"""
    chosen = parse_arms(arms, morphkv)
    bars = parse_bars(require or [], [arm.name for arm in chosen])
    draw = plot_to(plot)
    with needs_extra("bench"):
        import scipy.stats  # noqa: F401  # found missing before the questions, not after them
    path = find_model(model)
    right, n_bytes = measure(path, chosen, documents, questions, llama, show_wrong)
    rows = {
        name: {**share_of(sum(answers), len(answers)), "kept_bytes": n_bytes[name]} for name, answers in right.items()
    }
    figures = {name: row["share"] for name, row in rows.items()}
    draw(
        f"{path.stem}: facts early in {N_TOKENS:,} tokens",
        lambda: [share_bars(rows), against_bytes("share that is right", figures, n_bytes)],
    )
    report(as_json, bars, figures, {"model": model, "morphkv": morphkv, "caches": rows}, lambda: show(rows))


def measure(
    model: Path, arms: list[Arm], n_documents: int, n_questions: int, llama: dict[str, Any], show_wrong: bool
) -> tuple[dict[str, list[bool]], dict[str, float]]:
    """Right or wrong, by arm and question; and the bytes of K and V that each arm keeps."""
    answers, n_bytes = {}, {}
    with progress_bar(len(arms) * n_questions, "facts") as advance:
        for arm in arms:

            def note(question: Question, answer: str, right: bool, name: str = arm.name) -> None:
                advance(1, name)
                if show_wrong and not right:
                    remark(f"{name}, document {question.i_document}: {question.fact.line} Answer:{answer!r}")

            def look(llm: Llama, name: str = arm.name) -> None:
                n_bytes[name] = kept_bytes(llm, N_TOKENS)

            answers[arm.name] = run(model, arm.morphkv, n_documents, n_questions, note, on_open=look, **llama)
    return answers, n_bytes


def share_of(n_right: int, n_asked: int) -> dict[str, float]:
    low, high = wilson(n_right, n_asked)
    return {"n_right": n_right, "n_asked": n_asked, "share": n_right / n_asked, "low": low, "high": high}


def show(rows: dict[str, dict[str, float]]) -> None:
    print_table(
        f"Facts among the first {N_FACT_TOKENS} of {N_TOKENS} tokens, asked for at the end",
        ("cache", "right", "share", "95% interval"),
        [
            (name, f"{r['n_right']} of {r['n_asked']}", f"{r['share']:.2f}", f"{r['low']:.2f} .. {r['high']:.2f}")
            for name, r in rows.items()
        ],
    )
