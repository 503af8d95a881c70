"""`morphkv info`: what is installed and what it found."""

from .. import info
from .show import Json, plain, print_json


def show_info(as_json: Json = False) -> None:
    """Show versions, the libraries that are loaded, and the devices that they found."""
    found = info()
    if as_json:
        print_json({**plain(found), "gpu_note": found.gpu_note})
    else:
        print(found)
