"""`minilm race`: from options to a finished race and its report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from minilm.config import PRESETS
from minilm.errors import UserError
from minilm.report.race import print_race, write_race
from minilm.studies import race
from minilm.studies.trials import Study, run_trials


def run_race(
    recipes: str | None,
    target: float | None,
    seeds: int,
    source: str | None,
    device: str,
    kernels: str,
    beside: Sequence[Path],
    out: Path,
    resume: bool,
) -> None:
    """Train, then report. Exits with 130 after Ctrl-C, with 0 after SIGTERM; what has been trained is kept."""
    console = Console()
    usual, usual_target = race.defaults(device)
    names = tuple(name.strip() for name in recipes.split(",")) if recipes else usual
    if unknown := [name for name in names if name not in PRESETS]:
        raise UserError(f"There is no preset {unknown[0]!r}; --recipes takes some of {', '.join(PRESETS)}.")
    if len(set(names)) < len(names):
        raise UserError(f"--recipes names one twice: {', '.join(names)}.")
    if recipes and target is None:
        raise UserError("--recipes needs a --target, the validation loss that they race to.")
    trials = race.plan(names, seeds, device, kernels, source)
    study = Study.create(out, {"race": list(names), "device": device}, trials, resume)
    stopping: list[int] = []
    say = lambda text: console.print(text, highlight=False, soft_wrap=True)  # noqa: E731
    if not run_trials(study, 1, say=say, stopping=stopping):
        console.print(f"Stopped, and saved. To go on: the same command with --resume --out {out}", highlight=False)
        sys.exit(130 if 2 in stopping else 0)
    found = race.result_of(study, target or usual_target, beside)
    print_race(found, console)
    console.print(f"Report: {write_race(found, out)}", highlight=False, soft_wrap=True)
