"""What a chat shows of its cache: a status line, numbers, and which old tokens are still there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.stats import CacheStats
from ..chat.session import Session
from ..chat.turn import Turn
from .show import mebibytes

LEVELS = " .:-=+*#"  # none to all of the tokens at a place
N_PLACES = 64
# All but newline and tab: what a model writes must not steer the terminal.
CONTROLS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    return text.translate(CONTROLS)


def shown(message: dict[str, Any]) -> str:
    """A message's text, and what it calls."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", f"[{part['type']}]") for part in content)
    calls = (call["function"] for call in message.get("tool_calls") or ())
    return " ".join([content, *(f"{call['name']}({call['arguments']})" for call in calls)]).strip()


def status_line(stats: CacheStats | None, last: Turn | None) -> str:
    if stats is None:
        return "nothing said yet"
    parts = [f"{stats.n_used}/{stats.n_limit} cells", f"position {stats.logical_pos:,}"]
    if last is not None and last.rate_tok_s:
        parts.append(f"{last.rate_tok_s:.1f} tok/s")
    return " | ".join([*parts, f"{stats.n_evictions:,} evictions"])


def stats_rows(chat: Session) -> list[tuple[str, str]]:
    stats, last = chat.cache_stats(), chat.last
    rows = [
        ("turns", f"{chat.n_turns:,}"),
        ("tokens so far", f"{chat.n_tokens:,}"),
        ("cells in use", f"{stats.n_used:,} of {stats.n_limit:,}"),
        ("first tokens that stay", f"{stats.keep:,}"),
        ("evictions", f"{stats.n_evictions:,}"),
        ("tokens evicted, per KV head", f"{stats.n_evicted:,}"),
        ("tokens in the archive", f"{stats.n_archived:,}, {mebibytes(stats.archive_bytes)}"),
        ("recalls", f"{stats.n_recalls:,}, {stats.n_recalled:,} tokens over all layers and heads"),
        ("K and V", mebibytes(stats.kv_bytes)),
        ("beside them", mebibytes(stats.extra_bytes)),
    ]
    if last is not None:
        rows += [
            ("last turn: prompt tokens", f"{last.prompt_tokens:,}"),
            ("last turn: tokens written", f"{last.completion_tokens:,} ({last.finish_reason})"),
            ("last turn: tokens evicted", f"{last.n_evicted:,}"),
            ("last turn: tokens recalled", f"{last.n_recalled:,}"),
            ("last turn: time", f"{last.seconds:.2f} s, {last.rate_tok_s:.1f} tok/s"),
        ]
    return rows


def pictures(positions: npt.NDArray[np.int32], n_tokens: int) -> list[str]:
    """Of each head, how dense its tokens are from the first of the text to the last; positions as of Llama.retained."""
    edges = np.linspace(0, n_tokens, N_PLACES + 1)
    lines = []
    for head in positions:
        share = np.histogram(head[head >= 0], edges)[0] / np.diff(edges)
        levels = np.ceil(np.minimum(share, 1) * (len(LEVELS) - 1)).astype(int)
        lines.append("".join(LEVELS[level] for level in levels))
    return lines
