"""`morphkv pull`: fetches a model, or lists those that were fetched."""

from typing import Annotated

import typer

from ..models.demo import FILE_NAME, cached_demo_model
from ..models.hub import Cached, cached_models
from .options import DEMO
from .show import Json, find_model, mebibytes, print_json, remark


def pull(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"'{DEMO}', or hf:OWNER/REPO:FILE, where FILE is the name of a file, a part of it such as Q8_0, "
            "or a pattern such as *q4_k_m*"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch MODEL and print its path; without MODEL, list what has been fetched."""
    if model is not None:
        path = find_model(model)
        if as_json:
            print_json({"path": path})
        else:
            print(path)
        return
    rows = cached_models()
    if (demo := cached_demo_model()) is not None:
        rows.insert(0, Cached(DEMO, demo, demo.stat().st_size))
    if as_json:
        print_json({"models": rows})
        return
    # a line a model, never wrapped: names are long, and are pasted
    for row in rows:
        print(f"{mebibytes(row.n_bytes):>12}  {row.name}")
    if not rows:
        remark(f"nothing was fetched yet; `morphkv pull {DEMO}` fetches {FILE_NAME}, 98 MB")
