"""`minilm tune`: kernels.tune at the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from minilm.errors import UserError


def tune(ops: Sequence[str], minutes: float | None, commit: bool, console: Console | None = None) -> Path:
    """Tune, say each outcome, and return the table that was written. Raises UserError where it cannot be done."""
    console = console or Console()
    if importlib.util.find_spec("triton") is None:
        raise UserError("Tuning measures Triton kernels and the triton package is not installed; it exists for Linux.")
    from kernels.fused import tuning
    from kernels.tune import Outcome, TuneError
    from kernels.tune import tune as search

    def say(outcome: Outcome) -> None:
        config = " ".join(f"{name.removeprefix('num_')} {value}" for name, value in outcome.chosen.items())
        change = "kept" if outcome.chosen == outcome.before else f"{outcome.speedup:.2f}x faster"
        times = " ".join(f"{ms * 1e3:.1f}" for ms in outcome.chosen_ms)
        console.print(
            f"{outcome.problem}: {config}, {times} us, {change} (of {len(outcome.problem.candidates)} candidates "
            f"{outcome.timed} timed, {len(outcome.refused)} refused)", highlight=False, soft_wrap=True,
        )  # fmt: skip

    try:
        path = None
        if commit and torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            path = tuning.COMMITTED / f"sm_{major}{minor}.json"
        path, _ = search(path, ops, minutes, say)
    except (TuneError, tuning.TuningError) as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"The table cannot be written ({error}); set MINILM_DATA to a folder that can be.") from None
    console.print(f"Table: {path}", highlight=False, soft_wrap=True)
    return path
