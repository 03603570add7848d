"""The report of a race: race.html, race.md, race.json and race.png, and the table on a terminal, from a
minilm.studies.race.Race. The page asks for nothing else, and the same race gives the same bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table
from scipy import stats

from minilm.errors import UserError
from minilm.report.canvas import DARK, LIGHT, SERIES, svg
from minilm.report.page import environment
from minilm.report.plates import Panel, Plate, save_plate
from minilm.report.words import count, duration, short
from minilm.studies.race import Race, Runner
from minilm.training.journal import write_json

HEADROOM = 1.35  # of the losses shown, over the target: what is far above it says little


def write_race(race: Race, out: Path) -> Path:
    """Writes the report into `out` and returns the path of race.html. Raises UserError where it cannot be written."""
    plate = _plate(race)
    page: dict[str, Any] = {
        "light": LIGHT,
        "dark": DARK,
        "title": "Race",
        "verdict": verdict(race),
        "remarks": remarks(race),
        "plate": {"note": plate.note, "panels": [_shown(panel, i) for i, panel in enumerate(plate.panels)]},
        "table": table(race),
        "device": race.device,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_plate(plate, out / "race.png", width=620)
        write_json(out / "race.json", race.to_dict())
        for name in ("race.html", "race.md"):
            text = environment(name).get_template(name).render(page)
            (out / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"The report cannot be written to {out} ({error.strerror}); name another folder.") from None
    return out / "race.html"


def print_race(race: Race, console: Console) -> None:
    shown = table(race)
    printed = Table(box=None, pad_edge=False)
    for i, name in enumerate(shown["head"]):
        printed.add_column(name, justify="right" if i else "left", no_wrap=not i, overflow="fold")
    for row in shown["rows"]:
        printed.add_row(*row)
    console.print(verdict(race), style="bold", highlight=False)
    for sentence in remarks(race):
        console.print(f"- {sentence}", highlight=False)
    console.print(printed, highlight=False)


def verdict(race: Race) -> str:
    """Who was first at the target, and by how much."""
    baseline, *others = race.runners
    reached = [r for r in others if r.to_target_s is not None]
    if not reached:
        return _when(baseline, race.target) + (f"; no other recipe reached {race.target:g}." if others else ".")
    best = min(reached, key=lambda r: r.to_target_s)
    if baseline.to_target_s is None:
        least = baseline.total_s / best.to_target_s
        return (
            f"{best.name} reached a validation loss of {race.target:g} in {duration(best.to_target_s)}; "
            f"{_when(baseline, race.target)}, {least:.1f} times as long."
        )
    ratio = baseline.to_target_s / best.to_target_s
    faster = f"{ratio:.1f} times as fast" if ratio >= 1 else f"{1 / ratio:.1f} times as slow"
    return (
        f"{best.name} reached a validation loss of {race.target:g} in {duration(best.to_target_s)}, {baseline.name} in "
        f"{duration(baseline.to_target_s)}: {faster}{_interval(baseline, best)}."
    )


def remarks(race: Race) -> list[str]:
    said = [f"{_when(r, race.target)}." for r in race.runners[1:] if r.to_target_s is None]
    for runner in race.runners:
        missed = [seed for seed, at in zip(runner.seeds, runner.by_seed_s, strict=True) if at is None]
        if missed and len(missed) < len(runner.seeds):
            said.append(f"{runner.name} missed {race.target:g} with {len(missed)} of {len(runner.seeds)} seeds.")
        if len(runner.seeds) < 3:
            said.append(f"{runner.name} ran with {len(runner.seeds)} seeds: three are the least that a mean is worth.")
    return said


def table(race: Race) -> dict[str, Any]:
    head = ["recipe", "parameters", "seeds", "steps", "ms a step", "time", "final loss", f"time to {race.target:g}"]
    rows = []
    for r in race.runners:
        spread = f" ({r.low[-1]:.3f} to {r.high[-1]:.3f})" if len(r.seeds) > 1 else ""
        row = [r.name, short(r.parameters), str(len(r.seeds)), count(r.total_steps)]
        row += [f"{1000 * r.total_s / r.total_steps:.1f}", duration(r.total_s), f"{r.losses[-1]:.4f}{spread}"]
        rows.append([*row, "not reached" if r.to_target_s is None else duration(r.to_target_s)])
    return {"head": head, "rows": rows}


def _when(runner: Runner, target: float) -> str:
    if runner.to_target_s is not None:
        return f"{runner.name} reached a validation loss of {target:g} in {duration(runner.to_target_s)}"
    return (
        f"{runner.name} had not reached {target:g} when its {runner.total_steps:,} steps ended at "
        f"{runner.losses[-1]:.4f} after {duration(runner.total_s)}"
    )


def _interval(baseline: Runner, other: Runner) -> str:
    """Of the ratio of times, from the seeds that both have: Student's t on its logarithm."""
    times = dict(zip(other.seeds, other.by_seed_s, strict=True))
    ratios = [
        math.log(at / times[seed])
        for seed, at in zip(baseline.seeds, baseline.by_seed_s, strict=True)
        if at is not None and times.get(seed) is not None
    ]
    if len(ratios) < 3:
        return ""
    half = stats.t.ppf(0.975, len(ratios) - 1) * np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    low, high = (math.exp(np.mean(ratios) + side * half) for side in (-1, 1))
    return f" (95% interval of the ratio over {len(ratios)} seeds {low:.1f} to {high:.1f})"


# --- figure -----------------------------------------------------------------------------------------------------------


def _plate(race: Race) -> Plate:
    styles = [SERIES[i % len(SERIES)] for i in range(len(race.runners))]
    legend = [(style, "solid", r.name) for style, r in zip(styles, race.runners, strict=True)]
    legend.append(("ink", "dashed", f"the loss that counts, {race.target:g}"))

    def draw(axes: Axes) -> None:
        for style, r in zip(styles, race.runners, strict=True):
            colour, after = LIGHT[style], slice(1, None)  # an evaluation before any training has no place on a log axis
            axes.fill_between(r.wall_s[after], r.low[after], r.high[after], color=colour, alpha=0.2, linewidth=0)
            axes.plot(r.wall_s[after], r.losses[after], color=colour, linewidth=2)
            if r.to_target_s is not None:
                axes.plot([r.to_target_s], [race.target], "o", color=colour, markersize=6, zorder=4)
        axes.axhline(race.target, color=LIGHT["ink"], linewidth=1.2, linestyle="--", zorder=3)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        best = min(min(r.low) for r in race.runners)
        axes.set_ylim(best - 0.05 * race.target, HEADROOM * race.target)
        axes.set_xlabel("training time, seconds")
        axes.set_ylabel("validation loss, nats")

    label = "Validation loss against training time: " + "; ".join(_when(r, race.target) for r in race.runners)
    note = "Lines are means over the seeds, bands reach from the best seed to the worst. A dot is the first evaluation "
    note += f"at or below {race.target:g}. Time is training time, without evaluations."
    panel = Panel("Loss against time", label, draw, legend, height=340, margins=(58, 16, 10, 44))
    return Plate("race", "A race to a loss", note, [panel])


def _shown(panel: Panel, number: int) -> dict[str, Any]:
    drawn = svg(panel.draw, f"race{number}", panel.label, width=620, height=panel.height, margins=panel.margins)
    return {"title": panel.title, "legend": panel.legend, "svg": Markup(drawn)}
