"""How cells are ranked, and which stay: a part of the specification in reference.py, in plain float64 NumPy."""

from __future__ import annotations

import numpy as np

NEAR_ZERO = 1e-20  # a threshold of a committee is no less


def attend(queries: np.ndarray, keys: np.ndarray, scale: float, softcap: float = 0.0) -> np.ndarray:
    """Softmax of scale * q.k over the older keys alone.

    queries: (n_group, n_voters, head_size), keys: (n_older, head_size); both after RoPE. softcap 0: none.
    Returns (n_group, n_voters, n_older).
    """
    logits = scale * queries @ keys.T
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def fuse(attention: np.ndarray, fusion: str) -> np.ndarray:
    """Join (n_group, n_voters, n_older) into one vote per older cell: max of the group, then sum or max."""
    per_voter = attention.max(axis=0)
    return per_voter.sum(axis=0) if fusion == "sum" else per_voter.max(axis=0)


def carry(votes: np.ndarray, last_sums: np.ndarray, weight: float) -> np.ndarray:
    """Carried sums, which are the scores of "morphkv" and "h2o"; all (n_older,), last_sums 0 for new competitors."""
    return votes + weight * last_sums


def committees(votes: np.ndarray, sums: np.ndarray, n_seats: int) -> np.ndarray:
    """Scores by two committees, one that goes by new votes and one by carried sums; all (n,), of those that compete.

    Each names half of the n_seats cells that stay, rounded up: the best by its own measure, so that its threshold is
    the measure of the last one named. A score is the larger of both measures in parts of their thresholds: 1 and more
    has who is named. Seats that are left, since some cells are named by both, go to those who came nearest.
    """

    def in_parts(measure: np.ndarray) -> np.ndarray:
        return measure / (np.sort(measure)[::-1][(n_seats - 1) // 2] + NEAR_ZERO)

    return np.maximum(in_parts(votes), in_parts(sums))


def select(scores: np.ndarray, n_distant: int, keep: int) -> np.ndarray:
    """Older cells to keep, ascending, (n_distant,): the first `keep` and the best of the rest; of a tie the lower."""
    best = keep + np.argsort(-scores[keep:], kind="stable")[: n_distant - keep]
    return np.concatenate([np.arange(keep), np.sort(best)])


def moves(scores: np.ndarray, n_distant: int, keep: int) -> np.ndarray:
    """Pair and move: rows (source cell, slot), (n_moves, 2), that turn the slots into what `select` keeps.

    The i-th best graduate takes the i-th worst slot while its score is strictly higher. Sources and slots are disjoint,
    and a token that stays never changes its slot.
    """
    best_graduates = n_distant + np.argsort(-scores[n_distant:], kind="stable")
    worst_slots = keep + np.argsort(-scores[keep:n_distant], kind="stable")[::-1]
    pairs = [(source, slot) for source, slot in zip(best_graduates, worst_slots) if scores[source] > scores[slot]]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def margin(scores: np.ndarray, kept: np.ndarray, keep: int) -> float:
    """Worst kept minus best evicted score among the cells that compete; negative if `kept` is not the best choice."""
    is_kept = np.isin(np.arange(len(scores)), kept)
    return float(scores[keep:][is_kept[keep:]].min() - scores[~is_kept].max())
