"""How long `import morphkv_cpp` takes beside `import llama_cpp`, in turns, a process each; import_time.py [N]."""

import os
import statistics
import subprocess
import sys
import time

ARMS = ("llama_cpp", "morphkv_cpp")


def seconds(module: str) -> tuple[float, float]:
    """Wall and processor time of a Python that imports the module."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=os.sep, check=True)  # not beside our sources
    wall, after = time.perf_counter() - start, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def main(n_rounds: int = 20) -> None:
    for module in ARMS:
        seconds(module)  # compiles, and fills the system's cache
    rounds = [[seconds(module) for module in ARMS] for _ in range(n_rounds)]
    for i, kind in enumerate(("wall", "processor")):
        times = [statistics.median(arms[j][i] for arms in rounds) * 1000 for j in range(2)]
        more = statistics.median(arms[1][i] - arms[0][i] for arms in rounds) * 1000
        print(
            f"{kind}: llama_cpp {times[0]:.0f} ms, morphkv_cpp {times[1]:.0f} ms; median of differences {more:.0f} ms"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
