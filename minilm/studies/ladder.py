"""`minilm scale`: a ladder of sizes, trained or read from finished runs, and the laws that it bears.

A ladder is a study (minilm.studies.trials) whose arms are sizes, written LAYERSxWIDTH, each at the same tokens, or at
several token budgets (--steps 100,200,400: L(N, D)), or at several compute budgets (--flops: IsoFLOP).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from minilm.config import RunConfig
from minilm.errors import UserError
from minilm.report.runs import read_run
from minilm.studies import design, study
from minilm.studies.ablation import at_best_rate
from minilm.studies.budget import fit_chinchilla, fit_isoflop
from minilm.studies.scaling import Point, fit_scaling
from minilm.studies.trials import DIVERGED, FINISHED, MANIFEST, Outcome, Study, outcome_of, run_trials

SIZE = "size"
SIZES = ("2x32", "3x48", "3x64", "4x80", "4x112", "5x128")  # 25k to 980k parameters: 1.6 decades, minutes on two cores
LADDER_STEPS = 300
READ_AXES = (design.BASELINE, "depth", "width", SIZE)  # what a scaling curve may read of an ablation


def trials_of(base: RunConfig, sizes: Sequence[str], steps: Sequence[int], flops: Sequence[float], seeds: int) -> list:
    """Every size at every budget and seed. Raises UserError for a size that cannot be made of the baseline's heads."""
    widths = [_layers_and_width(size)[1] for size in sizes]
    head = next(h for h in (base.model.head_dim, 32, 16, 8) if not any(w % h for w in widths))  # one for all sizes
    found = []
    for seed in range(1, seeds + 1):
        for size in sizes:
            config = _sized(base, size, head)
            for count, note in _budgets(config, steps, flops):
                train = dataclasses.replace(
                    config.train, steps=count, warmup_steps=min(config.train.warmup_steps, count // 10),
                    eval_interval=max(1, count // 5), checkpoint_interval=max(1, count // 5), seed=seed,
                )  # fmt: skip
                arm = f"{size}{note}"
                found.append(design.Trial(arm, SIZE, seed, 1.0, dataclasses.replace(config, train=train)))
    return found


def _budgets(config: RunConfig, steps: Sequence[int], flops: Sequence[float]) -> Iterator[tuple[int, str]]:
    """(steps, what is added to the arm's name) of one size."""
    if not flops:
        for count in steps:
            yield count, f", {count} steps" if len(steps) > 1 else ""
        return
    a_step = design.flops_per_token(config) * config.train.batch_size * config.model.context_length
    for budget in flops:
        count = round(budget / a_step)
        if count < 20:
            raise UserError(
                f"--flops {budget:g} is {count} steps of {config.model.n_layers}x{config.model.d_model}; at least 20 "
                "are needed: leave out that size, or give more."
            )
        yield count, f", {budget:.3g} FLOPs"


def _layers_and_width(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", size.strip())
    if not match or "0" in (match[1], match[2]):
        raise UserError(f"--sizes names {size!r}; a size is LAYERSxWIDTH, such as 4x128.")
    if int(match[2]) % 8:
        raise UserError(f"--sizes names {size!r}; a width must be a multiple of 8.")
    return int(match[1]), int(match[2])


def _sized(base: RunConfig, size: str, head: int) -> RunConfig:
    layers, width = _layers_and_width(size)
    heads, d_ff = width // head, design.scaled_d_ff(base, width)
    model = dataclasses.replace(base.model, n_layers=layers, d_model=width, d_ff=d_ff, n_heads=heads, n_kv_heads=heads)
    return dataclasses.replace(base, model=model)


def read_outcomes(sources: Sequence[Path]) -> list[tuple[Outcome, Path]]:
    """Trials and their run folders: of a study its sizes (baseline, depth and width arms), of runs each."""
    found = []
    for source in sources:
        if (source / MANIFEST).exists():
            whole = Study(source)
            arms: dict[str, list[Outcome]] = {}
            for outcome in whole.outcomes():
                if outcome.axis in READ_AXES:
                    arms.setdefault(outcome.arm, []).append(outcome)
            chosen, _ = at_best_rate(arms)
            found += [(o, whole.folder(o.id)) for outcomes in chosen.values() for o in outcomes]
        else:
            found.append((outcome_of(source, arm=source.name, axis=SIZE), source))
    return found


def point_of(outcome: Outcome, tried: Sequence[float] = ()) -> Point:
    train, data = outcome.config["train"], outcome.config["data"]
    flops = outcome.flops_per_token * outcome.tokens if outcome.flops_per_token and outcome.tokens else None
    return Point(
        n_params=outcome.parameters or {},
        loss=outcome.val_loss if outcome.status == FINISHED else None,
        seed=outcome.seed,
        tokens=outcome.tokens,
        epochs=outcome.epochs,
        lr=train["lr"],
        lr_tried=tuple(tried),
        best_step=outcome.best_step,
        last_step=outcome.steps,
        tokenizer=f"{data['tokenizer']} of {outcome.config['model']['vocab_size']}",
        schedule=f"{train['schedule']}, {train['optimizer']}",
        flops=flops,
    )


def analyse(found: Sequence[tuple[Outcome, Path]], count: str) -> dict[str, Any]:
    """The fits as plain JSON. Raises UserError where there is nothing to fit."""
    ended = [(o, path) for o, path in found if o.status in (FINISHED, DIVERGED) and o.parameters]
    if not ended:
        raise UserError("None of these runs has finished; train some first, or name others.")
    rates: dict[tuple[str, int], set[float]] = {}
    for outcome, _ in found:
        rates.setdefault((outcome.arm, outcome.seed), set()).add(outcome.config["train"]["lr"])
    points = [point_of(o, sorted(rates[o.arm, o.seed])) for o, _ in ended]
    floor = next((f for o, path in ended if o.status == FINISHED and (f := read_run(path).floor)), None)
    budgets = {round(p.tokens, -3) for p in points if p.tokens}
    computes = {f"{p.flops:.1e}" for p in points if p.flops}
    several = len(budgets) > 1
    result = {
        "format": 1,
        "count": count,
        "fit": asdict(fit_scaling(points, count, floor)),
        "law": asdict(fit_chinchilla(points, count)) if several else None,
        "isoflop": asdict(fit_isoflop(points, count)) if several and len(computes) < len(points) / 3 else None,
        "floor": floor,
        "points": [asdict(p) for p in points],
        "trials": [{"id": o.id, "arm": o.arm, "seed": o.seed, "status": o.status} for o, _ in found],
        "source": ended[0][0].config["data"]["source"],
    }
    return json.loads(json.dumps(result))


def scale(
    sources: Sequence[Path],
    path: Path,
    plan: study.Plan,
    sizes: Sequence[str],
    steps: Sequence[int],
    flops: Sequence[float],
    count: str,
    resume: bool,
    jobs: int,
    shard: tuple[int, int],
    console: Console,
) -> bool:
    """Train the ladder unless `sources` are given, fit and report; False where it was stopped before the end."""
    if sources:
        found = read_outcomes(sources)
    else:
        if resume and (path / MANIFEST).exists() and plan == study.Plan():
            whole = Study(path)
        else:
            with console.status("Reading the data ..."):
                base = study.baseline_of(plan)
            trials = trials_of(base, sizes or SIZES, steps or (plan.steps or LADDER_STEPS,), flops, plan.seeds)
            options = {**asdict(plan), "sizes": list(sizes), "steps": list(steps), "flops": list(flops)}
            whole = Study.create(path, options, trials, resume)
        console.print(f"{path}: {len(whole.rows)} trials, {len(whole.open_rows(shard))} to run here", highlight=False)
        if not run_trials(whole, jobs, shard, lambda text: console.print(text, highlight=False, soft_wrap=True)):
            console.print(f"Stopped, and saved. To go on: minilm scale --out {shlex.quote(str(path))} --resume")
            return False
        found = read_outcomes([path])
    from minilm.report.scaling import print_scaling, write_scaling

    result = analyse(found, count)
    path.mkdir(parents=True, exist_ok=True)
    page = write_scaling(result, path)
    print_scaling(result, console)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    return True
