"""Which of several caches reads the same texts best, and beyond the noise?"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from morphkv_cpp import Llama

from .arms import Arm
from .perplexity import Difference, Values, buckets, difference, open_for_nll, stream_nll

N_ERRORS = 2.0  # standard errors that a difference must exceed to count


class Ordering(NamedTuple):
    """A requirement written `morphkv<recency`: the first cache has the lower perplexity, beyond the noise."""

    better: str
    worse: str

    def __str__(self) -> str:
        return f"{self.better}<{self.worse}"


def parse_orderings(texts: Iterable[str], arms: Iterable[Arm]) -> list[Ordering]:
    names = [arm.name for arm in arms]
    orderings = []
    for text in texts:
        match = re.fullmatch(r"([^<>]+)<([^<>]+)", text.replace(" ", ""))
        if match is None or not set(match.groups()) <= set(names) or match[1] == match[2]:
            raise ValueError(f"a requirement must look like 'A<B' with two of {', '.join(names)}, got {text!r}")
        orderings.append(Ordering(*match.groups()))
    return orderings


def run_arm(
    model: Path,
    arm: Arm,
    texts: Sequence[Sequence[int]],
    n_chunk: int,
    on_chunk: Callable[[int], None],
    on_open: Callable[[Llama], None] = lambda llm: None,
    **llama: Any,
) -> list[Values]:
    """-log p of the tokens of each text, as stream_nll() has them."""
    llm = open_for_nll(model, arm.morphkv, max(len(text) for text in texts), n_chunk, **llama)
    try:
        on_open(llm)
        return [stream_nll(llm, text, on_chunk) for text in texts]
    finally:
        llm.close()


def reference_arm(arms: Sequence[Arm]) -> Arm:
    """The arm that the others are compared with: the first that ranks by attention, else the first."""
    return next((arm for arm in arms if arm.morphkv is not None and arm.morphkv.policy == "morphkv"), arms[0])


def differences(values: Mapping[str, list[Values]], reference: str, n_skip: int) -> dict[str, Difference]:
    """By arm, of -log p less that of the reference. values: by arm, one array for each text."""
    return {name: difference(values[name], values[reference], n_skip) for name in values if name != reference}


def unmet(orderings: Iterable[Ordering], values: Mapping[str, list[Values]], n_skip: int) -> list[str]:
    """A sentence for each ordering that does not hold by more than two standard errors."""
    found = {o: difference(values[o.worse], values[o.better], n_skip) for o in orderings}
    return [
        f"{o} must hold by {N_ERRORS:g} standard errors, got {d.mean:+.4f} with an error of {d.error:.4f}"
        for o, d in found.items()
        if not d.in_errors > N_ERRORS
    ]


class Bound(NamedTuple):
    """A requirement written `morphkv<1.05*recency`: in every stretch of positions, whatever the noise."""

    arm: str
    factor: float
    other: str

    def __str__(self) -> str:
        return f"{self.arm}<{self.factor:g}*{self.other}"


def parse_bounds(texts: Iterable[str], arms: Iterable[Arm]) -> list[Bound]:
    names = [arm.name for arm in arms]
    bounds = []
    for text in texts:
        match = re.fullmatch(r"([^<>*]+)<([0-9.]+)\*([^<>*]+)", text.replace(" ", ""))
        if match is None or not {match[1], match[3]} <= set(names):
            raise ValueError(f"a bound must look like 'A<1.05*B' with two of {', '.join(names)}, got {text!r}")
        bounds.append(Bound(match[1], float(match[2]), match[3]))
    return bounds


def by_position(values: Mapping[str, list[Values]], n_bucket: int) -> list[tuple[int, int, dict[str, float]]]:
    """(first, behind the last, perplexity by arm) for each stretch of n_bucket positions, over all texts."""
    n_least = min(len(nll) for of_texts in values.values() for nll in of_texts)
    means = {name: np.mean([nll[:n_least] for nll in of_texts], axis=0) for name, of_texts in values.items()}
    rows = {name: buckets(mean, n_bucket) for name, mean in means.items()}
    edges = [(first, end) for first, end, _ in next(iter(rows.values()))]
    return [(*edge, {name: rows[name][i][2].mean for name in rows}) for i, edge in enumerate(edges)]


def exceeded(bounds: Iterable[Bound], rows: Iterable[tuple[int, int, dict[str, float]]], n_skip: int) -> list[str]:
    """A sentence for each stretch behind the first n_skip positions in which a bound does not hold."""
    return [
        f"{bound} must hold at every position, got {values[bound.arm]:.3f} and {values[bound.other]:.3f} "
        f"at {first}..{end - 1}"
        for bound in bounds
        for first, end, values in rows
        if first >= n_skip and not values[bound.arm] < bound.factor * values[bound.other]
    ]
