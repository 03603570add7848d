"""The sheet that every figure is drawn on: its colours, its type, and bytes that depend on the data alone.

A figure is drawn once. As PNG it keeps the light colours on white; as SVG each colour becomes a CSS variable, so that
the page shows the same drawing in light and in dark, and the text takes the page's own typeface.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The series are Okabe and Ito's palette, which colour-blind readers can tell apart ("Color Universal Design", 2008),
# its yellow and pale tones darkened for white and its deep tones lightened for black. A colour appears once, since it
# is its own name in the SVG. Raw series are faint in a colour of their own, for browsers add up the opacity of a thin
# line that crosses itself.
LIGHT = {
    "ink": "#20242a",
    "muted": "#656a71",
    "grid": "#e3e4e6",
    "s1": "#0072b2",
    "s2": "#d55e00",
    "s3": "#00805e",
    "s4": "#b4568b",
    "s5": "#b07c00",
    "s6": "#2b8bc0",
    "s7": "#7a5230",
    "s8": "#4d4f9e",
    "faint1": "#b3d5e8",
    "faint4": "#e8ccdc",
    "faint5": "#e7d8b3",
}
DARK = {
    "ink": "#e7e5e0",
    "muted": "#a3a29d",
    "grid": "#34373d",
    "s1": "#62b3ee",
    "s2": "#ff9a57",
    "s3": "#3fcba2",
    "s4": "#e39ac4",
    "s5": "#edbf4b",
    "s6": "#a6d8f5",
    "s7": "#c9a184",
    "s8": "#a9abf2",
    "faint1": "#345169",
    "faint4": "#61495a",
    "faint5": "#655630",
}
SERIES = tuple(key for key in LIGHT if key.startswith("s"))

_STYLE: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so the PNG is the same on every machine
    "font.size": 11,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0.2,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "minilm",
}


@contextmanager
def sheet() -> Iterator[None]:
    """Draws within it look the same whatever the user's matplotlib settings are, and leave those as they were."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a run may be named in any script
        matplotlib.rcdefaults()  # leaves the backend alone
        matplotlib.rcParams.update(_STYLE)
        yield


def save_png(figure: Figure, path: Path | io.BytesIO, dpi: int = 150) -> None:
    figure.savefig(path, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


def svg(
    draw: Callable[[Axes], None],
    prefix: str,
    label: str,
    width: float = 380,
    height: float = 280,
    margins: tuple[float, float, float, float] = (50, 66, 38, 40),
) -> str:
    """One panel as an <svg> element for a page: `draw` fills its axes, `prefix` keeps its ids apart from those of the
    page's other figures, `label` is what a screen reader says. Width, height and the margins (left, right, top, bottom)
    are CSS pixels at the drawn size; the element scales."""
    left, right, top, bottom = margins
    with sheet():
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
        draw(axes)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _inline(text.getvalue(), prefix, label)


def _inline(document: str, prefix: str, label: str) -> str:
    body = document[document.index("<g id=") :]
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', document).groups()
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(
        r'\b(?:d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d)\d+", r"\1", m[0]), body
    )  # a tenth of a pixel will do
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)  # as matplotlib wrote it before 3.11
    body = re.sub(r'; font-family: [^";]*', "", body)
    body = body.replace(
        "stroke-opacity", "opacity"
    )  # of the whole line: a thin one that crosses itself adds up otherwise
    body = body.replace("xlink:href", "href")
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    for role, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{role})")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">\n{body}'
