"""The report of one run, or of several side by side: report.html, report.md and a PNG of each run's curves.

The page is one file that asks for nothing else: no script, no font, no address. What is written depends on the run
folders alone, so the same folders give the same bytes.
"""

import math
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from minilm.errors import UserError
from minilm.report import figures, learning, panels, words
from minilm.report.canvas import DARK, LIGHT, save_png, sheet, svg
from minilm.report.plates import save_plate
from minilm.report.runs import Run, read_run
from minilm.report.views import curves_of, reference_of, view_of

ALIKE = "All runs read the same text with the same tokenizer."
NOT_ALIKE = (
    "The runs differ in text or tokenizer: only bits a byte can be compared, and only where the text is the same."
)
TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dirs: Sequence[str | Path], out_dir: str | Path | None = None) -> Path:
    """Writes report.html, report.md and training_report_<name>.png for each run, and returns the path of report.html.

    One run is reported into its own folder unless out_dir is given, several into `report/` in the folder that they
    share. Raises UserError for a folder that is no run.
    """
    if not run_dirs:
        raise UserError("No run was named; give at least one folder that `minilm train` wrote.")
    runs = [read_run(path) for path in run_dirs]
    if out_dir is None:
        shared = os.path.commonpath([run.path.resolve() for run in runs])
        out_dir = runs[0].path if len(runs) == 1 else Path(shared) / "report"
    out_dir = Path(out_dir)
    views = [view_of(run, slug, f"r{index}") for index, (run, slug) in enumerate(zip(runs, _slugs(runs), strict=True))]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    comparison = _comparison(runs, views) if len(runs) > 1 else None
    page = {"title": title, "views": views, "comparison": comparison, "light": LIGHT, "dark": DARK}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for run, view in zip(runs, views, strict=True):
            with sheet():
                figure = figures.four_panels(curves_of(run), reference_of(run), words.visible(run.name))
                save_png(figure, out_dir / view["png"])
            for plate in learning.plates_of(run):
                save_plate(plate, out_dir / learning.file_of(plate, view["slug"]))
        for name in ("report.html", "report.md"):
            text = environment(name).get_template(name).render(page)
            (out_dir / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"The report cannot be written to {out_dir} ({error.strerror}); name another folder.") from None
    return out_dir / "report.html"


def _comparison(runs: list[Run], views: list[dict[str, Any]]) -> dict[str, Any]:
    """Validation curves on one sheet: in nats per token where all runs share their tokens, in bits per byte where
    they do not."""
    texts = {(run.facts.get("data_sha256"), run.unit, run.model.get("vocab_size")) for run in runs}
    alike = len(texts) == 1 and all(sha for sha, *_ in texts)

    def measure(run: Run, row: dict[str, Any]) -> float:
        return row["val_loss"] if alike else run.bits_of(row)

    unit = f"nats per {runs[0].unit}" if alike else "bits per byte"
    floors = {run.floor if alike else run.floor_bits_per_byte for run in runs}
    reference = panels.Reference(floor=floors.pop() if len(floors) == 1 else None)
    longest = max((run.wall for run in runs if math.isfinite(run.wall)), default=0)
    clocks = ((3600, "hours"), (60, "minutes"))
    second, clock = next((choice for choice in clocks if longest > 5 * choice[0]), (1, "seconds"))
    plots = []
    for key, scale, name in (("tokens", 1, "tokens read"), ("wall", second, f"{clock} of training")):
        series = [
            (run.column("val_loss", key)[0] / scale, np.array([measure(run, row) for row in run.eval_rows]))
            for run in runs
        ]
        draw = partial(panels.draw_comparison, runs=series, against=name, ylabel=unit, reference=reference)
        title = "Against tokens" if key == "tokens" else "Against time"
        plots.append({"title": title, "svg": Markup(svg(draw, f"c{key}", f"Validation loss of each run by {name}"))})
    best = min((measure(run, run.best) for run in runs if run.best), default=math.nan)
    rows = []
    for index, (run, view) in enumerate(zip(runs, views, strict=True)):
        role, dashes = panels.run_style(index)
        cells = (
            words.loss(run.best and run.best["val_loss"]),
            words.loss(run.best and run.bits_of(run.best)),
            words.short(run.parameters.get("total")),
            words.short(run.tokens),
            words.duration(run.wall),
            words.short(run.tokens_per_second),
            str(run.facts.get("kernels") or words.NOT_KNOWN),
        )
        is_best = bool(run.best) and measure(run, run.best) == best
        row = {"name": run.name, "slug": view["slug"], "role": role, "dashes": dashes, "cells": cells, "best": is_best}
        rows.append(row)
    nats = f"nats a {runs[0].unit}" if alike else "nats a token"
    head = (nats, "bits a byte", "parameters", "tokens", "time", "tokens/s", "kernels")
    return {"figures": plots, "head": head, "rows": rows, "note": ALIKE if alike else NOT_ALIKE}


def _slugs(runs: list[Run]) -> list[str]:
    """A name for each run that a file and an address can hold, told apart where they would be the same."""
    slugs: list[str] = []
    for run in runs:
        plain = re.sub(r"[^\w.-]+", "-", run.name, flags=re.ASCII).strip("-.")[:80] or "run"
        slug, copies = plain, 1
        while slug.lower() in {taken.lower() for taken in slugs}:
            copies += 1
            slug = f"{plain}-{copies}"
        slugs.append(slug)
    return slugs


def environment(name: str) -> jinja2.Environment:
    """Of the templates: "*.html" escapes all that it is given; both show any text as a page can hold it."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        finalize=lambda value: words.visible(value) if type(value) is str else value,
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["cell"] = _cell
    made.filters["fenced"] = _fenced
    return made


def _cell(text: Any) -> str:
    """Text as Markdown shows it unchanged, in a table or out of one."""
    return re.sub(r"([\\`*_|<>\[\]~$&])", r"\\\1", str(text)).replace("\n", " ")


def _fenced(text: str) -> str:
    """Text in a code fence longer than any that it holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
