"""What an eviction does in each layer."""

from __future__ import annotations

from pathlib import Path

from ..profile import Profile
from .figure import saved_figure

LARGE, SMALL = "#08519c", "#b5c7dc"  # dark and light in grey, too


def plot_profile(path: Path, profile: Profile) -> None:
    """Write the plot: a bar for each layer, dark where the layer keeps more.

    Raises ValueError for a suffix other than .svg, .png and .pdf, ModuleNotFoundError without matplotlib.
    """
    with saved_figure(path, width_in=9, height_in=3.6) as figure:
        axes = figure.subplots()
        figure.suptitle(f"{profile.model}: the harm that evictions do, layer by layer".removeprefix(": "))
        large = set(profile.large)
        for name, color, layers in (
            (f"keeps more ({profile.share:.0%} of the harm)", LARGE, sorted(large)),
            ("keeps less", SMALL, [layer for layer in range(len(profile.harm)) if layer not in large]),
        ):
            axes.bar(layers, [profile.harm[layer] for layer in layers], color=color, edgecolor="#333", label=name)
        axes.set_xlabel("layer")
        axes.set_ylabel("nats a token")
        axes.set_xlim(-0.7, len(profile.harm) - 0.3)
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False)
