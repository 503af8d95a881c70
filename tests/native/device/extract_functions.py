"""Copies functions out of C sources, so that a test can compile them alone: OUT, then FILE:NAME for each."""

import re
import sys
from pathlib import Path


def extract(path: Path, name: str) -> str:
    """A function's definition, from the line with its name to the first line that is `}`."""
    found = re.search(
        rf"^(?!return\b)[\w:<>*& ]*\b{name}\([^;{{]*\{{.*?^\}}\n", path.read_text(), re.MULTILINE | re.DOTALL
    )
    if not found:
        sys.exit(f"{path} defines no function {name}")
    return found[0]


out, *wanted = sys.argv[1:]
Path(out).write_text("\n".join(extract(Path(file), name) for file, _, name in (w.rpartition(":") for w in wanted)))
