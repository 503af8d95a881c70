"""Line coverage of native/src/core by its own tests: what gcov says of a build with MORPHKV_COVERAGE, summed by file.

coverage.py BUILD_FOLDER LEAST names the lines that were not run, and fails where less than LEAST percent of all were.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

CORE = Path(__file__).resolve().parents[3] / "native" / "src" / "core"


def counts_of(build: Path) -> dict[Path, dict[int, int]]:
    """How often each line of each file of core was run, by any program."""
    res: dict[Path, dict[int, int]] = defaultdict(dict)
    for notes in sorted(build.rglob("*.gcno")):
        call = [os.environ.get("GCOV", "gcov"), "--json-format", "--stdout", str(notes)]
        unit = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
        for file in unit["files"]:
            path = Path(unit["current_working_directory"], file["file"]).resolve()
            if path.parent == CORE:
                lines = res[path]
                for line in file["lines"]:
                    n = line["line_number"]
                    lines[n] = max(lines.get(n, 0), line["count"])
    return res


def main(build: str, least: str) -> int:
    counts = counts_of(Path(build))
    unseen = {path for path in CORE.glob("*.cpp") if path not in counts}
    if unseen:
        print("not compiled:", *sorted(path.name for path in unseen))
        return 1
    n_run = n_all = 0
    for path, lines in sorted(counts.items()):
        if not lines:  # declarations alone
            continue
        missed = sorted(n for n, count in lines.items() if count == 0)
        n_run += len(lines) - len(missed)
        n_all += len(lines)
        percent = 100 * (1 - len(missed) / len(lines))
        print(f"{path.name:20} {len(lines):4} lines {percent:6.1f}%", *missed)
    percent = 100 * n_run / n_all
    print(f"{'core':20} {n_all:4} lines {percent:6.1f}%, at least {least}% are wanted")
    return 0 if percent >= float(least) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
