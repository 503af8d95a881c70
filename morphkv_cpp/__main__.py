"""python -m morphkv_cpp: as `morphkv`."""

from .cli.app import main

main()
