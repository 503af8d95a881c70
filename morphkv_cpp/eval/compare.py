"""Which of several caches reads the same texts best, and beyond the noise?"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .arms import Arm
from .perplexity import Difference, difference, open_for_nll, stream_nll

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
    model: Path, arm: Arm, texts: Sequence[Sequence[int]], n_chunk: int, on_chunk: Callable[[int], None], **llama: Any
) -> list[np.ndarray]:
    """-log p of the tokens of each text, as stream_nll() has them."""
    llm = open_for_nll(model, arm.morphkv, max(len(text) for text in texts), n_chunk, **llama)
    try:
        return [stream_nll(llm, text, on_chunk) for text in texts]
    finally:
        llm.close()


def reference_arm(arms: Sequence[Arm]) -> Arm:
    """The arm that the others are compared with: the first that ranks by attention, else the first."""
    return next((arm for arm in arms if arm.morphkv is not None and arm.morphkv.policy == "morphkv"), arms[0])


def differences(values: Mapping[str, list[np.ndarray]], reference: str, n_skip: int) -> dict[str, Difference]:
    """By arm, of -log p less that of the reference. values: by arm, one array for each text."""
    return {name: difference(values[name], values[reference], n_skip) for name in values if name != reference}


def unmet(orderings: Iterable[Ordering], values: Mapping[str, list[np.ndarray]], n_skip: int) -> list[str]:
    """A sentence for each ordering that does not hold by more than two standard errors."""
    found = {o: difference(values[o.worse], values[o.better], n_skip) for o in orderings}
    return [
        f"{o} must hold by {N_ERRORS:g} standard errors, got {d.mean:+.4f} with an error of {d.error:.4f}"
        for o, d in found.items()
        if not d.in_errors > N_ERRORS
    ]
