"""Many trainings: comparisons, races, scaling laws, and what a training comes to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from minilm.cli.options import FOLDER, KERNELS
from minilm.errors import UserError


@click.command()
@click.option("--study", help="Whose shape: quick (default; minutes on two cores) or capstone (hours on a GPU).")
@click.option(
    "--axes", help="Of depth, width, activation, norm, norm_type, position, warmup, kernels (default: the study's)."
)
@click.option(
    "--axis", "fields", multiple=True, metavar="FIELD=V1,V2", help="Any other setting, such as dropout=0,0.1."
)
@click.option("--cross", help="Axes of which every combination is an arm, such as norm,warmup,depth.")
@click.option("--baseline", help="Preset that the arms start from (default: the study's).")
@click.option("--data", help="Text to train on: see minilm prepare -h.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer updates a trial.")
@click.option("--seeds", type=click.IntRange(1), help="Seeds an arm (default 3).")
@click.option("--match", type=click.Choice(["params", "none"]), help="params: give arms the baseline's size by d_ff.")
@click.option("--lr-triplet", is_flag=True, default=None, help="Try half, one and two times the learning rate an arm.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting of every arm.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trials at a time.")
@click.option("--out", type=FOLDER, help="Study folder (default studies/<study>).")
@click.option("--resume", is_flag=True, help="Go on with the study in --out.")
@click.option("--shard", metavar="I/N", help="Run part I of N of the trials only.")
@click.option(
    "--merge", multiple=True, type=FOLDER, help="Take the results of a copy of this study that ran elsewhere."
)
@click.option("--emit-slurm", type=click.IntRange(1), metavar="N", help="Write STUDY/run.sbatch, an array of N tasks.")
@click.option("--from", "runs", multiple=True, type=FOLDER, help="Report on finished runs or studies; trains nothing.")
def ablate(
    out: Path | None,
    resume: bool,
    jobs: int,
    shard: str | None,
    merge: tuple[Path, ...],
    emit_slurm: int | None,
    runs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Compare ways to train: arms against a baseline, several seeds each, with intervals.

    Writes STUDY/report.html, report.md, table.csv, result.json and figures. Killed at any moment, the same command with
    --resume goes on, and the table ends the same.

    \b
    minilm ablate                                       depth, width, activation, norm, kernels on little stories
    minilm ablate --axes kernels                        naive against fused: the same model? how much faster?
    minilm ablate --axis model.dropout=0.1,0.2 --data my.txt --steps 500 --seeds 5
    minilm ablate --out studies/quick --resume
    minilm ablate --from runs/a --from runs/b --out studies/mine
    """
    from rich.console import Console

    from minilm.studies import study

    console = Console()
    out = out or Path("studies") / (options["study"] or study.QUICK)
    if runs:
        study.report_runs(runs, out, console)
        return
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: _words(given[name]) for name in ("axes", "cross") if name in given}
    plan = study.Plan(**given)
    if emit_slurm:
        path = study.write_slurm(study.plan_study(out, plan, resume), emit_slurm)
        console.print(f"Written: {path}; submit it by sbatch {path}", highlight=False, soft_wrap=True)
    elif not study.ablate(out, plan, resume, jobs, _shard(shard), merge, console):
        sys.exit(130)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UserError(f"--shard is {text!r}; it must be I/N with I from 1 to N, such as 1/2.")
    return int(number), int(of)


