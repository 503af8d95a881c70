"""What all plots share: which files they can be, and a style that is readable in grey and stable from run to run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import needs_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What else would differ from run to run, by suffix.
METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "morphkv_cpp",
    "svg.fonttype": "none",  # text stays text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],  # the first comes with matplotlib, the second is any browser's
}


def check_plot(path: Path) -> None:
    """Raise what save_figure() would, before anything is measured.

    Raises ValueError for another suffix, FileNotFoundError without the folder, ModuleNotFoundError without matplotlib.
    """
    if path.suffix.lower() not in METADATA:
        raise ValueError(f"a plot's file must end in {', '.join(METADATA)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"a plot's folder must be there, got {str(path)!r}")
    with needs_extra("plot"):
        import matplotlib.figure  # noqa: F401


@contextlib.contextmanager
def saved_figure(path: Path, width_in: float, height_in: float) -> Iterator["Figure"]:
    """A figure to draw on, which is written at the end; its form is the suffix's. Raises as check_plot() does."""
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    # not pyplot, which would open a window's toolkit and keep each figure
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        yield figure
        figure.savefig(path, dpi=150, metadata=METADATA[path.suffix.lower()])
