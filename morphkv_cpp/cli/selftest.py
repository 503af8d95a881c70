"""`morphkv selftest`: does every device of this machine evict and rebase as the CPU does?"""

import sys
import time
from collections import Counter
from typing import Annotated, Any

import typer

from .. import bridge
from ..rpc import answering_servers
from .show import Json, print_json

COLUMNS = "{device:<12}  {graph:<7} {type:<5} {shape:<53} {result:<10} {took_ms:>8.1f} ms  {note}"

RESULTS = ("same", "different", "refused")


def selftest(
    rpc: Annotated[
        str | None,
        typer.Option(
            "--rpc",
            metavar="SERVERS",
            help="comma-separated list of RPC servers (host:port) whose devices to test, too",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            "--threads", "-t", metavar="N", help="number of CPU threads to test with; they are compared with one thread"
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Compare evictions and rebases of random rows on each device with the CPU's: every type of K and V, odd shapes.

    No model is needed; it takes seconds. Exit code 1 where a device differs from the CPU. What a device lacks an
    operation for is refused: there a model whose cache is on that device cannot be opened with MorphKV.
    """
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    for row in bridge.selftest(None if rpc is None else answering_servers(rpc), threads):
        if not as_json:
            show(row, is_new=row["device"] not in {known["device"] for known in rows})
        rows.append(row)
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["device"], Counter())[row["result"]] += 1
    seconds = time.monotonic() - start
    if as_json:
        devices = {name: {word: results[word] for word in RESULTS} for name, results in counts.items()}
        print_json({"figures": devices, "cases": rows, "seconds": seconds})
    else:
        for device, results in counts.items():
            print(f"{device}: {', '.join(f'{results[word]} {word}' for word in RESULTS if results[word])}")
        print(f"{seconds:.0f} s")
    if any(results["different"] for results in counts.values()):
        sys.exit(1)


def show(row: dict[str, Any], is_new: bool) -> None:
    """is_new: the first of its device."""
    if is_new:
        print(f"{row['device']}: {row['description']}")
    ties = f"{row['n_near_ties']} near-ties" if row["n_near_ties"] else ""
    print(COLUMNS.format(**row, note=row["reason"] or ties).rstrip(), flush=True)
