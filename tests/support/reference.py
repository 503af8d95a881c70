"""MorphKV in plain float64 NumPy: the specification that the native code must match. What ranks cells: ranking.py.

Source: MorphKV (Ghadia et al., ICML 2025, arXiv 2503.00979) sec. 3, in the authors' published order: softmax over the
older tokens only, maximum over the query heads of a group, then sum or max over the voters. `votes`, `decay`,
`protect` and the other policies go beyond the paper.

A head holds its tokens in cells: first the older ones, then the newest n_recent = window + protect. Before the first
cut cells are in order of position; after it the first n_distant = capacity - n_recent cells are slots, whose tokens
differ per layer and KV head, and the cells behind them hold the same recent tokens everywhere, in order of position.

A carried sum is one number for each cell and KV head: at each cut a token's new vote is added to its sum, times a
weight (`carry`). A token begins with 0 at its first cut, and takes its sum along to the slot that it moves to.
Rollbacks, copies and states keep the sums of the slots as they are. A token that a recall brings back begins with the
vote that the recall's queries give it in its slot; a text that is laid down anew from an archive begins with 0.

Layers may have capacities of their own. All are cut at the same moments, which are those of the smallest capacity, so
that the same tokens are recent everywhere; a layer that holds no more than its capacity is left alone by a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from support.ranking import attend, carry, committees, fuse, margin, moves

FUSIONS = ("sum", "max")
POLICIES = ("morphkv", "recency", "random", "committees", "h2o")
SUMMED = ("committees", "h2o")  # rank by all that a token has been given; without decay nothing of it is forgotten


# So many tokens can be taken back without a voter missing: that many queries more than the voters' are held. A batch is
# a draft to verify, and not a prompt, up to this length.
N_SPARE = 32


@dataclass(frozen=True)
class Rules:
    """What the cache is told, sizes in tokens: the fields of `MorphKV`, here with the plainest values as defaults."""

    capacity: int
    window: int
    interval: int = 1
    keep: int = 0
    prompt_room: int = 0
    votes: int = 0  # newest queries that vote; 0: the whole window
    fusion: str = "sum"
    decay: float = 0.0  # weight of a cell's carried sum; 0: none, or, where a policy is SUMMED, 1
    policy: str = "morphkv"
    seed: int = 0
    rope_limit: int = 0  # rotary positions stay below it; 0: they are never rebased
    protect: int = 0  # tokens before the window that are not evicted either; -1: as many as the policy takes (below)

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.keep < 0:
            raise ValueError(f"keep must not be negative, got {self.keep}")
        if self.protect < -1:
            raise ValueError(f"protect must be at least -1, got {self.protect}")
        if self.protect == -1:
            wanted = {"h2o": self.capacity // 2, "committees": self.capacity // 4}.get(self.policy, 0)
            most = self.capacity - self.keep - 1
            object.__setattr__(self, "protect", max(0, min(wanted, most) - self.window))
        if self.capacity <= self.keep + self.n_recent:
            raise ValueError(
                f"capacity must exceed keep + window + protect, got {self.capacity} with {self.keep} + {self.window} "
                f"+ {self.protect}"
            )
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval}")
        if self.prompt_room < 0:
            raise ValueError(f"prompt_room must not be negative, got {self.prompt_room}")
        if not 0 <= self.votes <= self.window:
            raise ValueError(f"votes must be in 0..window, got {self.votes} with {self.window=}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {FUSIONS}, got {self.fusion!r}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, got {self.policy!r}")
        if self.rope_limit != 0 and self.rope_limit < self.n_limit:
            raise ValueError(
                f"rope_limit must be 0 or at least capacity + max(interval, prompt_room), got {self.rope_limit} with "
                f"{self.n_limit}"
            )

    @property
    def n_recent(self) -> int:
        """The newest tokens, which a cut leaves where they are."""
        return self.window + self.protect

    @property
    def n_distant(self) -> int:
        return self.capacity - self.n_recent

    @property
    def carried_weight(self) -> float:
        return 1.0 if self.policy in SUMMED and self.decay == 0 else self.decay

    @property
    def n_limit(self) -> int:
        """Most tokens a sequence may hold."""
        return self.capacity + max(self.interval, self.prompt_room)

    @property
    def n_near(self) -> int:
        """A rebase leaves distant tokens where they are before the recent ones, up to so many positions back."""
        return (self.rope_limit - self.n_limit) // 2

    @property
    def n_voters(self) -> int:
        return self.votes or self.window


def is_prompt(n_tokens: int, n_logits: int) -> bool:
    """Whether a batch is a prompt, and neither a token nor a draft, whose tokens are few and all want their logits."""
    return not n_tokens == n_logits <= N_SPARE


def plan(
    n_tokens: int,
    n_used: int,
    rules: Rules,
    n_ubatch: int,
    *,
    is_prompt: bool,
    is_ready: bool,
    has_evicted: bool = False,
    rotary: int = 0,
    n_before: int | None = None,
) -> list[tuple[bool, int]]:
    """What decoding a batch of n_tokens does to a sequence that holds n_used: micro-batches (cut before it?, n_new).

    A prompt cuts only when no cell is free, so that its queries see as much of it as fits. A token or a draft cuts
    before it once the recent region has outgrown the window by `interval` and the sequence `is_ready` (SequenceCache),
    and in any case rather before it than inside of it. A micro-batch also ends where the rotary position, now `rotary`,
    reaches the limit: there falls a rebase, which puts the text's n_used tokens behind n_before others: those that stay
    where they are before the slots, and those of layers with more slots (None: rules.n_near).
    """
    is_cut = n_used == rules.n_limit
    if not is_prompt:
        has_no_cells = n_used + n_tokens > rules.n_limit and n_used > rules.capacity
        is_due = n_used >= rules.capacity + rules.interval and is_ready
        is_cut = is_cut or has_no_cells or is_due
    steps = []
    while n_tokens:
        n_used = rules.capacity if is_cut else n_used
        has_evicted = has_evicted or is_cut
        n_new = min(n_tokens, n_ubatch, rules.n_limit - n_used)
        if rules.rope_limit:
            if rotary >= rules.rope_limit and n_used:
                rotary = n_used + ((rules.n_near if n_before is None else n_before) if has_evicted else 0)
            n_new = min(n_new, rules.rope_limit - rotary)
        steps.append((is_cut, n_new))
        n_used += n_new
        rotary += n_new
        n_tokens -= n_new
        is_cut = n_used == rules.n_limit
    return steps


Turn = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (..., n, head_size), by how many positions (n,) -> rows


@dataclass(frozen=True)
class HeadCut:
    """What one cut did to one head; a position is a token's place in the text, a cell its place in the cache."""

    rules: Rules
    positions: np.ndarray  # (n_older,), of the older cells before the cut; the first n_distant were the slots
    scores: np.ndarray  # (n_older,)
    chosen: np.ndarray  # (n_distant,), cells that the rules keep, in slot order
    kept: np.ndarray  # (n_distant,), cells now in the slots, in slot order: `chosen` unless another set was adopted

    @property
    def graduates(self) -> np.ndarray:
        """Positions of the tokens that left the window, ascending, the same in every head."""
        return self.positions[self.rules.n_distant :]

    @property
    def evicted(self) -> np.ndarray:
        """Positions of the tokens that are gone, ascending."""
        return np.sort(np.delete(self.positions, self.kept))

    @property
    def margin(self) -> float:
        """By how much the choice was clear: worst kept minus best evicted score."""
        return margin(self.scores, self.chosen, self.rules.keep)

    @property
    def kept_margin(self) -> float:
        """The same for the set in use: lower than `margin`, and not above 0, if it is not the chosen one."""
        return margin(self.scores, self.kept, self.rules.keep)

    @property
    def worst_chosen(self) -> float:
        """Lowest competing score of the chosen set: what a margin is large or small against."""
        return float(self.scores[np.sort(self.chosen)[self.rules.keep :]].min())


