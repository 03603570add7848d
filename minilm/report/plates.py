"""A plate: several panels on one sheet, saved as one PNG, each of which a page may also set on its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from minilm.report.canvas import LIGHT, save_png, sheet

Legend = Sequence[tuple[str, str, str]]  # colour role, line style, what it is


@dataclass(frozen=True)
class Panel:
    """title: over the panel; label: for a screen reader; margins: left, right, top, bottom in pixels."""

    title: str
    label: str
    draw: Callable[[Axes], None]
    legend: Legend = ()
    height: float = 250
    margins: tuple[float, float, float, float] = (50, 16, 10, 40)


@dataclass(frozen=True)
class Plate:
    name: str  # of the file, without .png
    title: str
    note: str  # how to read it
    panels: list[Panel]


def save_plate(plate: Plate, path: Path, width: float = 380) -> None:
    """All panels on one sheet, two abreast, each with its title and legend above it."""
    columns = min(2, len(plate.panels))
    rows = [plate.panels[i : i + columns] for i in range(0, len(plate.panels), columns)]
    above = [max(40 + 16 * len(p.legend) for p in row) for row in rows]
    heights = [over + max(p.height for p in row) for over, row in zip(above, rows, strict=True)]
    total = 56 + sum(heights)
    across = columns * width + 24 * (columns - 1)
    with sheet():
        figure = Figure(figsize=(across / 72, total / 72))
        top = total - 30
        figure.text(12 / across, top / total, plate.title, fontsize=16, parse_math=False)
        top -= 26
        for row, over, height in zip(rows, above, heights, strict=True):
            for column, panel in enumerate(row):
                left = column * (width + 24)

                def text(x: float, y: float, said: str, left: float = left, **style: Any) -> None:
                    figure.text((left + x) / across, y / total, said, parse_math=False, va="center", **style)

                text(12, top - 16, panel.title, fontsize=12, fontweight="bold")
                for line, (role, dashes, said) in enumerate(panel.legend):
                    y = top - 36 - 16 * line
                    ends = [(left + 12) / across, (left + 34) / across], [y / total, y / total]
                    figure.add_artist(Line2D(*ends, color=LIGHT[role], linewidth=2.4, linestyle=cast(Any, dashes)))
                    text(42, y, said)
                side, right, head, foot = panel.margins
                low = top - over - panel.height
                place = (left + side, low + foot, width - side - right, panel.height - head - foot)
                panel.draw(figure.add_axes((place[0] / across, place[1] / total, place[2] / across, place[3] / total)))
            top -= height
        save_png(figure, path)
