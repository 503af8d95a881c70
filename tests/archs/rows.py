"""Rows of K and V of any model, one context against another: model_rows.cpp, and how far they may be apart.

Errors are parts of a row's length, of the worst row.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

# Of rows that are turned and rounded once or twice: f16 has 11 bits, and RoPE's angles are F32.
ONCE = {"f32": 0.005, "f16": 0.01, "q8_0": 0.03}
# Of keys that were turned and rounded some thirty times: native/README.md has 2e-3 in f16, 2e-2 in q8_0 for 20 turns.
WORN = {"f32": 0.005, "f16": 0.01, "q8_0": 0.06}
# Of windowed layers, whose cells are compared with those of a text that never moved, and so decoded by other sums.
WINDOW = {"f32": 0.03, "f16": 0.03, "q8_0": 0.5}


class Rows:
    """Runs the program in the folder of test programs."""

    def __init__(self, programs: Path):
        self.program = programs / "morphkv-model-rows"

    def ask(self, what: str, model: Path, *arguments: str) -> dict[str, float]:
        done = subprocess.run(
            [str(self.program), what, str(model), *arguments], capture_output=True, text=True, timeout=600
        )
        if done.returncode != 0:
            raise AssertionError(f"{model.name}, {what} {' '.join(arguments)}: {done.stderr[-2000:]}")
        answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def check_rebases(self, model: Path, kind: str) -> None:
        """One rebase puts keys and queries where a text decoded there has them; a hundred leave them there."""
        moved = self.ask("moved", model, kind)
        require_below(model, "moved", moved, {"keys": ONCE[kind], "queries": ONCE[kind]})
        worn = self.ask("worn", model, kind)
        require_below(model, "worn", worn, {"keys": WORN[kind], "queries": WORN["f16"], "window": WINDOW[kind]})
        assert worn["n_rebases"] >= 80, worn

    def check_recall(self, model: Path, kind: str) -> None:
        """What comes back is what left, keys turned to where they now stand."""
        found = self.ask("recalled", model, kind)
        require_below(model, "recalled", found, {"keys": ONCE[kind], "values": 0.0})
        assert found["n_rows"] >= 16, found


def require_below(model: Path, what: str, found: dict[str, float], limits: dict[str, float]) -> None:
    print(model.name, what, found)
    for name, limit in limits.items():
        if not found[name] <= limit:
            raise AssertionError(f"{model.name}, {what}: {name} off by {found[name]}, at most {limit}")
