"""`morphkv selftest`: does every device of this machine evict and rebase as the CPU does?"""

import sys
import time
from collections import Counter
from typing import Annotated

import typer

from .. import bridge
from ..rpc import answering_servers

COLUMNS = "{device:<12}  {graph:<7} {type:<5} {shape:<50} {result:<10} {took_ms:>8.1f} ms  {note}"


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
) -> None:
    """Compare evictions and rebases of random rows on each device with the CPU's: every type of K and V, odd shapes.

    No model is needed; it takes seconds. Exit code 1 where a device differs from the CPU. What a device lacks an
    operation for is refused: there a model whose cache is on that device cannot be opened with MorphKV.
    """
    start = time.monotonic()
    counts: dict[str, Counter] = {}
    for row in bridge.selftest(None if rpc is None else answering_servers(rpc)):
        if row["device"] not in counts:
            print(f"{row['device']}: {row['description']}")
        counts.setdefault(row["device"], Counter())[row["result"]] += 1
        ties = f"{row['n_near_ties']} near-ties" if row["n_near_ties"] else ""
        print(COLUMNS.format(**row, note=row["reason"] or ties).rstrip(), flush=True)
    for device, results in counts.items():
        words = ", ".join(f"{results[word]} {word}" for word in ("same", "different", "refused") if results[word])
        print(f"{device}: {words}")
    print(f"{time.monotonic() - start:.0f} s")
    if any(results["different"] for results in counts.values()):
        sys.exit(1)
