"""Which model architectures MorphKV serves: a list that is made by running each (tests/archs/run.py)."""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass
from pathlib import Path

LIST = Path(__file__).with_name("architectures.tsv")


@dataclass(frozen=True)
class Architecture:
    """What MorphKV does for an architecture of llama.cpp, or for its models of one kind.

    variant: which of its models; "" for all.

    support: "all" layers with a KV cache are cut, or a "part" of them (`why`); "refused", with the reason (`why`);
        "no cache": there is no KV cache to cut; "not run": unknown.
    goes_back: whether tokens can be taken back ("yes", "no"); is_rebased: whether its positions go on without end.
    """

    name: str
    variant: str
    support: str
    why: str
    goes_back: str
    is_rebased: str

    def line(self) -> tuple[str, ...]:
        return astuple(self)


def architectures() -> list[Architecture]:
    """Every architecture that this version of llama.cpp has a name for, some in several variants, in their order."""
    with LIST.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Architecture(*row) for row in rows[1:]]
