"""The figures of a training run: what the loss, the validation loss, the learning rate and the gradient norm did,
step by step, as one PNG."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minilm.errors import UserError
from minilm.report import panels
from minilm.report.canvas import save_png, sheet
from minilm.report.panels import Curves, Reference


def plot_training_report(
    metrics: Mapping[str, Any],
    config_name: str = "capstone",
    out_dir: str | Path = ".",
    *,
    floor: float | None = None,
    grad_clip: float | None = None,
    baselines: Iterable[tuple[str, float]] = (),
    unit: str = "token",
) -> Path:
    """Writes training_report_<config_name>.png (150 dpi, four panels) into out_dir and returns its path.

    metrics holds train_losses, lrs and grad_norms, one number a step, and val_losses, one number an evaluation, the
    k-th of them after k * eval_interval steps from k = 0 (eval_interval 250 unless metrics names it), or at val_steps
    where metrics holds that list. Any of them may be empty, and any value may be None, NaN or infinite. floor and
    baselines, (label, loss) pairs, are nats per token. Raises UserError when metrics holds none of the four lists, or
    something in them is no number.
    """
    if not re.fullmatch(r"[^/\\\0]+", str(config_name)):
        raise UserError(f"config_name {str(config_name)!r} cannot be part of a file name; give a name without slashes.")
    path = Path(out_dir) / f"training_report_{config_name}.png"
    curves = curves_from_metrics(metrics)
    reference = Reference(floor, tuple(baselines), grad_clip, unit)
    with sheet():
        figure = four_panels(curves, reference, title=str(config_name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(figure, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); name another folder.") from None
    return path


def curves_from_metrics(metrics: Mapping[str, Any]) -> Curves:
    """The curves of the dict that plot_training_report takes."""
    keys = ("train_losses", "val_losses", "lrs", "grad_norms")
    if not isinstance(metrics, Mapping) or not any(key in metrics for key in keys):
        raise UserError(
            f"The metrics hold none of {', '.join(keys)}; give a dict with these lists, one number a step in each."
        )
    values = {key: _numbers(metrics, key) for key in keys}
    interval = metrics.get("eval_interval", 250)
    if not isinstance(interval, int | np.integer) or interval < 1:
        raise UserError(
            f"eval_interval is {interval!r}; give the whole number of steps between two evaluations, 1 or more."
        )
    if metrics.get("val_steps") is None:
        val_steps = interval * np.arange(len(values["val_losses"]), dtype=float)
    else:
        val_steps = _numbers(metrics, "val_steps")
    if len(val_steps) != len(values["val_losses"]):
        raise UserError(
            f"val_steps holds {len(val_steps)} steps for {len(values['val_losses'])} val_losses; give one step a loss."
        )
    train, lr, grad_norm = (
        (1.0 + np.arange(len(y)), y) for y in (values["train_losses"], values["lrs"], values["grad_norms"])
    )
    return Curves(train=train, val=(val_steps, values["val_losses"]), lr=lr, grad_norm=grad_norm)


def four_panels(curves: Curves, reference: Reference, title: str) -> Figure:
    """Training loss, validation loss, learning rate and gradient norm on one sheet."""
    figure = Figure(figsize=(12, 8.2))
    grid = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.065, right=0.915, top=0.84, bottom=0.065, wspace=0.32, hspace=0.46)
    figure.text(0.065, 0.95, title, fontsize=17, parse_math=False)
    drawn = (
        ("Training loss", lambda axes: panels.draw_training_loss(axes, curves.train, reference)),
        ("Validation loss", lambda axes: panels.draw_validation_loss(axes, curves.val, reference)),
        ("Learning rate", lambda axes: panels.draw_learning_rate(axes, curves.lr)),
        ("Gradient norm", lambda axes: panels.draw_gradient_norm(axes, curves.grad_norm, reference.grad_clip)),
    )
    for axes, (name, draw) in zip(grid.flat, drawn, strict=True):
        draw(axes)
        axes.set_title(name, loc="left", fontsize=13, pad=44 if len(axes.get_legend_handles_labels()[1]) > 2 else 26)
    return figure


def _numbers(metrics: Mapping[str, Any], key: str) -> np.ndarray:
    values = metrics.get(key)
    try:
        numbers = [math.nan if value is None else float(value) for value in (() if values is None else values)]
    except (TypeError, ValueError):
        raise UserError(
            f"{key} holds something that is no number; give a list of numbers, None or NaN where one is missing."
        ) from None
    found = np.array(numbers, dtype=float)
    return np.where(np.isfinite(found), found, np.nan)
