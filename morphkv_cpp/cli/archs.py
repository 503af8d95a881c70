"""The command `morphkv archs`."""

import typer

from ..architectures import Architecture, architectures
from .show import Json, print_json

TITLES = {
    "all": "Every layer with a KV cache is cut",
    "part": "Some layers are cut",
    "refused": "Refused",
    "no cache": "Without a KV cache to cut",
    "not run": "Not tested",
}


def archs(
    name: str | None = typer.Argument(None, help="Only architectures whose name contains this."),
    as_json: Json = False,
) -> None:
    """List what MorphKV does for each model architecture of llama.cpp, as found by running it.

    The architecture of a GGUF file is its key `general.architecture`.
    """
    chosen = [each for each in architectures() if name is None or name in each.name]
    if not chosen:
        raise ValueError(f"the name of an architecture must contain {name!r}: `morphkv archs` lists all")
    if as_json:
        print_json({"architectures": chosen})
        return
    for support, title in TITLES.items():
        group = [each for each in chosen if each.support == support]
        if group:
            print(f"{title} ({len(group)}):")
            for each in group:
                print(f"  {each.name:18} {describe(each)}".rstrip())
            print()


def describe(each: Architecture) -> str:
    notes = [text for text in (each.variant and f"[{each.variant}]", each.why) if text] + each.limits()
    if each.goes_back == "to marks":
        notes.append("goes back to the end of a prompt")
    for what, value in (("images", each.images), ("MTP", each.mtp)):
        if value:
            notes.append(f"no {what}" if value == "no" else f"{what}: {value}")
    return "; ".join(notes)
