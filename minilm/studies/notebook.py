"""What a course's notebook calls: the scaling exponent of a list of results, told with its caveats and drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from minilm.errors import UserError
from minilm.report.scaling_words import interval, kaplan_why
from minilm.studies.scaling import KAPLAN_ALPHA, Point, ScalingFit, fit_scaling

COUNT = "non_embedding"  # what Kaplan counts, and so the only count on which 0.076 can be compared


def scaling_analysis(
    ablation_results: Sequence[Mapping[str, Any]], out: str | Path = "capstone_scaling_curve.png"
) -> dict[str, Any]:
    """Fits L = a·N^-alpha (Kaplan et al. 2020, equation 1.1), prints alpha beside Kaplan's 0.076 with what forbids to
    make more of it, draws loss against size on two logarithmic axes into `out`, and returns the numbers.

    Each result holds n_params, taken to be non-embedding parameters, and final_val_loss in nats a token, None or not
    finite for a run that diverged; seed is optional and other keys are passed over. Results of one n_params are its
    seeds.

    Returned: alpha, alpha_low and alpha_high (95%; None without two results of one size), a, kaplan_alpha, ratio,
    n_params_counts, sizes, exponent (None where a rule withholds it: then alpha describes these runs and no more; else
    that of `form`, the law with or without a floor that is reported), form, E, refusals, warnings, figure (the path).

    Raises UserError for an entry that lacks a key or holds a number that is not above 0, for fewer than two sizes, and
    where `out` cannot be written.
    """
    points = _points(ablation_results)
    fit = fit_scaling(points, COUNT)
    if len(fit.sizes) < 2:
        raise UserError(
            f"ablation_results hold {len(fit.sizes)} different n_params with a finite loss; give 2 or more, and 5 for "
            "an exponent that can be reported."
        )
    path = _draw(fit, points, Path(out))
    known = any(size.seeds > 1 for size in fit.sizes)
    found = {
        "alpha": fit.pure.alpha,
        "alpha_low": fit.pure.alpha_low if known else None,
        "alpha_high": fit.pure.alpha_high if known else None,
        "a": fit.pure.a,
        "kaplan_alpha": KAPLAN_ALPHA,
        "ratio": fit.kaplan_ratio,
        "n_params_counts": COUNT,
        "sizes": len(fit.sizes),
        "exponent": fit.exponent,
        "form": fit.form,
        "E": fit.law.E,
        "refusals": list(fit.refusals),
        "warnings": list(fit.warnings),
        "figure": str(path),
    }
    print(_told(found, fit))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _points(results: Sequence[Mapping[str, Any]]) -> list[Point]:
    if isinstance(results, Mapping | str) or not isinstance(results, Sequence):
        raise UserError(f"ablation_results is a {type(results).__name__}; give a list of dicts, one a run.")
    points = []
    for i, entry in enumerate(results):
        if not isinstance(entry, Mapping):
            raise UserError(f"Entry {i} of ablation_results is a {type(entry).__name__}; give a dict.")
        for key in ("n_params", "final_val_loss"):
            if key not in entry:
                raise UserError(f"Entry {i} of ablation_results has no {key!r}; give it n_params and final_val_loss.")
        n, loss = entry["n_params"], entry["final_val_loss"]
        if not _is_number(n) or not (n > 0 and math.isfinite(n)):
            raise UserError(f"n_params of entry {i} is {n!r}; it must be a number of parameters above 0.")
        if loss is not None and (not _is_number(loss) or loss <= 0):
            raise UserError(f"final_val_loss of entry {i} is {loss!r}; it must be nats a token, above 0, or None.")
        seed = entry.get("seed", 0)
        points.append(
            Point(
                n_params={COUNT: int(n)},
                loss=None if loss is None else float(loss),
                seed=int(seed) if isinstance(seed, Integral) else 0,
            )
        )
    return points


def _draw(fit: ScalingFit, points: Sequence[Point], path: Path) -> Path:
    from matplotlib.figure import Figure

    from minilm.report.canvas import save_png, sheet
    from minilm.report.scaling_panels import draw_pure, runs_of

    plain = json.loads(json.dumps(asdict(fit)))
    runs = runs_of([asdict(p) for p in points], COUNT)
    with sheet():
        figure = Figure(figsize=(7.6, 5.2))
        axes = figure.add_axes((0.1, 0.12, 0.86, 0.68))
        title = f"L ~ N^-{fit.pure.alpha:.3f}, {fit.kaplan_ratio:.2f} times Kaplan's {KAPLAN_ALPHA}"
        figure.text(0.02, 0.94, title, fontsize=16, parse_math=False)
        under = "descriptive of these runs: a rule withholds the exponent"
        if fit.exponent is not None:
            floor = " of the law with a floor" if fit.form == "offset" else ""
            under = f"the exponent reported{floor} is {fit.exponent:.3f}"
        figure.text(0.02, 0.89, under, fontsize=11, parse_math=False)
        draw_pure(axes, plain, *runs)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(figure, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); name another file.") from None
    return path


def _told(found: dict[str, Any], fit: ScalingFit) -> str:
    known = ""
    if found["alpha_low"] is not None or found["alpha_high"] is not None:
        known = f" (95% interval {interval(found['alpha_low'], found['alpha_high'])})"
    lines = [
        f"alpha, pure power law:  {found['alpha']:.4f}{known}",
        f"Kaplan et al. 2020:     {KAPLAN_ALPHA}",
        f"ratio:                  {found['ratio']:.2f}",
        "n_params is taken to be non-embedding parameters: by another count these numbers would be others. Results of "
        "one n_params are taken to be seeds of one model.",
        "",
    ]
    if fit.exponent is None:
        lines += ["This alpha describes these runs only. No exponent is reported, because:"]
        lines += [f"- {reason}" for reason in fit.refusals]
    elif fit.form == "offset":
        law = fit.offset
        floor = f"with a floor, E = {law.E:.3f} nats a token ({interval(law.E_low, law.E_high)})"
        lines += [f"The exponent reported is {fit.exponent:.4f} ({interval(law.alpha_low, law.alpha_high)}), {floor}."]
    else:
        lines += ["No floor is found, so alpha is the exponent reported."]
    lines += [f"Warning: {warning}" for warning in fit.warnings]
    lines += ["", "Why it differs from Kaplan's, or agrees by chance:"]
    lines += [f"- {subject}. {why}" for subject, why in kaplan_why(asdict(fit), [], None)]
    return "\n".join([*lines, "", f"Figure: {found['figure']}"])
