"""What the command and the Python call share: from settings to a trained run that is compared and reported."""

from __future__ import annotations

import dataclasses
import io
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from minilm import config as configuration
from minilm.errors import UserError
from minilm.presets import CAPSTONE, QUICK
from minilm.training.journal import newest_run_folder, next_run_folder, read_config
from minilm.training.loop import Result, train

Settings = dict[str, dict[str, Any]]  # {section: {key: value}}


def train_and_report(
    preset: str | None,
    settings: Settings,
    out: Path | None = None,
    init: Path | None = None,
    resume: bool = False,
    baselines: bool = True,
    report: bool = True,
    console: Console | None = None,
    command: str = "",
) -> Result:
    """Train as a preset with `settings` over it says, then fit n-gram models to compare with, and write the report.

    preset None: capstone where the device is a GPU, quick elsewhere. out None: runs/<preset>-NNN; with resume, the
    newest of the preset. init: a run, an export or a model of transformers whose weights it begins from. With resume
    the settings are those of the run but for `settings`. Raises UserError for whatever a person can mend.
    """
    console = console or Console()
    start = None
    if init is not None:
        from minilm.interop.intake import read_start

        if resume:
            raise UserError("--resume goes on with what the run began from; leave --init out.")
        start = read_start(init)
        start.check_changes(settings)
        settings = settings | {"model": dataclasses.asdict(start.model) | settings.get("model", {})}
    if resume:
        out = out or newest_run_folder(preset or default_preset(settings))
        saved = read_config(out)
        sections = {s: dataclasses.replace(getattr(saved, s), **settings.get(s, {})) for s in configuration.SECTIONS}
        config = configuration.RunConfig(preset or saved.preset, **sections)
    else:
        preset = preset or default_preset(settings)
        config = configuration.build(preset, settings)
        out = out or next_run_folder(preset)
    result = train(config, out, resume, console, command, start, draw_curves)
    if result.signal is None and result.first:
        say_what_was_reached(result.path, console, baselines, report)
    return result


def default_preset(settings: Settings) -> str:
    from minilm.hardware import resolve_device

    device = resolve_device(settings.get("train", {}).get("device", "auto"))
    return CAPSTONE if device.type == "cuda" else QUICK


def draw_curves(run_dir: Path) -> bytes:
    """The four curves of a run as the report shows them, PNG."""
    from minilm.report import figures, words
    from minilm.report.canvas import save_png, sheet
    from minilm.report.runs import read_run
    from minilm.report.views import curves_of, reference_of

    run, png = read_run(run_dir), io.BytesIO()
    with sheet():
        save_png(figures.four_panels(curves_of(run), reference_of(run), words.visible(run.name)), png, dpi=100)
    return png.getvalue()


def say_what_was_reached(run: Path, console: Console, baselines: bool, report: bool) -> None:
    from minilm.report.runs import read_run
    from minilm.report.summary import print_summary

    if baselines:
        try:
            with console.status("Fitting n-gram models to compare with ..."):
                from minilm.sampling.baselines import write_baselines

                write_baselines(run)
        except UserError as error:
            console.print(f"No n-gram comparison: {error}", highlight=False)
    print_summary(read_run(run), console)
    if report:
        from minilm.report.page import write_report

        with console.status("Drawing the report ..."):
            page = write_report([run])
        console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    console.print(
        f"Write with it: minilm generate --run {shlex.quote(str(run))} --stream", highlight=False, soft_wrap=True
    )
