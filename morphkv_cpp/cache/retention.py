"""Which tokens of a text the cache still holds, head by head: to look at, to plot, and to reckon with."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import llama_cpp
import numpy as np
import numpy.typing as npt

from .. import bridge
from ..errors import InvalidError
from ..extras import needs_extra
from .live import TokenIds
from .stats import CacheStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_PAGE = 16  # tokens of a page, which recalls bring as a whole
PLACE = '<script type="application/json" id="saved">'  # where llama-server's page has what it is to show
N_COLUMNS = 512  # of a plot: places of the text

# of the numbers of a cache, those that the page shows
CACHE = (
    "capacity keep n_cells n_used n_evictions n_evicted n_recalls n_recalled n_archived archive_bytes kv_bytes".split()
)

Counts = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Retention:
    """What each KV head keeps of a text, at one moment. In a notebook it shows itself; save_html() writes the same.

    Layers that evict nothing (recurrent ones, those with a sliding window) are left out.
    """

    tokens: TokenIds  # (n_tokens,), ids of the text
    pieces: tuple[str, ...]  # (n_tokens,), their texts; a character that lies in several tokens is in the last of them
    positions: dict[int, Counts]  # by layer: (n_head_kv, n_distant), as of Llama.retained()
    first_recent: int  # from this token on every head keeps all
    recalled: Counts  # (n_pages, 2): the first token of 16 that recalls brought tokens of, and which recall did, from 1
    stats: CacheStats
    model: str = ""

    @property
    def n_heads(self) -> int:
        """KV heads of all layers that evict."""
        return sum(len(positions) for positions in self.positions.values())

    def kept(self, layer: int) -> Flags:
        """Whether each head of a layer keeps each token, bool (n_head_kv, n_tokens)."""
        if layer not in self.positions:
            raise InvalidError(f"layer must be one of {list(self.positions)}, got {layer}")
        positions = self.positions[layer]
        res = np.zeros((len(positions), len(self.tokens)), dtype=np.bool_)
        if (positions == -1).all():  # nothing evicted: the first eviction fills all slots
            res[:] = True
            return res
        res[:, self.first_recent :] = True
        for head, held in zip(res, positions):
            head[held[(held >= 0) & (held < self.first_recent)]] = True
        return res

    @property
    def heads(self) -> Counts:
        """How many of the n_heads keep each token, int32 (n_tokens,)."""
        counts = np.zeros(len(self.tokens), dtype=np.int32)
        for layer in self.positions:
            counts += self.kept(layer).sum(axis=0, dtype=np.int32)
        return counts

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The share of the heads that keep each token, float64 (n_tokens,)."""
        return self.heads / max(self.n_heads, 1)

    def to_dict(self) -> dict[str, Any]:
        """As llama-server's /morphkv/retained?layers=1 says it."""
        all_of = {layer: bool((positions == -1).all()) for layer, positions in self.positions.items()}
        n_with_all = sum(len(self.positions[layer]) for layer, has_all in all_of.items() if has_all)
        heads = self.heads[: self.first_recent] - n_with_all
        kept = np.flatnonzero(heads > 0)
        return {
            "model": self.model,
            "is_processing": False,
            "age_ms": 0,
            "n_tokens": len(self.tokens),
            "n_kept": int((self.heads > 0).sum()),
            "n_heads": self.n_heads,
            "n_heads_with_all": n_with_all,
            "first_recent": self.first_recent,
            "kept": {"tokens": _steps(kept), "heads": heads[kept].tolist()},
            "recalled": self.recalled.tolist(),
            "media": [[first, n, "image"] for first, n in _runs(self.tokens < 0)],
            "text": "",
            "from": 0,
            "pieces": list(self.pieces),
            "cache": {name: getattr(self.stats, name) for name in CACHE},
            "layers": [
                {"layer": layer, "n_heads": len(positions), "has_all": all_of[layer]}
                | ({} if all_of[layer] else {"heads": [_steps(np.flatnonzero(head)) for head in self._old(layer)]})
                for layer, positions in self.positions.items()
            ],
        }

    def _old(self, layer: int) -> Flags:
        return self.kept(layer)[:, : self.first_recent]

    def to_html(self) -> str:
        """llama-server's page with this text in place of a chat; it asks no server, and markup stays text."""
        data = json.dumps(self.to_dict(), ensure_ascii=False).replace("<", "\\u003c")
        page = _page()
        place = page.index(PLACE) + len(PLACE)
        return page[:place] + data + page[place:]

    def save_html(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        page = escape(self.to_html(), quote=True)
        return f'<iframe title="Retention" style="width:100%;height:640px;border:0" srcdoc="{page}"></iframe>'

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw how many heads of each layer keep what, along the text, in grey; on `axes`, or a new figure.

        Raises ModuleNotFoundError without matplotlib (extra `plot`).
        """
        with needs_extra("plot"):
            from matplotlib.figure import Figure

        if axes is None:
            axes = Figure(figsize=(9, 4), layout="constrained").subplots()
        image = axes.imshow(
            self.by_place(),
            aspect="auto",
            cmap="Greys",
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(0, len(self.tokens), len(self.positions) - 0.5, -0.5),
        )
        axes.set_xlabel("token")
        axes.set_ylabel("layer that evicts" if list(self.positions) != list(range(len(self.positions))) else "layer")
        axes.grid(False)
        figure = cast("Figure", axes.figure)
        figure.colorbar(image, ax=axes, label="share of tokens and heads that are kept")
        return figure

    def by_place(self, n_places: int = N_COLUMNS) -> npt.NDArray[np.float64]:
        """Of each layer, the share of tokens and heads that are kept by place of the text: (n_layers, n_places)."""
        n_places = max(1, min(n_places, len(self.tokens)))
        edges = np.linspace(0, len(self.tokens), n_places + 1).astype(int)[:-1]
        if not self.tokens.size:
            return np.zeros((len(self.positions), 1))
        widths = np.diff([*edges, len(self.tokens)])
        rows = [np.add.reduceat(self.kept(layer).mean(axis=0), edges) / widths for layer in self.positions]
        return np.array(rows).reshape(-1, n_places)


def _steps(ascending: npt.NDArray[Any]) -> list[int]:
    """Each number less the one before."""
    return [int(step) for step in np.diff(ascending, prepend=0)]


def _runs(flags: Flags) -> list[tuple[int, int]]:
    """First index and length of each stretch of True."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(end - first)) for first, end in zip(edges[::2], edges[1::2])]


def _page() -> str:
    path = bridge.PACKAGE_DIR / "bin" / "morphkv-page.html"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: install morphkv_cpp anew")
    return path.read_text(encoding="utf-8")


def _pieces(tokens: Sequence[int], vocab: int) -> tuple[str, ...]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # below 0: in an image
    return tuple(decoder.decode(bridge.token_piece(vocab, int(token)) if token >= 0 else b"") for token in tokens)


def retention_of(context: int, model: int, tokens: TokenIds, name: str, seq_id: int) -> Retention:
    """context, model: addresses. Raises NoMorphKVError without MorphKV."""
    stats = CacheStats(**bridge.stats(context, seq_id))
    positions: dict[int, Counts] = {}
    for layer in range(llama_cpp.llama_model_n_layer(model)):
        try:
            positions[layer] = bridge.retained(context, seq_id, layer)
        except InvalidError:
            continue  # no KV, or a sliding window
    # an image may have fewer positions than cells
    first_recent = max(0, len(tokens) - (stats.n_used - stats.n_distant)) if stats.n_evictions else 0
    recalled = np.array(bridge.recalled(context, seq_id), dtype=np.int32).reshape(-1, 2)
    pieces = _pieces(tokens.tolist(), llama_cpp.llama_model_get_vocab(model))
    return Retention(tokens.copy(), pieces, positions, first_recent, recalled, stats, name)
