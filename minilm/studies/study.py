"""`minilm ablate`: from options to a study folder, its trials run, and its report."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import kernels
from minilm.config import PRESETS, RunConfig, build, parse_assignment
from minilm.errors import UserError
from minilm.hardware import resolve_device
from minilm.studies import design
from minilm.studies.trials import FINISHED, Study, from_runs, run_trials

# The shape of a whole study at two sizes: `minilm ablate --study quick`. quick: two CPU cores, under 15 minutes.
STUDIES: dict[str, dict[str, Any]] = {
    "quick": {
        "baseline": "quick",
        "axes": ["depth", "width", "activation", "norm", "kernels"],
        "set": {
            "model": {"n_layers": 2, "d_model": 64, "n_heads": 2, "context_length": 64},
            "train": {"steps": 200, "warmup_steps": 20},
            "data": {"characters": 1_000_000},
        },
        "eval_tokens": 16_384,
    },
    "capstone": {
        "baseline": "capstone",
        "axes": ["depth", "width", "activation", "norm", "norm_type", "position", "warmup", "kernels"],
        "set": {"train": {"steps": 10_000}},
        "eval_tokens": 0,
    },
}
QUICK = "quick"


@dataclass(frozen=True)
class Plan:
    """What a study is to be, as the command line says it."""

    study: str = QUICK
    axes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()
    baseline: str | None = None
    data: str | None = None
    steps: int | None = None
    seeds: int = 3
    match: str = "none"
    lr_triplet: bool = False
    assignments: tuple[str, ...] = ()


def baseline_of(plan: Plan) -> RunConfig:
    """The configuration that all arms start from: its vocabulary that of the data, its kernels by name.

    Trials write no samples and no kept steps, and validate five times: a study is about losses.
    """
    from minilm.corpus.dataset import prepared
    from minilm.training.facts import with_vocabulary

    if plan.study not in STUDIES:
        raise UserError(f"There is no study {plan.study!r}; there are {', '.join(STUDIES)}.")
    whole = STUDIES[plan.study]
    if plan.baseline is not None and plan.baseline not in PRESETS:
        raise UserError(f"--baseline is {plan.baseline!r}; there are {', '.join(PRESETS)}.")
    own = plan.baseline in (None, whole["baseline"])  # else that preset as it is
    overrides = {s: dict(values) for s, values in (whole["set"] if own else {}).items()}
    train = overrides.setdefault("train", {})
    train |= {"sample_interval": 0, "save_at": "", "eval_tokens": whole["eval_tokens"]}
    if plan.steps is not None:
        train["steps"] = plan.steps
        warmup = PRESETS[plan.baseline or whole["baseline"]].get("train", {}).get("warmup_steps", 100)
        train["warmup_steps"] = min(train.get("warmup_steps", warmup), plan.steps // 10)
    if plan.data is not None:
        overrides.setdefault("data", {})["source"] = plan.data
        overrides["data"].pop("characters", None)
    for assignment in plan.assignments:
        section, key, value = parse_assignment(assignment)
        overrides.setdefault(section, {})[key] = value
    config = build(plan.baseline or whole["baseline"], overrides)
    steps = config.train.steps
    backend, _ = kernels.explain(config.train.kernels, resolve_device(config.train.device))
    if "kernels" in (plan.axes or whole["axes"]) and config.train.kernels == "auto":
        backend = design.NAIVE  # what the others are held against
    compiled = "off" if config.train.compile == "auto" else config.train.compile  # the same for every arm
    train_config = dataclasses.replace(
        config.train,
        kernels=backend,
        compile=compiled,
        eval_interval=max(1, steps // 5),
        checkpoint_interval=max(1, steps // 5),
    )
    return with_vocabulary(dataclasses.replace(config, train=train_config), prepared(config.data))


def plan_study(path: Path, plan: Plan, resume: bool) -> Study:
    """The study folder of a plan: made, or found again. Raises UserError for what cannot be compared."""
    if plan.seeds < 1:
        raise UserError(f"--seeds is {plan.seeds}; it must be at least 1, and at least 3 to judge anything.")
    base = baseline_of(plan)
    axes = plan.axes or (() if plan.fields or plan.cross else tuple(STUDIES[plan.study]["axes"]))
    arms = design.arms_of(base, axes, plan.fields, plan.cross, plan.match)
    if "kernels" in axes:
        arms += design.speed_arms(base)
    trials = design.trials_of(arms, range(1, plan.seeds + 1), plan.lr_triplet)
    return Study.create(path, dataclasses.asdict(plan), trials, resume)


def ablate(
    path: Path, plan: Plan, resume: bool, jobs: int, shard: tuple[int, int], merge: Sequence[Path], console: Console
) -> bool:
    """Plan, run and report; False where it was stopped before the end."""
    if resume and (path / "study.json").exists() and plan == Plan():
        study = Study(path)
    else:
        with console.status("Reading the data ..."):
            study = plan_study(path, plan, resume)
    for other in merge:
        console.print(f"{study.merge(other)} results taken from {other}", highlight=False)
    rows = study.open_rows(shard)
    if rows:
        arms = len({row["arm"] for row in study.rows})
        console.print(
            f"{study.path}: {len(study.rows)} trials of {arms} arms, {len(rows)} to run here, {jobs} at a time",
            highlight=False,
        )
        say_kernels(study, console)
    going = run_trials(study, jobs, shard, lambda text: console.print(text, highlight=False, soft_wrap=True))
    if not going:
        console.print(f"Stopped, and saved. To go on: minilm ablate --out {shlex.quote(str(path))} --resume")
        return False
    report_study(study, console)
    return True


def say_kernels(study: Study, console: Console) -> None:
    """Which kernels the naive-against-fused arms compare, and why not triton where it cannot run."""
    names = {row["config"]["train"]["kernels"] for row in study.rows if row["axis"] in (design.KERNELS, design.SPEED)}
    if names and "triton" not in names:
        try:
            kernels.explain("triton", resolve_device(study.rows[0]["config"]["train"]["device"]))
        except kernels.BackendUnavailable as error:
            console.print(
                f"Naive against fused is reference against torch here. {error}", highlight=False, soft_wrap=True
            )


def report_study(study: Study, console: Console) -> None:
    """Write the report of what is finished so far, and print its table."""
    from minilm.report.ablation import print_ablation, write_ablation
    from minilm.studies.ablation import analyse

    outcomes = study.outcomes()
    result = analyse(outcomes, {o.id: study.folder(o.id) for o in outcomes})
    page = write_ablation(result, study.path, {o.id: study.folder(o.id) for o in outcomes})
    print_ablation(result, console)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def report_runs(folders: Sequence[Path], out: Path, console: Console) -> None:
    """The same report of finished runs that no study made."""
    from minilm.report.ablation import print_ablation, write_ablation
    from minilm.studies.ablation import analyse

    outcomes = from_runs(folders)
    where = dict(zip((o.id for o in outcomes), _run_folders(folders), strict=True))
    result = analyse(outcomes, where)
    out.mkdir(parents=True, exist_ok=True)
    page = write_ablation(result, out, where)
    print_ablation(result, console)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def _run_folders(folders: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        if (folder / "study.json").exists():
            study = Study(folder)
            found += [study.folder(o.id) for o in study.outcomes() if o.status == FINISHED]
        else:
            found.append(folder)
    return found


SLURM = """#!/bin/sh
#SBATCH --job-name={name}
#SBATCH --array=1-{shards}
#SBATCH --output="{path}/slurm-%A_%a.log"
#SBATCH --cpus-per-task={cpus}
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
# One part of the study a task; each goes on where it was stopped. SIGTERM comes a minute before the time limit, and the
# trial in hand is then saved. On a cluster with GPUs add: #SBATCH --gpus-per-task=1
# When all have ended, the report: {command} --resume
cd {cwd} || exit 1
trap 'kill -TERM "$child"' TERM
{command} --resume --shard "$SLURM_ARRAY_TASK_ID/{shards}" &
child=$!
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done
exit "$status"
"""


def write_slurm(study: Study, shards: int) -> Path:
    """STUDY/run.sbatch: an array job over the parts of the study, by this very Python, at most four cores a task."""
    path = study.path / "run.sbatch"
    command = shlex.join([sys.executable, "-m", "minilm", "ablate", "--out", str(study.path.resolve())])
    text = SLURM.format(
        name=study.path.name, shards=shards, cpus=min(4, os.cpu_count() or 1), path=study.path.resolve(),
        command=command, cwd=shlex.quote(str(Path.cwd())),
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")
    return path