class HeadCache:
    """Cells of one layer and KV head.

    keys, values: (n_used, head_size); positions, rotary_positions (as RoPE saw them), sums (carried): (n_used,).
    """

    def __init__(self, rules: Rules, head_size: int):
        self.rules = rules
        self.keys = np.empty((0, head_size))
        self.values = np.empty((0, head_size))
        self.positions = np.empty(0, dtype=int)
        self.rotary_positions = np.empty(0, dtype=int)
        self.sums = np.empty(0)

    @property
    def n_used(self) -> int:
        return len(self.positions)

    def append(self, keys: np.ndarray, values: np.ndarray, rotary_offset: int = 0) -> None:
        """Add the next tokens of the text, (n_new, head_size) each, rotated to their positions minus the offset."""
        first = self.positions[-1] + 1 if self.n_used else 0
        rotary = first - rotary_offset + np.arange(len(keys))
        self.rotary_positions = np.concatenate([self.rotary_positions, rotary])
        self.keys = np.concatenate([self.keys, keys])
        self.values = np.concatenate([self.values, values])
        self.positions = np.concatenate([self.positions, first + np.arange(len(keys))])
        self.sums = np.concatenate([self.sums, np.zeros(len(keys))])

    def truncate(self, n_used: int) -> None:
        """Drop all cells but the first n_used."""
        self.keys, self.values = self.keys[:n_used], self.values[:n_used]
        self.positions, self.sums = self.positions[:n_used], self.sums[:n_used]
        self.rotary_positions = self.rotary_positions[:n_used]

    def rebase(self, turn: Turn, offset: int) -> None:
        """Turn all keys so that each token stands at its position minus the offset, or, where that is below n_distant,
        at its rank: the oldest at 0, 1, 2, ...
        """
        rotary = self.positions - offset
        rotary = np.where(rotary < self.rules.n_distant, np.argsort(np.argsort(self.positions)), rotary)
        self.keys = turn(self.keys, rotary - self.rotary_positions)
        self.rotary_positions = rotary

    def score(self, queries: np.ndarray, scale: float, softcap: float, rng: np.random.Generator) -> np.ndarray:
        """Scores of the older cells, (n_older,), from the voters' queries, (n_group, n_voters, head_size).

        A vote is added to the carried sums: once for each cut.
        """
        rules = self.rules
        n_older = self.n_used - rules.n_recent
        if rules.policy == "recency":
            return self.positions[:n_older].astype(float)
        if rules.policy == "random":
            return rng.random(n_older)
        votes = fuse(attend(queries, self.keys[:n_older], scale, softcap), rules.fusion)
        sums = carry(votes, self.sums[:n_older], rules.carried_weight)
        self.sums[:n_older] = sums
        if rules.policy != "committees":
            return sums
        keep = rules.keep
        return np.concatenate([sums[:keep], committees(votes[keep:], sums[keep:], rules.n_distant - keep)])

    def cut(self, scores: np.ndarray, adopt: np.ndarray | None = None) -> HeadCut:
        """Evict down to capacity by the scores of the older cells, (n_older,).

        adopt: positions (n_distant,) in slot order to keep instead of the best scored ones. A run that follows another
        implementation adopts its choice at a near-tie, or the two would hold different tokens from then on.
        """
        rules, n_older = self.rules, len(scores)
        if self.n_used <= rules.capacity:
            raise ValueError(f"a cut needs more than capacity tokens, got {self.n_used} with {rules.capacity=}")
        if n_older != self.n_used - rules.n_recent:
            raise ValueError(f"scores must cover the {self.n_used - rules.n_recent} older cells, got {n_older}")
        sources, slots = moves(scores, rules.n_distant, rules.keep).T
        chosen = np.arange(rules.n_distant)
        chosen[slots] = sources
        kept = chosen if adopt is None else self._cells_of(adopt, n_older)
        report = HeadCut(rules, self.positions[:n_older], scores, chosen, kept)
        cells = np.concatenate([kept, np.arange(n_older, self.n_used)])
        self.keys, self.values = self.keys[cells], self.values[cells]
        self.positions, self.sums = self.positions[cells], self.sums[cells]
        self.rotary_positions = self.rotary_positions[cells]
        return report

    def _cells_of(self, positions: np.ndarray, n_older: int) -> np.ndarray:
        rules = self.rules
        cell_of = {int(position): cell for cell, position in enumerate(self.positions[:n_older])}
        missing = [int(position) for position in positions if int(position) not in cell_of]
        if missing:
            raise ValueError(f"an adopted position must be held and older than the window, got {missing}")
        kept = np.array([cell_of[int(position)] for position in positions])
        if len(np.unique(kept)) != rules.n_distant or len(kept) != rules.n_distant:
            raise ValueError(f"an adopted set must have {rules.n_distant} different positions, got {list(positions)}")
        if not np.array_equal(kept[: rules.keep], np.arange(rules.keep)):
            raise ValueError(f"an adopted set must begin with the {rules.keep=} first cells, got {list(positions)}")
        return kept


