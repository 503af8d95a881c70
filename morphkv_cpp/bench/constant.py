"""Does anything grow? A long run at constant capacity: cells, bytes, resident memory, speed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from llama_cpp import LlamaState

from morphkv_cpp import Llama, bridge
from morphkv_cpp.extras import needs_extra

from .decode import Lane, Ratio, SecondsOf, decode_seconds, endless_tokens, fill, prompt_seconds, ratio, run_in_turns

N_EARLY = 2000  # tokens after which nothing may grow any more
N_EARLY_SOAK = 5000  # the same where prompts and single tokens take turns
N_SOAK_PROMPT = 448  # tokens of each of these prompts
N_RATED = 1000  # tokens over which the speed is taken, late and early
N_PROMPT_ROUNDS = 8  # so many prompts each, in turns

OnTurn = Callable[[str], None]  # told the name of the context


def resident_bytes() -> int:
    """Resident memory of this process, now."""
    with needs_extra("bench"):
        import psutil

    return int(psutil.Process().memory_info().rss)


class Sample(NamedTuple):
    """After one block of tokens."""

    n_tokens: int
    seconds: float  # of the block
    rss_bytes: int
    kv_bytes: int
    n_cells: int
    n_used: int


@dataclass
class ConstantRun:
    n_block: int  # tokens that come one by one between two samples
    n_early: int = N_EARLY
    n_prompt: int = 0  # tokens before each block
    samples: list[Sample] = field(default_factory=list)

    @property
    def n_step(self) -> int:
        """Tokens from sample to sample."""
        return self.n_block + self.n_prompt

    @property
    def late(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.n_tokens >= self.n_early]

    @property
    def rss_growth_bytes(self) -> int:
        """Most that the process has grown after the first n_early tokens."""
        return max(sample.rss_bytes for sample in self.late) - self.late[0].rss_bytes

    @property
    def kv_growth_bytes(self) -> int:
        return max(sample.kv_bytes for sample in self.samples) - min(sample.kv_bytes for sample in self.samples)

    @property
    def n_used_growth(self) -> int:
        """Cells in use at the most after the first n_early tokens, less those at the most before."""
        early = [sample.n_used for sample in self.samples if sample.n_tokens <= self.n_early]
        return max(sample.n_used for sample in self.late) - max(early)

    def rate(self, first: int, last: int) -> float:
        """tok/s between two counts of tokens. The median over blocks: the machine may have been busy during some."""
        seconds = [sample.seconds for sample in self.samples if first < sample.n_tokens <= last]
        return self.n_block / median(seconds)


def run_constant(
    llm: Llama,
    tokens: Iterator[int],
    n_tokens: int,
    n_block: int,
    on_block: Callable[[Sample], None],
    n_prompt: int = 0,
) -> ConstantRun:
    """Decode n_tokens, a prompt of n_prompt before every n_block single ones.

    n_block: the eviction interval, so that each block holds one eviction.
    """
    run = ConstantRun(n_block, N_EARLY_SOAK if n_prompt else N_EARLY, n_prompt)
    while llm.n_tokens < n_tokens:
        if n_prompt:
            fill(llm, tokens, n_prompt)
        seconds = decode_seconds(llm, tokens, n_block)
        stats = llm.cache_stats()
        sample = Sample(llm.n_tokens, seconds, resident_bytes(), bridge.kv_bytes(llm.ctx), stats.n_cells, stats.n_used)
        run.samples.append(sample)
        on_block(sample)
    return run


class LateAndEarly(NamedTuple):
    """Two moments of one context, its saved states, to go on from in turns.

    Not two contexts: even with equal texts their speeds differ, by up to a tenth on some machines. And in turns, as
    over minutes a machine's speed drifts by more than what is looked for.
    """

    llm: Llama
    late: LlamaState
    early: LlamaState

    def speed_kept(self, n_block: int, on_turn: OnTurn) -> Ratio:
        """tok/s of single tokens at the late moment over those at the early one."""
        return self._kept(n_block, max(1, N_RATED // n_block), decode_seconds, on_turn)

    def prompt_speed_kept(self, on_turn: OnTurn) -> Ratio:
        """The same of prompts, each as long as it takes from one eviction to the next."""
        stats = self.llm.cache_stats()
        return self._kept(stats.n_limit - stats.min_capacity, N_PROMPT_ROUNDS, prompt_seconds, on_turn)

    def _kept(self, n_turn: int, n_rounds: int, seconds_of: SecondsOf, on_turn: OnTurn) -> Ratio:
        lanes = [
            Lane(name, self.llm, endless_tokens(self.llm), n_turn, seconds_of, state=state)
            for name, state in (("late", self.late), ("early", self.early))
        ]
        run_in_turns(lanes, n_rounds, on_turn)
        return ratio(*lanes)


def late_and_early(llm: Llama, run: ConstantRun, on_block: Callable[[Sample], None]) -> LateAndEarly:
    """What a run has come to, and where it was after its first n_early tokens: these once more.

    With the same batches: how many cells are in use, and how many tokens are left to the next eviction, matters.
    """
    late = llm.save_state()
    llm.reset()
    llm._ctx.kv_cache_clear()  # type: ignore[no-untyped-call]
    run_constant(llm, endless_tokens(llm), run.n_early, run.n_block, on_block, run.n_prompt)
    return LateAndEarly(llm, late, llm.save_state())
