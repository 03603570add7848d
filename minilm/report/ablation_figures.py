"""The figures of an ablation study: differences from the baseline, curves by step and by time, depth and width, and
naive against fused kernels. A plate is one PNG; the page sets each of its panels on its own."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from minilm.report.ablation_panels import (
    Curve,
    Row,
    curve_of,
    draw_by_context,
    draw_curves,
    draw_deviations,
    draw_forest,
    draw_ladder,
    name_of,
)
from minilm.report.panels import run_style
from minilm.report.plates import Panel, Plate
from minilm.report.runs import Run
from minilm.studies.design import BASELINE, CONTROL, KERNELS, REORDERED
from minilm.studies.trials import FINISHED

PLATES = ("forest", "loss_curves", "loss_against_time", "depth_width", "kernels")
CURVES_SHOWN = 4  # arms in one panel, the baseline besides
WIDE = (66.0, 16.0, 10.0, 40.0)  # margins beside long numbers
ROW = 36.0  # height of an arm in the forest plot


def plates_of(result: dict[str, Any], runs: Mapping[str, Run]) -> list[Plate]:
    """The figures that this study's data allow. runs: by trial, those that could be read."""
    trials = {trial["id"]: trial for trial in result["trials"]}
    found = [
        _forest(result, trials),
        *_curves(result, trials, runs),
        _depth_and_width(result, trials),
        _naive_against_fused(result, trials, runs),
    ]
    return [plate for plate in found if plate and plate.panels]


# --- forest plot ------------------------------------------------------------------------------------------------------


def _forest(result: dict[str, Any], trials: Mapping[str, Row]) -> Plate | None:
    study = result["comparison"]
    compared = [row for row in result["table"] if row["verdict"]]
    if not compared:
        return None
    control = study["control"]
    base = _losses(result["table"][0], trials)
    dots = {}
    for row in compared:
        own = _losses(row, trials)
        dots[row["arm"]] = [own[s] - base[s] for s in own if s in base] if study["design"] == "blocked" else []
    rows = len(compared) + bool(control)
    panel = Panel(
        "Arm minus baseline, nats a token",
        "Difference in validation loss of each arm from the baseline",
        partial(draw_forest, compared=compared, control=control, dots=dots),
        height=ROW * rows + 62,
        margins=(14, 14, 8, 46),
    )
    note = ["Validation loss of an arm less that of the baseline, in nats a token: left of the line is better."]
    if any(row["detectable"] for row in compared):
        note.append("Bars are 95% intervals that hold for all arms at once.")
        note.append(
            "The shaded band is the minimum detectable effect: a true difference inside it would often be missed."
        )
    else:
        note.append("There are too few seeds for an interval.")
    if any(len(seeds) > 1 for seeds in dots.values()):
        note.append("Small dots are single seeds against the baseline's same seed.")
    if control:
        note.append("The diamond is the A/A arm, the baseline again with other seeds.")
    return Plate("forest", "Differences from the baseline", " ".join(note), [panel])


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(result: dict[str, Any], trials: Mapping[str, Row], runs: Mapping[str, Run]) -> list[Plate]:
    base = _curve_of_row(result["table"][0], trials, runs)
    panels: dict[str, list[Panel]] = {"step": [], "wall": []}
    for axis, rows in _by_axis(result["table"]):
        axis_name = name_of(axis)
        found = [c for row in rows if (c := _curve_of_row(row, trials, runs))]
        for first in range(0, len(found), CURVES_SHOWN):
            part = found[first : first + CURVES_SHOWN]
            styles = [run_style(i) for i in range(len(part))]
            legend = [(*style, curve.name) for style, curve in zip(styles, part, strict=True)]
            shown = [(curve, *style) for curve, style in zip(part, styles, strict=True)]
            if base:
                legend.insert(0, ("ink", "solid", base.name))
                shown.append((base, "ink", "solid"))
            count = f", {first // CURVES_SHOWN + 1} of {-(-len(found) // CURVES_SHOWN)}"
            title = (
                axis_name[:1].upper() + axis_name[1:].replace("_", " ") + (count if len(found) > CURVES_SHOWN else "")
            )
            for against, panels_of in panels.items():
                draw = partial(draw_curves, curves=shown, against=against)
                if axis == KERNELS and against == "step":
                    continue  # the same curve over and over: how far they part is a figure of its own
                panels_of.append(Panel(title, f"Validation loss against {against}: {title}", draw, legend))
    note = (
        "Validation loss in nats a token, a panel for each axis of the study. Lines are means over seeds, bands reach "
        "from the lowest seed to the highest. The beginning of training lies above the panel."
    )
    timed = "The same against the time that training took. Times are only as good as the machine was quiet."
    return [
        Plate("loss_curves", "Validation loss by step", note, panels["step"]),
        Plate("loss_against_time", "Validation loss against wall time", timed, panels["wall"]),
    ]