@click.command()
@click.argument("sources", nargs=-1, type=FOLDER)
@click.option("--sizes", help="Of the ladder, each LAYERSxWIDTH: 2x32,3x48,3x64,4x80,4x112,5x128 by default.")
@click.option("--steps", help="Optimizer updates; several, such as 100,200,400, fit loss against size and data.")
@click.option("--flops", help="Compute budgets instead of steps, such as 1e11,3e11,1e12: an IsoFLOP fit.")
@click.option(
    "--count",
    type=click.Choice(["non_embedding", "total", "matrices_and_head"]),
    default="non_embedding",
    show_default=True,
    help="Which count of parameters the law is in.",
)
@click.option("--baseline", help="Preset that the sizes are made of (default: quick's little sister).")
@click.option("--data", help="Text to train on: see minilm prepare -h.")
@click.option("--seeds", type=click.IntRange(1), help="Seeds a size (default 3).")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting of every size.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trials at a time.")
@click.option("--out", type=FOLDER, default=Path("studies/scale"), show_default=True, help="Study folder.")
@click.option("--resume", is_flag=True, help="Go on with the ladder in --out.")
@click.option("--shard", metavar="I/N", help="Run part I of N of the trials only.")
def scale(
    sources: tuple[Path, ...],
    sizes: str | None,
    steps: str | None,
    flops: str | None,
    count: str,
    jobs: int,
    out: Path,
    resume: bool,
    shard: str | None,
    **options: Any,
) -> None:
    """Fit a scaling law to a ladder of sizes, or say why it cannot be.

    Without SOURCES a ladder is trained; with them, finished runs or the depth and width arms of studies are read.

    \b
    minilm scale                                  six sizes, three seeds, minutes on two cores
    minilm scale studies/quick --out reports/law  what an ablation's sizes say
    minilm scale --steps 100,200,400              loss against size and data
    """
    from rich.console import Console

    from minilm.studies import ladder, study

    plan = study.Plan(**{name: value for name, value in options.items() if value is not None})
    counts = [int(n) for n in _numbers(steps, "--steps", whole=True)]
    budgets = _numbers(flops, "--flops")
    named = _words(sizes)
    if not ladder.scale(sources, out, plan, named, counts, budgets, count, resume, jobs, _shard(shard), Console()):
        sys.exit(130)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _numbers(text: str | None, option: str, whole: bool = False) -> list[float]:
    found = []
    for word in _words(text):
        try:
            value = float(word)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf") or (whole and value != int(value)):
            kind = "whole numbers above 0" if whole else "numbers above 0"
            raise UserError(f"{option} is {text!r}; it must be {kind}, separated by commas.")
        found.append(value)
    return found


@click.command()
@click.option("--params", type=float, help="Parameters of the model.")
@click.option("--flops", type=float, help="Floating-point operations of the whole training.")
@click.option("--tokens", type=float, help="Tokens to train on.")
@click.option("--chip", default="H100", show_default=True, help="Whose time is told, such as A100, H100 or RTX 4090.")
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Share of the chip's peak that is reached.")
@click.option("--preset", help="Of which the memory of training and of the cache is told as well.")
def budget(**options: Any) -> None:
    """What a training of some size, data or compute comes to: the optimal split, hours, memory.

    \b
    minilm budget --params 124e6
    minilm budget --flops 1e19 --chip A100 --mfu 0.35
    minilm budget --tokens 3e8 --preset capstone
    """
    from minilm.studies.calculator import tell_budget

    tell_budget(**options)


@click.command()
@click.option("--recipes", help="Presets, the baseline first (default: nanoGPT's recipe for this device, and ours).")
@click.option("--target", type=click.FloatRange(0, min_open=True), help="The validation loss that counts, in nats.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--data", "source", help="Another text than Tiny Shakespeare, such as a copy of it.")
@click.option("--device", default="auto", show_default=True)
@click.option("--kernels", type=KERNELS, default="auto", show_default=True)
@click.option("--beside", multiple=True, type=FOLDER, help="A finished run folder to draw too; may be repeated.")
@click.option("--out", type=FOLDER, default=Path("races/race"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the race in --out.")
def race(**options: Any) -> None:
    """Train recipes in turn on this machine: how long does each take to a loss?

    \b
    minilm race                                               nanoGPT's recipe against ours, three seeds each
    minilm race --data input.txt --out races/offline          ... with a copy of the text, where there is no network
    minilm race --recipes quick,tiny --target 1.5 --data fables
    """
    from minilm.studies.racing import run_race

    run_race(**options)