Adopt = Callable[[int, int], np.ndarray | None]  # (layer, kv head) -> positions to keep, see HeadCache.cut


class SequenceCache:
    """All heads of one sequence, the newest queries of each layer, and the counters.

    capacities: by layer, in place of that of the rules, which is the smallest of them.
    """

    def __init__(
        self,
        rules: Rules,
        n_layer: int,
        n_head: int,
        n_head_kv: int,
        head_size: int,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        capacities: Sequence[int] = (),
    ):
        self.rules = rules
        capacities = capacities or [rules.capacity] * n_layer
        if min(capacities) != rules.capacity:
            raise ValueError(f"the rules must have the smallest capacity, got {rules.capacity} with {capacities}")
        of_layers = [replace(rules, capacity=capacity) for capacity in capacities]
        self.least = capacities.index(rules.capacity)  # a layer that is cut each time
        self.n_near = min(of_layer.n_near for of_layer in of_layers)
        self.scale = head_size**-0.5 if scale is None else scale
        self.softcap = softcap
        self.n_group = n_head // n_head_kv
        self.heads = [[HeadCache(of_layer, head_size) for _ in range(n_head_kv)] for of_layer in of_layers]
        self.has_evicted = [False] * n_layer
        # the newest: (n_head, n, head_size) and the position of each; a query's row is its position % n_ring
        self.n_ring = rules.n_voters + N_SPARE
        self.queries = [np.empty((n_head, 0, head_size)) for _ in range(n_layer)]
        self.query_positions = [np.empty(0, dtype=int) for _ in range(n_layer)]
        self.rng = np.random.default_rng(rules.seed)
        self.n_evictions = 0  # cuts
        self.n_evicted = 0  # tokens per head, over all cuts
        self.exact_position = 0  # of the first token since the last cut: from here on, tokens are taken back exactly
        self.prompt_position = -1  # of the newest token that came in a prompt
        self.rotary_offset = 0  # position minus rotary position of the recent tokens
        self.n_rebases = 0

    @property
    def n_used(self) -> int:
        return self.heads[self.least][-1].n_used

    @property
    def newest_position(self) -> int:
        """-1 when empty."""
        return int(self.heads[-1][-1].positions[-1]) if self.n_used else -1

    @property
    def complete_position(self) -> int:
        """Oldest position that every head holds with all after it; -1 when empty."""
        if not self.n_used:
            return -1
        return int(self.heads[self.least][-1].positions[self.rules.n_distant if self.n_evictions else 0])

    def voters(self, layer: int) -> np.ndarray:
        """Queries of the newest tokens as far as they are held: (n_head, n <= n_voters, head_size)."""
        return self.queries[layer][:, self.query_positions[layer] > self.newest_position - self.rules.n_voters]

    @property
    def is_ready(self) -> bool:
        """Whether a due cut need not wait for the token behind a prompt, or for voters after a long rollback."""
        has_voters = self.voters(-1).shape[1] == self.rules.n_voters
        return has_voters and self.newest_position > self.prompt_position

    def plan(self, n_tokens: int, n_ubatch: int, n_logits: int = 1) -> list[tuple[bool, int]]:
        return plan(
            n_tokens,
            self.n_used,
            self.rules,
            n_ubatch,
            is_prompt=is_prompt(n_tokens, n_logits),
            is_ready=self.is_ready,
            has_evicted=self.n_evictions > 0,
            rotary=self.newest_position + 1 - self.rotary_offset,
            n_before=self.n_near + max(head.rules.capacity for head, *_ in self.heads) - self.rules.capacity,
        )

    def append(
        self, layer: int, queries: np.ndarray, keys: np.ndarray, values: np.ndarray, is_prompt: bool = False
    ) -> None:
        """Add one micro-batch: queries (n_head, n_new, head_size), keys and values (n_head_kv, n_new, head_size)."""
        for head, head_keys, head_values in zip(self.heads[layer], keys, values):
            head.append(head_keys, head_values, self.rotary_offset)
        positions = self.heads[layer][0].positions[-keys.shape[1] :]
        # those in whose rows the new ones come are overwritten, even if the new ones are taken back later
        held = self.query_positions[layer]
        is_left = ~np.isin(held % self.n_ring, positions % self.n_ring)
        joined = np.concatenate([self.queries[layer][:, is_left], queries], axis=1)
        self.queries[layer] = joined[:, -self.n_ring :]
        self.query_positions[layer] = np.concatenate([held[is_left], positions])[-self.n_ring :]
        if is_prompt:
            self.prompt_position = int(positions[-1])

    def remove_tail(self, position: int) -> bool:
        """Take back the tokens from a position on; False, and no change, if they reach behind the recent region."""
        if position > self.newest_position:
            return True
        if self.n_evictions and position <= self.complete_position:
            return False
        n_removed = self.newest_position + 1 - position
        for heads in self.heads:
            for head in heads:
                head.truncate(head.n_used - n_removed)
        for layer, held in enumerate(self.query_positions):
            self.queries[layer] = self.queries[layer][:, held < position]
            self.query_positions[layer] = held[held < position]
        self.exact_position = min(self.exact_position, position)
        self.prompt_position = min(self.prompt_position, position)
        return True

    def make_rotary_room(self, n_new: int, turn: Turn) -> None:
        """Before n_new tokens come: rebase if a rotary position of theirs would reach the limit.

        turn: rotates keys and queries on, and stores them as the cache does.
        """
        limit = self.rules.rope_limit
        if not limit or not self.n_used or self.newest_position + n_new - self.rotary_offset < limit:
            return
        # such that recent tokens stand behind the slots of each layer, and behind what a layer without evictions holds
        offset = min(
            self.complete_position - head.rules.n_distant - self.n_near if has_evicted else int(head.positions[0])
            for (head, *_), has_evicted in zip(self.heads, self.has_evicted)
        )
        for layer, heads in enumerate(self.heads):
            for head in heads:
                head.rebase(turn, offset)
            deltas = np.full(self.queries[layer].shape[1], self.rotary_offset - offset)
            self.queries[layer] = turn(self.queries[layer], deltas)
        self.rotary_offset = offset
        self.n_rebases += 1
        self.exact_position = self.newest_position + 1

    def keys(self, layer: int) -> np.ndarray:
        """(n_head_kv, n_used, head_size), the newest tokens last."""
        return np.stack([head.keys for head in self.heads[layer]])

    def values(self, layer: int) -> np.ndarray:
        """As keys."""
        return np.stack([head.values for head in self.heads[layer]])

    def retained(self, layer: int) -> np.ndarray:
        """Positions in the slots, (n_head_kv, n_distant); -1 before the first cut."""
        n_distant = self.heads[layer][0].rules.n_distant
        if not self.has_evicted[layer]:
            return np.full((len(self.heads[layer]), n_distant), -1)
        return np.stack([head.positions[:n_distant] for head in self.heads[layer]])

    def cut(self, adopt: Adopt | None = None) -> list[list[HeadCut]]:
        """Evict down to capacity in every head; returns what was done by [layer][kv head], [] where nothing was."""
        n_evicted = self.n_used - self.rules.capacity
        reports = []
        for layer, heads in enumerate(self.heads):
            if heads[0].n_used <= heads[0].rules.capacity:
                reports.append([])
                continue
            self.has_evicted[layer] = True
            voters = self.voters(layer)
            groups = voters.reshape(len(heads), self.n_group, *voters.shape[1:])
            reports.append(
                [
                    head.cut(
                        head.score(groups[i_head], self.scale, self.softcap, self.rng),
                        adopt(layer, i_head) if adopt else None,
                    )
                    for i_head, head in enumerate(heads)
                ]
            )
        self.n_evictions += 1
        self.n_evicted += n_evicted
        self.exact_position = self.newest_position + 1
        return reports
