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
    goes_back: whether tokens can be taken back: "exactly", any since the last eviction; "to marks", to the end of a
        prompt alone; "no".
    is_rebased: whether its positions go on without end ("yes", "no"); is_archived: whether the archive works.
    images: "M-RoPE", those of images have rows and columns; "one position" for each token; "no" where llama.cpp has
        images for it and MorphKV does not; "" where there are none.
    mtp: heads that draft the next tokens, "inside" of the model or "beside" it; "no" and "" as of images.

    All but the first three are "" where a model is not served.
    """

    name: str
    variant: str
    support: str
    why: str
    goes_back: str
    is_rebased: str
    is_archived: str
    images: str
    mtp: str

    def line(self) -> tuple[str, ...]:
        return astuple(self)

    @property
    def is_served(self) -> bool:
        return self.support in ("all", "part")

    def limits(self) -> list[str]:
        """What a text of a model that is served cannot do; none: it is whole."""
        limits = {
            "tokens cannot be taken back": self.goes_back == "no",
            "positions are not rebased": self.is_rebased == "no",
            "no archive": self.is_archived == "no",
        }
        return [text for text, is_so in limits.items() if is_so]


def architectures() -> list[Architecture]:
    """Every architecture that this version of llama.cpp has a name for, some in several variants, in their order."""
    with LIST.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Architecture(*row) for row in rows[1:]]
