"""Means, standard errors and paired differences of a suite's results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .perplexity import standard_error

Row = Mapping[str, Any]

FULL = "full"
UNCUT = (FULL, "kvpress/full")
OURS = "morphkv"
N_NOISE = 3.0  # standard errors: with so many comparisons, less is noise


class Measure(NamedTuple):
    """What is measured of a row, and whether more of it is better."""

    name: str
    is_higher_better: bool

    def of(self, row: Row) -> float | None:
        if self.name == "score":
            return float(np.mean(row["scores"])) if "scores" in row else None
        value = row.get(self.name)
        return None if value is None else float(value)


MEASURES = (Measure("score", True), Measure("nll", False), Measure("kl", False))


class Paired(NamedTuple):
    """Mean of one arm less another over the same items, its standard error, and how many errors it is."""

    mean: float
    error: float
    n: int

    @property
    def z(self) -> float:
        return self.mean / self.error if self.error > 0 else math.nan


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """By item. None where they have none in common."""
    both = sorted(set(first) & set(second))
    if not both:
        return None
    deltas = np.array([first[i] - second[i] for i in both])
    return Paired(float(deltas.mean()), standard_error(deltas), len(both))


def tables(rows: Iterable[Row]) -> dict[tuple[str, int, Measure], dict[str, dict[int, float]]]:
    """Values by task, length and measure, then by arm, then by item; the newest of an item counts."""
    found: dict[tuple[str, int, Measure], dict[str, dict[int, float]]] = {}
    for row in rows:
        if "key" not in row:
            continue
        for measure in MEASURES:
            value = measure.of(row)
            if value is not None:
                arms = found.setdefault((row["task"], row["n_tokens"], measure), {})
                arms.setdefault(row["arm"], {})[row["item"]] = value
    return found


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """What docs/results/*.json holds: the machine, each arm's bytes, figures by task, and what is worse than peers."""
    figures = []
    for (task, n_tokens, measure), arms in tables(rows).items():
        for arm, values in arms.items():
            of_items = np.array(list(values.values()))
            figure: dict[str, Any] = {
                "task": task,
                "n_tokens": n_tokens,
                "measure": measure.name,
                "arm": arm,
                "mean": float(of_items.mean()),
                "error": standard_error(of_items),
                "n": len(of_items),
            }
            if arm != FULL and FULL in arms and (delta := paired(values, arms[FULL])) is not None:
                figure |= {"to_full": delta.mean, "to_full_error": delta.error, "to_full_n": delta.n}
            figures.append(figure)
    runs = [row["run"] for row in rows if "run" in row]
    run = dict(runs[-1]) if runs else {}
    if commands := list(dict.fromkeys(each["command"] for each in runs if "command" in each)):
        run["commands"] = commands
    found: dict[str, Any] = {"run": run, "arms": _arms(rows), "figures": figures}
    return {name: _finite(value) for name, value in {**found, "worse": worse(rows)}.items()}


def worse(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Where an arm of ours has the lower mean than a peer at the same bytes; most standard errors first."""
    found = []
    for (task, n_tokens, measure), arms in tables(rows).items():
        for ours in (arm for arm in arms if arm.startswith(OURS)):
            for peer in (arm for arm in arms if not arm.startswith(OURS) and arm not in UNCUT):
                delta = paired(arms[peer], arms[ours])
                if delta is None:
                    continue
                sign = 1 if measure.is_higher_better else -1
                if sign * delta.mean > 0:
                    found.append(
                        {
                            "task": task,
                            "n_tokens": n_tokens,
                            "measure": measure.name,
                            "arm": ours,
                            "peer": peer,
                            "behind": sign * delta.mean,
                            "error": delta.error,
                            "z": sign * delta.z,
                            "n": delta.n,
                        }
                    )
    return sorted(found, key=lambda each: -(each["z"] if math.isfinite(each["z"]) else 0.0))


def _arms(rows: Sequence[Row]) -> dict[str, Any]:
    """Bytes of each arm, but where a whole prompt had room besides."""
    found: dict[str, Any] = {}
    for row in rows:
        if "key" in row and not row["n_prompt_room"] and row["arm"] not in UNCUT:
            found[row["arm"]] = {"kv_bytes": row["kv_bytes"], "extra_bytes": row["extra_bytes"]}
    return found


def _finite(value: Any) -> Any:
    """null for a number that is none; six digits are enough."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
