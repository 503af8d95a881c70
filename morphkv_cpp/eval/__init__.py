"""Evaluations, and the texts that they read: prose sections and one-line facts, all written for this package."""

from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "data"


class Fact(NamedTuple):
    """What a document states in one line, and the single word that answers a question about it."""

    subject: str
    answer: str

    @property
    def line(self) -> str:
        return f"The {self.subject} is {self.answer}."


def prose_sections() -> list[str]:
    """The prose, one text a subject, in order of the files' names."""
    return [path.read_text(encoding="ascii").strip() for path in sorted((DATA / "prose").glob("*.txt"))]


def facts() -> list[Fact]:
    """All facts; subjects and answers are distinct."""
    rows = (DATA / "facts.tsv").read_text(encoding="ascii").splitlines()
    return [Fact(*row.split("\t")) for row in rows]
