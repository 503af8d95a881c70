"""The suite: every item of every task in every arm. What a file of results has already is not measured again.

Results are JSON lines. A line is an item in an arm, with a score for each question; its key says the model, the task,
its length, the item and the arm's settings. Lines that begin a run say on what machine and with which versions.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from morphkv_cpp import Llama
from morphkv_cpp.cache.fingerprint import model_fingerprint

from .peers import open_peer
from .readers import Reader, Rows, cell_bytes, open_for_logits, open_reader
from .suite_arms import SuiteArm
from .tasks import Item, Task, Tokens

FORMAT = 1  # of keys: another number, and everything is measured anew
N_ROOM = 256  # tokens for questions and answers, at least

Advance = Callable[[int, str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A task at one length."""

    task: Task
    n_tokens: int
    n_items: int


class Results:
    """A file of results that grows by whole lines."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = []
        if path.is_file():
            text = path.read_bytes()
            # a line that a killed process left half is measured again
            whole = text[: text.rfind(b"\n") + 1]
            self.rows = [json.loads(line) for line in whole.splitlines() if line.strip()]
            if len(whole) < len(text):
                path.write_bytes(whole)
        self.keys = {row["key"] for row in self.rows if "key" in row}

    def add(self, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self.rows.append(row)
        if "key" in row:
            self.keys.add(row["key"])


class Suite:
    """model: its GGUF. n_chunk: tokens between evictions, which perplexity reads at once."""

    def __init__(self, model: Path, arms: Sequence[SuiteArm], parts: Sequence[Part], n_chunk: int, **llama: Any):
        self.model, self.arms, self.parts, self.n_chunk, self.llama = model, list(arms), list(parts), n_chunk, llama
        self.fingerprint = model_fingerprint(str(model))
        with closing(Llama(model, n_ctx=256, verbose=False)) as llm:
            kind = llm.metadata.get("general.architecture", "")
            self.n_trained = int(llm.metadata.get(f"{kind}.context_length", 0)) or 2**31
            tokens_of = Tokens(llm)
            self.items = {(p, i): p.task.make(tokens_of, i, p.n_tokens) for p in self.parts for i in range(p.n_items)}

    def key(self, part: Part, i_item: int, arm: SuiteArm) -> str:
        said = [FORMAT, self.fingerprint, part.task.name, part.n_tokens, i_item, arm.settings(), self.n_chunk]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def wanted(self, results: Results) -> list[tuple[Part, SuiteArm, list[int]]]:
        """What is to be measured: items of an arm. A full cache, and a peer that keeps the positions of the text, read
        no text beyond what the model was trained for."""
        found = []
        for part in self.parts:
            for arm in self.arms:
                items = [i for i in range(part.n_items) if self.key(part, i, arm) not in results.keys]
                if arm.is_full or arm.peer:
                    items = [i for i in items if n_text(self.items[part, i]) <= self.n_trained]
                if items:
                    found.append((part, arm, items))
        return found

    def n_tokens(self, results: Results) -> int:
        """How many are read, for a progress bar."""
        return sum(len(self.items[part, i].tokens) for part, _, items in self.wanted(results) for i in items)

    def run(self, results: Results, advance: Advance = lambda n, text: None) -> None:
        wanted = self.wanted(results)
        if not wanted:
            return
        per_cell = cell_bytes(self.model, **self.llama)
        for part in self.parts:
            of_part = [(arm, items) for p, arm, items in wanted if p is part]
            if part.task.is_perplexity and of_part:
                self._read_together(part, of_part, results, advance, per_cell)
                continue
            for arm, items in of_part:
                self._ask(part, arm, items, results, advance, per_cell)

    def _ask(
        self, part: Part, arm: SuiteArm, items: list[int], results: Results, advance: Advance, per_cell: float
    ) -> None:
        texts = [self.items[part, i] for i in items]
        n_most = max(map(n_text, texts))
        n_prompt = n_most if any(item.at_cut for item in texts) else 0
        if arm.peer is not None:
            opened: Reader = open_peer(self.model, arm, n_prompt, **self.llama)
        else:
            opened = open_reader(self.model, arm, n_most, n_prompt, **self.llama)
        with closing(opened) as reader:
            for i, item in zip(items, texts):
                start = time.monotonic()

                def count(n: int) -> None:
                    advance(n, f"{part.task.name} {arm.name}")

                said = ask(reader, item, count)
                assert part.task.score is not None
                scores = [part.task.score(question, text) for question, text in zip(item.questions, said)]
                row = self._row(part, i, item, reader, per_cell, n_prompt)
                # of a long answer the score is enough
                shown = [text[:80] for text in said]
                results.add({**row, "scores": scores, "said": shown, "took_s": round(time.monotonic() - start, 2)})

    def _read_together(
        self,
        part: Part,
        wanted: list[tuple[SuiteArm, list[int]]],
        results: Results,
        advance: Advance,
        per_cell: float,
    ) -> None:
        """Each text by all caches at once, chunk by chunk: no logits need be stored. Nothing is recalled."""
        n_most = max(n_text(item) for (p, _), item in self.items.items() if p is part)
        full = SuiteArm("full", 0)
        arms = [arm for arm, _ in wanted if not arm.is_full]
        has_full = n_most <= self.n_trained
        with ExitStack() as stack:

            def opened(arm: SuiteArm) -> Reader:
                if arm.peer is not None:
                    return stack.enter_context(closing(open_peer(self.model, arm, 0, **self.llama)))
                return stack.enter_context(
                    closing(open_for_logits(self.model, arm, n_most, self.n_chunk, **self.llama))
                )

            readers = {arm.name: opened(arm) for arm in arms}
            if has_full:
                readers = {full.name: opened(full), **readers}
            missing = {arm.name: set(items) for arm, items in wanted}
            for i in range(part.n_items):
                names = [name for name, items in missing.items() if i in items]
                if not names:
                    continue
                item = self.items[part, i]
                both = {name: readers[name] for name in readers if name in names or name == full.name}
                start = time.monotonic()

                def count(n: int, n_arms: int = len(names)) -> None:
                    advance(n * n_arms, part.task.name)

                found = read_together(both, item.tokens, self.n_chunk, count)
                for name in names:
                    row = self._row(part, i, item, readers[name], per_cell, 0)
                    took_s = round((time.monotonic() - start) / len(both), 2)
                    results.add({**row, **found[name], "took_s": took_s})

    def _row(self, part: Part, i: int, item: Item, reader: Reader, per_cell: float, n_prompt: int) -> Row:
        arm = reader.arm
        sizes = reader.sizes(len(item.tokens), per_cell)
        named = {"task": part.task.name, "n_tokens": part.n_tokens, "kind": item.kind, "item": i, "arm": arm.name}
        return {"key": self.key(part, i, arm), **named, **sizes, "n_prompt_room": n_prompt}


def n_text(item: Item) -> int:
    """Most tokens that an item needs, with questions and answers."""
    each = [len(q.tokens) + max(q.n_answer, len(q.forced)) for q in item.questions]
    n_asked = (sum if item.in_turn else max)(each) if each else 0
    return len(item.tokens) + max(n_asked + 8, N_ROOM)


def ask(reader: Reader, item: Item, on_chunk: Callable[[int], None]) -> list[str]:
    """Answers to the questions of an item."""
    reader.read(item.tokens, on_chunk)
    if item.in_turn:
        return [reader.answer(question) for question in item.questions]
    said = []
    for question in item.questions:
        with reader.taken_back():
            said.append(reader.answer(question))
    return said


def read_together(
    readers: dict[str, Reader], tokens: Sequence[int], n_chunk: int, on_chunk: Callable[[int], None]
) -> dict[str, Row]:
    """Mean -log p in nats a token behind the first quarter of the text, and by the same tokens the KL divergence to the
    reader "full", where there is one."""
    for reader in readers.values():
        reader.reset()
    n_skip = len(tokens) // 4
    targets = np.asarray(tokens[1:])
    loss: dict[str, list[float]] = {name: [] for name in readers}
    divergence: dict[str, list[float]] = {name: [] for name in readers}
    for start in range(0, len(targets), n_chunk):
        chunk = tokens[start : min(start + n_chunk, len(targets))]
        full: Rows | None = None
        weights = np.empty(0, dtype=np.float32)
        for name, reader in readers.items():
            rows = log_softmax(reader.logits(chunk))
            loss[name] += (-rows[np.arange(len(chunk)), targets[start : start + len(chunk)]]).tolist()
            if name == "full":
                full, weights = rows, np.exp(rows)
            if full is not None:
                divergence[name] += kl(full, weights, rows).tolist()
        on_chunk(len(chunk))
    found: dict[str, Row] = {}
    for name in readers:
        found[name] = {"nll": float(np.mean(loss[name][n_skip:])), "n_scored": len(targets) - n_skip}
        if divergence[name]:
            found[name]["kl"] = float(np.mean(divergence[name][n_skip:]))
    return found


def log_softmax(rows: Rows) -> Rows:
    rows = rows - rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def kl(full: Rows, weights: Rows, other: Rows) -> npt.NDArray[np.float64]:
    """Of each row of log probabilities, in nats. weights: exp of `full`."""
    values: npt.NDArray[np.float64] = np.einsum("ij,ij->i", weights, full - other).astype(np.float64)
    return values
