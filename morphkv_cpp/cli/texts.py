"""`morphkv texts`: prose to read."""

from pathlib import Path
from typing import Annotated

import typer

from ..eval.texts import fetch_texts
from .show import remark


def texts(
    folder: Annotated[Path, typer.Argument(help="where the texts go")],
) -> None:
    """Fetch English prose by package name, for `morphkv eval perplexity`, and print the paths."""
    for path in fetch_texts(folder, remark):
        print(path)
