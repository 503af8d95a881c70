"""`morphkv profile`: which layers of a model need the most tokens."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import Llama
from ..cache.layer_profiles import find_profile, stored_path
from ..eval.layer_harm import TEXT, measure_profile, n_readings
from ..plots.figure import check_plot
from ..plots.profile import plot_profile
from ..profile import Profile
from ..text.tokens import require_utf8
from .options import Model, llama_options, with_options
from .plots import Plot
from .show import Json, find_model, print_json, progress_bar, remark

N_BAR = 50


@with_options(llama=llama_options)
def profile(
    model: Model,
    llama: dict[str, Any],
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="another text of 1,000 tokens, UTF-8", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="write it here, not where --layers auto finds it", show_default=False
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="print the stored or shipped profile, and measure nothing")
    ] = False,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure in which layers of MODEL an eviction does the most harm, and store it for --layers auto.

    The model reads 1,000 tokens once for each layer, with that layer's cache cut.
    """
    if plot is not None:
        check_plot(plot)
    path = find_model(model)
    if show:
        found = find_profile(path)
        if found is None:
            raise ValueError(f"there is no profile of {path}: `morphkv profile {model}` makes one")
        target, measured = found
    else:
        measured = measure(path, text or TEXT, llama)
        target = out or stored_path(measured.fingerprint)
        measured.save(target)
    if plot is not None:
        plot_profile(plot, measured)
    if as_json:
        print_json({"profile": target, "large": measured.large, "share": measured.share, "harm": measured.harm})
        return
    print(picture(measured))
    remark(f"{'found' if show else 'written'}: {target}")


def measure(path: Path, text: Path, llama: dict[str, Any]) -> Profile:
    # the smallest context that there is: readings have contexts of their own
    with Llama(path, n_ctx=256, **llama) as llm:
        tokens = llm.tokenize(require_utf8(text.read_bytes(), str(text)))
        with progress_bar(n_readings(llm), "profile") as advance:
            return measure_profile(llm, tokens, advance)


def picture(measured: Profile) -> str:
    """A line a layer: its harm as a bar, and whether it keeps more."""
    most = max(measured.harm) or 1.0
    lines = []
    for layer, harm in enumerate(measured.harm):
        bar = "#" * max(round(N_BAR * harm / most), 1) if harm else ""
        note = "  keeps more" if layer in measured.large else "" if harm else "  is not cut"
        lines.append(f"layer {layer:>3}  {harm:8.5f}  {bar}{note}")
    n_cut = sum(harm > 0 for harm in measured.harm)
    lines.append(f"{len(measured.large)} of {n_cut} layers do {100 * measured.share:.0f}% of the harm")
    return "\n".join(lines)