def _by_axis(table: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    axes: dict[str, list[Row]] = {}
    for row in table:
        if row["axis"] not in (BASELINE, CONTROL) and row["arm"] != REORDERED:
            axes.setdefault(row["axis"], []).append(row)
    return list(axes.items())


def _curve_of_row(row: Row, trials: Mapping[str, Row], runs: Mapping[str, Run]) -> Curve | None:
    """Of the seeds that finished; of those that diverged, up to there, where none did."""
    ids = [i for i in row["trials"] if i in runs]
    finished = [i for i in ids if trials[i]["status"] == FINISHED]
    name = name_of(row["arm"])
    if row["diverged"]:
        name += f" ({len(row['diverged'])} of {len(row['trials'])} seeds diverged)"
    return curve_of(name, [runs[i] for i in finished or ids])


# --- depth and width --------------------------------------------------------------------------------------------------


def _depth_and_width(result: dict[str, Any], trials: Mapping[str, Row]) -> Plate | None:
    ladders = []
    for key, axes in (("n_layers", ("depth", "model.n_layers")), ("d_model", ("width", "model.d_model"))):
        rows = [row for row in result["table"] if row["axis"] in axes and row["mean"] is not None]
        if rows and result["table"][0]["mean"] is not None:
            points = sorted(
                ((_setting(row, trials, key), row) for row in [result["table"][0], *rows]), key=lambda p: p[0]
            )
            ladders.append((key, [(x, row, list(_losses(row, trials).values())) for x, row in points]))
    shown = [v for _, points in ladders for _, row, seeds in points for v in (*seeds, row["low"], row["high"])]
    shown = [v for v in shown if v is not None]
    if not shown:
        return None
    margin = 0.1 * (max(shown) - min(shown)) or 0.05
    limits = min(shown) - margin, max(shown) + 1.5 * margin
    titles = {"n_layers": "Depth", "d_model": "Width"}
    panels = [
        Panel(
            titles[key],
            f"Validation loss against {key}",
            partial(draw_ladder, points=points, key=key, limits=limits),
        )
        for key, points in ladders
    ]
    note = (
        "Validation loss in nats a token: dots are seeds, bars the mean and its 95% interval. Over each stand its "
        "parameters: a deeper or wider model is a larger one."
    )
    title = " and ".join(panel.title for panel in panels).capitalize()
    return Plate("depth_width", title, note, panels)


def _setting(row: Row, trials: Mapping[str, Row], key: str) -> int:
    return trials[row["trials"][0]]["config"]["model"][key]


# --- naive against fused ----------------------------------------------------------------------------------------------


def _naive_against_fused(result: dict[str, Any], trials: Mapping[str, Row], runs: Mapping[str, Run]) -> Plate | None:
    study = result["kernels"]
    if not study:
        return None
    names = list(dict.fromkeys([study["naive"], *(row["kernels"] for row in study["by_context"])]))
    names += [row["kernels"] for row in study["rows"] if row["kernels"] not in (*names, REORDERED)]
    styles = {name: run_style(i)[0] for i, name in enumerate(names)}
    panels = []
    for key, title, of in (
        ("tokens_per_s", "Speed against context length", 1.0),
        ("peak_bytes", "Memory against context length", 1e9),
    ):
        lines = {
            name: sorted(
                (row["context_length"], row[key] / of)
                for row in study["by_context"]
                if row["kernels"] == name and row[key] is not None
            )
            for name in names
        }
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            unit = "tokens/s" if key == "tokens_per_s" else "GB at the peak"
            draw = partial(draw_by_context, lines=lines, styles=styles, unit=unit)
            legend = [(styles[name], "solid", name) for name in lines]
            panels.append(Panel(title, title, draw, legend, margins=WIDE))
    deviations = {row["kernels"]: _deviations(*sides_of(row, trials), trials, runs) for row in study["rows"]}
    if any(len(steps) for steps, _ in deviations.values()):
        noise = next((row["noise"] for row in study["rows"] if row["noise"] is not None), None)
        look = {name: ("muted", "solid") if name == REORDERED else (styles[name], "solid") for name in deviations}
        legend = [
            (*look[name], "naive, its sums in another order" if name == REORDERED else f"{name} kernels")
            for name in deviations
        ]
        if noise:
            legend.append(("ink", "dashed", f"the noise floor, {noise:.2g}"))
        draw = partial(draw_deviations, lines=[(*deviations[n], look[n][0]) for n in deviations], noise=noise)
        title = "Deviation of the training loss from naive"
        panels.append(Panel(title, title + ", by step", draw, legend, margins=WIDE))
    note = (
        "Speed and memory are of short trainings that keep the tokens a step as the context grows. The deviation is "
        "the largest over seeds at each step, in nats a token; a line has a gap where the losses are the same to the "
        "last digit written. The noise floor is the largest deviation that another order of sums brings."
    )
    return Plate("kernels", "Naive against fused kernels", note, panels)


def sides_of(row: Row, trials: Mapping[str, Row]) -> tuple[list[str], list[str]]:
    """(naive, fused) trials of a line of the kernels' study."""
    own = row["kernels"]
    fused = [i for i in row["trials"] if own in (trials[i]["arm"], trials[i]["config"]["train"]["kernels"])]
    if own != REORDERED:
        fused = [i for i in fused if trials[i]["arm"] != REORDERED]
    return [i for i in row["trials"] if i not in fused], fused


def _deviations(
    naive: Sequence[str], fused: Sequence[str], trials: Mapping[str, Row], runs: Mapping[str, Run]
) -> tuple[np.ndarray, np.ndarray]:
    """(steps, largest |difference of the training losses| over seeds), both (n,); empty without runs."""
    of_seed = {trials[i]["seed"]: runs[i] for i in naive if i in runs}
    largest: dict[int, float] = {}
    for trial in fused:
        other = of_seed.get(trials[trial]["seed"])
        if trial not in runs or other is None:
            continue
        theirs = {row["step"]: row["loss"] for row in other.train_rows}
        for row in runs[trial].train_rows:
            apart = abs(row["loss"] - theirs.get(row["step"], math.nan))
            if math.isfinite(apart):
                largest[row["step"]] = max(apart, largest.get(row["step"], 0.0))
    steps = sorted(largest)
    return np.array(steps, dtype=float), np.array([largest[s] for s in steps], dtype=float)


def _losses(row: Row, trials: Mapping[str, Row]) -> dict[int, float]:
    """Validation loss by seed of the trials that finished."""
    found = {trials[i]["seed"]: trials[i]["val_loss"] for i in row["trials"]}
    return {seed: loss for seed, loss in found.items() if loss is not None}
