"""The option --layers: how layers share the cells of a cache."""

from typing import Annotated

import typer

LayersName = Annotated[
    str,
    typer.Option(
        "--layers",
        "--morphkv-layers",
        metavar="NAME",
        help="how layers share the cells: auto (by the profile of this model, if there is one), equal, the file of a "
        "profile, or all:N: the N layers that need it most keep all tokens",
        rich_help_panel="MorphKV",
    ),
]
