"""`morphkv pull`: fetches a model, or lists those that are here."""

from typing import Annotated

import typer

from ..models.demo import FILE_NAME, cached_demo_model
from ..models.hub import Cached, cached_models
from .options import DEMO
from .show import find_model, mebibytes, print_table


def pull(
    model: Annotated[
        str | None,
        typer.Argument(help=f"'{DEMO}', or hf:OWNER/REPO:FILE, where FILE may be a pattern such as *q4_k_m*"),
    ] = None,
) -> None:
    """Fetch MODEL and print its path; without MODEL, list what has been fetched."""
    if model is not None:
        print(find_model(model))
        return
    rows = cached_models()
    if (path := cached_demo_model()) is not None:
        rows.insert(0, Cached(DEMO, path, path.stat().st_size))
    if not rows:
        print(f"nothing yet: `morphkv pull {DEMO}` fetches {FILE_NAME}, 98 MB")
        return
    print_table(
        "Models that are here", ("MODEL", "size", "file"), [(r.name, mebibytes(r.n_bytes), str(r.path)) for r in rows]
    )
