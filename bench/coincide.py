"""Is it the same model before and after what makes training faster or smaller?

    python -m bench.coincide --out results/coincide [--preset quick] [--steps 400] [--seeds 5] [--resume]
    python -m bench.coincide --out results/coincide --preset capstone --steps 200 --set data.characters=4000000 \
        --dtype bfloat16 --arms "triton kernels,all" --jobs 5        on a GPU: what a default training is held against

From naive training (the reference, float32, eager) each of these is switched on alone, then all together: the fused
kernels, 16-bit products, torch.compile, activations computed again; on a GPU also the Triton kernels, which are then
those of all together, and CUDA graphs, alone only. --arms takes some of them; --dtype bfloat16 has naive training, and
so every arm, in 16 bits; --jobs trains several at once, on one GPU too.
The same seeds, batches and schedules; trials go on where they were killed, and the folder has a study's report with all
curves. What decides is the equivalence test of `minilm ablate --axes kernels`, with its margin: paired by seed, is the
mean difference of the final validation losses within it? Beside it the largest difference of any two training losses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import kernels
from bench.tables import plain_table
from minilm import hardware
from minilm.config import parse_assignment
from minilm.errors import UserError
from minilm.presets import CAPSTONE, PRESETS
from minilm.studies import design, statistics
from minilm.studies.ablation import MARGIN, largest_difference
from minilm.studies.design import Arm
from minilm.studies.study import Plan, baseline_of, report_study
from minilm.studies.trials import FAILED, Outcome, Study, run_trials

AXIS = "speed and memory"
RESULT = "coincide.json"


def arms_of(
    preset: str,
    steps: int,
    data: str | None,
    device: torch.device,
    dtype: str = "float32",
    assignments: Sequence[str] = (),
    only: Sequence[str] = (),
) -> list[Arm]:
    """Naive training first, then the arms named in `only`, or all. assignments: section.key=value, of every arm.

    Raises UserError for a name that no arm has, and for an assignment of what the arms differ in."""
    naive = {"kernels": "reference", "graphs": "off", "dtype": dtype, "compile": "off", "device": str(device)}
    ours = {"checkpoint_activations", *naive}
    for assignment in assignments:
        section, key, _ = parse_assignment(assignment)
        if section == "train" and key in ours:
            raise UserError(f"--set {assignment}: {section}.{key} is what the arms set; choose among them by --arms.")
    fixed = tuple(f"train.{key}={value}" for key, value in naive.items())
    # of the study that leaves its baseline as large as the preset has it
    plan = Plan(study=CAPSTONE, baseline=preset, steps=steps, data=data, assignments=(*assignments, *fixed))
    base = baseline_of(plan)
    best = "triton" if "triton" in kernels.available(device) and device.type == "cuda" else "torch"
    alone: dict[str, dict[str, Any]] = {
        "torch kernels": {"kernels": "torch"},
        **({"triton kernels": {"kernels": "triton"}} if best == "triton" else {}),
        **({"bfloat16": {"dtype": "bfloat16"}} if dtype != "bfloat16" else {}),
        "compiled": {"compile": "on"},
        **({"graphs": {"graphs": "on"}} if device.type == "cuda" else {}),
        "activations again": {"checkpoint_activations": True},
    }
    together = {"kernels": best, "dtype": "bfloat16", "compile": "on", "checkpoint_activations": True}
    known = alone | {"all": together}
    if unknown := [name for name in only if name not in known]:
        raise UserError(f"--arms names {unknown[0]!r}; here there are {', '.join(known)}.")
    return [
        Arm(design.BASELINE, design.BASELINE, base),
        *(Arm(label, AXIS, design.changed(base, {"train": known[label]})) for label in only or known),
    ]


def verdicts(outcomes: Sequence[Outcome], folders: Mapping[str, Path], margin: float = MARGIN) -> list[dict[str, Any]]:
    """A row an arm: the test, and the largest difference at one step and seed. An arm of which a trial failed is not
    judged, and nothing is where a trial of naive training failed: UserError."""
    arms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.axis != design.CONTROL:
            arms.setdefault(outcome.arm, []).append(outcome)
    naive = arms.pop(design.BASELINE)
    if failed := [o for o in naive if o.status == FAILED]:
        raise UserError(f"Naive training failed ({failed[0].reason}); --resume tries it again.")
    found = []
    for label, side in arms.items():
        losses = [[(o.seed, o.val_loss) for o in trials] for trials in (naive, side)]
        test = statistics.equivalence(*losses, margin)
        failed = next((o for o in side if o.status == FAILED), None)
        found.append(
            {"arm": label, "seeds": test.n, "difference": test.difference, "low": test.low, "high": test.high}
            | {"margin": margin, "p": test.p, "verdict": f"failed: {failed.reason}" if failed else test.verdict}
            | {"largest_difference": largest_difference(naive, side, folders)}
        )
    return found


def table_of(rows: Sequence[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    def number(value: float | None, sign: str = "+") -> str:
        return "" if value is None else f"{value:{sign}.5f}"

    head = ["switched on", "seeds", "difference", "90% interval", "p", "largest at a step", "verdict"]
    cells = [
        [row["arm"], str(row["seeds"]), number(row["difference"])]
        + [f"{number(row['low'])} to {number(row['high'])}" if row["low"] is not None else ""]
        + ["" if row["p"] is None else f"{row['p']:.2g}", number(row["largest_difference"], ""), row["verdict"]]
        for row in rows
    ]
    return f"Final validation loss against naive training, nats, margin {rows[0]['margin']:g}", head, cells


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.coincide", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="quick")
    parser.add_argument("--data", help="another text than the preset's")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", help="names separated by commas; all where not given")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of naive training")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of every arm")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args(arguments)
    if a.seeds < 1 or a.steps < 1:
        parser.error(
            f"--seeds is {a.seeds} and --steps {a.steps}; both must be at least 1, and 3 seeds to judge anything"
        )
    if a.jobs < 1:
        parser.error(f"--jobs is {a.jobs}; it must be at least 1")
    console = Console(highlight=False, soft_wrap=True)
    only = [name.strip() for name in (a.arms or "").split(",") if name.strip()]
    try:
        arms = arms_of(a.preset, a.steps, a.data, hardware.resolve_device(a.device), a.dtype, a.set, only)
        trials = design.trials_of(arms, range(1, a.seeds + 1), lr_triplet=False)
        options = {
            name: getattr(a, name) for name in ("preset", "data", "steps", "seeds", "device", "dtype", "arms", "set")
        }
        study = Study.create(a.out, options, trials, a.resume)
        if not run_trials(study, a.jobs, say=console.print):
            console.print("Stopped, and saved; go on with --resume.")
            return 1
        report_study(study, console)
        rows = verdicts(study.outcomes(), {row["id"]: study.folder(row["id"]) for row in study.rows})
        (a.out / RESULT).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        console.print(plain_table(*table_of(rows)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
