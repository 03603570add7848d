"""The figures of a scaling study: loss by size, the loss above its floor, the distance from the curve, the exponent
without each size; loss by size and data; IsoFLOP parabolas.

Both axes are logarithmic only where a power law is a straight line on them: for L - E, and for L where no floor is
found. On two logarithmic axes a curve with a floor also looks nearly straight over a decade, at the wrong slope.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minilm.report.panels import run_style
from minilm.report.plates import Panel, Plate
from minilm.report.scaling_panels import (
    COUNT_NAMES,
    amount,
    band_of,
    draw_above,
    draw_by_budget,
    draw_contours,
    draw_distance,
    draw_loss,
    draw_minima,
    draw_parabolas,
    draw_without,
    finite_points,
    form_of,
    law_of,
    replicated,
    runs_of,
)
from minilm.studies.budget import ChinchillaLaw
from minilm.studies.scaling import MAX_MOVE, SAME_TOKENS, TOKENS_PER_PARAMETER

GROUPS_SHOWN = 8  # budgets in one panel, a colour each
BESIDE = (50, 84, 10, 40)  # room for the names of lines at the right
PLAIN = (50, 16, 10, 40)
Result = dict[str, Any]
Fit = dict[str, Any]


def fit_of(result: Result) -> Fit:
    """The fit of L(N) as far as it means anything: where runs differ in tokens, a curve, a slope and a spread over size
    alone mix both, and all that stands is the refusal and the means."""
    if result["law"] is None:
        return result["fit"]
    sizes = [{**size, "slope": None, "without": None} for size in result["fit"]["sizes"]]
    nothing = dict.fromkeys(("form", "slope", "pure", "offset", "spread", "misfit_p", "kaplan_ratio"))
    note = "Runs differ in tokens, so no slope of size alone compares with Kaplan's."
    return {**result["fit"], **nothing, "sizes": sizes, "kaplan_note": note, "exponent": None}


def curve_plate(result: Result) -> Plate:
    """capstone_scaling_curve.png: what the fit of L(N) rests on."""
    fit = fit_of(result)
    n, losses = runs_of(result["points"], fit["count"])
    law, pure, offset = law_of(fit), form_of(fit, "pure"), fit["form"] == "offset"
    legend = [("s1", "solid", "E + a·N^-alpha" if offset else "a·N^-alpha")] if law else []
    legend += [("s2", "dashed", "the pure form, a·N^-alpha")] if offset else []
    floors = [("s3", "dashed", "the source's own entropy")] if fit["floor"] is not None else []
    panels = []

    def add(title: str, label: str, draw: Callable, legend: Sequence = (), margins: tuple = PLAIN) -> None:
        panels.append(Panel(title, label, draw, legend, margins=margins))

    lines = BESIDE if offset or floors else PLAIN
    add(
        "Loss by size",
        "Validation loss by parameters",
        partial(draw_loss, fit=fit, n=n, losses=losses),
        [*legend, *floors],
        lines,
    )
    above = [("s1", "solid", "above the fitted floor E")] if offset else []
    if fit["floor"] is not None and len(losses) and losses.min() > fit["floor"] and fit["form"]:
        above.append(("s3", "dashed", "above the source's own entropy"))
    if above:
        draw = partial(draw_above, fit=fit, n=n, losses=losses)
        add("Loss above the floor", "Validation loss above the floor by parameters", draw, above)
    if law and len(fit["sizes"]) >= 3:
        draw = partial(draw_distance, fit=fit, n=n, losses=losses, law=law, other=pure if offset else None)
        add("Distance from the curve", "Distance of each run from the curve by parameters", draw)
    if any(size["without"] is not None for size in fit["sizes"]):
        draw = partial(draw_without, fit=fit)
        add("Exponent without each size", "alpha when each size is left out", draw, margins=(92, 52, 10, 40))
    answer = "Scaling curve: no exponent is reported"
    if fit["exponent"] is not None:
        answer = f"Scaling curve: alpha {law.alpha:.3f}, 95% interval {law.alpha_low:.3f} to {law.alpha_high:.3f}"
    note = _how_to_read(fit, band_of(fit, n, losses) is not None)
    return Plate("capstone_scaling_curve", answer, note, panels)


def _how_to_read(fit: Fit, shaded: bool) -> str:
    said = ["Dots are single runs, bars their mean with its 95% interval." if replicated(fit) else "Dots are runs."]
    if shaded:
        said.append("The shade holds the best curves at all exponents within the interval.")
    if fit["form"] == "offset":
        said.append("The loss itself is on a linear axis, for with a floor only L - E is straight on two logarithms.")
    elif fit["form"]:
        said.append("The law drawn has no floor, so the loss itself is straight on two logarithms.")
    else:
        said.append("There is no curve of size alone to draw.")
    if any(size["without"] is not None for size in fit["sizes"]):
        said.append(f"Dashed beside alpha: how far one size may move it, {MAX_MOVE}, before it is withheld.")
    return " ".join(said)


def law_plate(result: Result) -> Plate | None:
    """Loss by size, a line a token budget, and the fitted law over both."""
    if result["law"] is None:
        return None
    points = [p for p in finite_points(result["points"]) if p["tokens"]]
    if not points:
        return None
    law = ChinchillaLaw(**result["law"]["law"]) if result["law"]["law"] else None
    count = result["count"]
    groups = _groups([p["tokens"] for p in points], SAME_TOKENS)
    panels = []
    if len(groups) <= GROUPS_SHOWN:
        legend = [(*run_style(i), f"{amount(points[g[0]]['tokens'])} tokens") for i, g in enumerate(groups)]
        draw = partial(draw_by_budget, groups=[[points[i] for i in g] for g in groups], law=law, count=count)
        panels.append(Panel("Loss by size", "Loss by parameters, a line a token budget", draw, legend, margins=PLAIN))
    legend = [("s1", "solid", "nats a token by the fitted law")] if law else []
    legend += [("s2", "solid", "the least loss for its compute, by the fitted law")] if law else []
    legend += [("s3", "dashed", f"{TOKENS_PER_PARAMETER} tokens a parameter")]
    draw = partial(draw_contours, points=points, law=law, count=count)
    panels.append(Panel("Size and data", "Runs by parameters and tokens", draw, legend, margins=(58, 16, 10, 40)))
    lines = " lines are the fitted law's." if law else " lines join their means: there is no law to draw."
    note = f"Dots are runs;{lines}"
    return Plate("scaling_size_and_data", "Loss by size and data", note, panels)


def isoflop_plate(result: Result) -> Plate | None:
    """The parabola of each compute budget with its minimum, and size and tokens at the minima."""
    if result["isoflop"] is None:
        return None
    points = [p for p in finite_points(result["points"]) if p["flops"]]
    curves = result["isoflop"]["curves"]
    if not points or not curves:
        return None
    nearest = np.abs(np.log([[p["flops"] / c["flops"] for c in curves] for p in points])).argmin(1)
    groups = [[p for p, k in zip(points, nearest, strict=True) if k == i] for i in range(len(curves))]
    legend = [(*run_style(i), f"{c['flops']:.2g} FLOPs") for i, c in enumerate(curves)]
    draw = partial(draw_parabolas, curves=curves, groups=groups, count=result["count"])
    panels = [Panel("Loss by size", "Loss by parameters, a parabola a budget", draw, legend, margins=PLAIN)]
    if any(c["n"] for c in curves):
        legend = [("s1", "solid", COUNT_NAMES[result["count"]]), ("s2", "dashed", "tokens")]
        draw = partial(draw_minima, fit=result["isoflop"])
        label = "Parameters and tokens at the minima by compute"
        panels.append(Panel("At the minima", label, draw, legend, margins=(58, 16, 10, 40)))
    note = "Dots are runs, a colour a compute budget; rings are the minima of the parabolas in log N."
    return Plate("scaling_isoflop", "Loss at fixed compute", note, panels)


def _groups(values: Sequence[float], share: float) -> list[list[int]]:
    """Indices of the values, those within `share` of each other together, from the least."""
    groups: list[list[int]] = []
    for index in sorted(range(len(values)), key=lambda i: values[i]):
        if groups and values[index] <= values[groups[-1][0]] * (1 + share):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
