"""A race: recipes trained in turn on the machine at hand, and how long each takes to a validation loss.

A race is a study of one arm a recipe (trials.py): whatever is killed goes on. Seeds take turns, so that a machine that
others use too is as slow for one recipe as for the next. Wall time is training time: evaluation, samples and
checkpoints are not in it. What counts is the mean over the seeds at each evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilm.config import build
from minilm.errors import UserError
from minilm.hardware import device_name, resolve_device
from minilm.studies.design import Trial
from minilm.studies.trials import FINISHED, Study
from minilm.training.journal import METRICS, read_json, read_rows

EVALUATIONS = 20  # a training: how finely its time to a loss is known
# nanoGPT's recipe and ours, the baseline first, and the loss that counts: nanoGPT's CPU recipe measured on the whole
# validation split, and the best of its GPU recipe's evaluations on random batches (nanoGPT's README).
ON_CPU = (("shakespeare-char-cpu", "shakespeare-char-cpu-fast"), 1.898)
ON_GPU = (("shakespeare-char", "shakespeare-char-fast"), 1.4697)


@dataclass(frozen=True)
class Runner:
    """One recipe. steps, wall_s, losses: of each evaluation, means over the seeds; low, high: the least and the
    largest loss among them. curves: (wall_s, losses) of each seed. to_target_s: the mean wall time of the first
    evaluation whose mean loss is at most the target, None where there is none; by_seed_s the same of each seed alone.
    """

    name: str
    seeds: list[int]
    parameters: int
    total_steps: int
    total_s: float
    steps: list[int]
    wall_s: list[float]
    losses: list[float]
    low: list[float]
    high: list[float]
    curves: list[tuple[list[float], list[float]]]
    to_target_s: float | None
    by_seed_s: list[float | None]


@dataclass(frozen=True)
class Race:
    target: float
    device: str
    runners: list[Runner]  # the baseline first

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Race:
        return Race(saved["target"], saved["device"], [Runner(**runner) for runner in saved["runners"]])


def plan(
    recipes: Sequence[str], seeds: int, device: str = "auto", kernels: str = "auto", source: str | None = None
) -> list[Trial]:
    """The trainings in the order in which they are run: every recipe with the first seed, then with the next."""
    trials = []
    for seed in range(1, seeds + 1):
        for recipe in recipes:
            steps = build(recipe).train.steps
            train = {"seed": seed, "device": device, "kernels": kernels, "sample_interval": 0, "save_at": ""}
            train |= {"eval_interval": max(1, steps // EVALUATIONS)}
            config = build(recipe, {"train": train, "data": {} if source is None else {"source": source}})
            trials.append(Trial(recipe, "race", seed, 1.0, config))
    return trials


def defaults(device: str) -> tuple[tuple[str, ...], float]:
    """Which recipes race on a device, and to which loss."""
    return ON_GPU if resolve_device(device).type == "cuda" else ON_CPU


def result_of(study: Study, target: float, beside: Sequence[Path] = ()) -> Race:
    """What came of a race, and of finished run folders `beside` it; raises UserError where nothing has finished."""
    folders: dict[str, list[Path]] = {}
    for outcome in study.outcomes():
        folders.setdefault(outcome.arm, [])
        if outcome.status == FINISHED:
            folders[outcome.arm].append(study.folder(outcome.id))
    for folder in beside:
        folders.setdefault(str(read_json(folder / "config.json").get("preset", folder.name)), []).append(folder)
    runners = [_runner(name, paths, target) for name, paths in folders.items() if paths]
    if not runners:
        raise UserError(f"No training of {study.path} has finished; run the same command again with --resume.")
    return Race(target, device_name(resolve_device(study.options.get("device", "auto"))), runners)


def _runner(name: str, folders: Sequence[Path], target: float) -> Runner:
    seeds, curves, evaluations, totals = [], [], [], []
    for folder in folders:
        rows = read_rows(folder / METRICS)
        found = [row for row in rows if row.get("val_loss") is not None]
        if not found:
            raise UserError(f"{folder} has no evaluation; a race needs losses over time.")
        saved = read_json(folder / "config.json")
        seeds.append(saved["train"]["seed"])
        parameters = saved["facts"]["parameters"]["total"]
        evaluations.append([row["step"] for row in found])
        curves.append(([row["wall"] for row in found], [row["val_loss"] for row in found]))
        totals.append(found[-1]["wall"])
    steps = evaluations[0]
    if any(other != steps for other in evaluations):
        raise UserError(f"The trainings of {name} were evaluated at different steps, so they have no mean curve.")
    wall, losses = (np.array([curve[i] for curve in curves]) for i in (0, 1))
    return Runner(
        name=name,
        seeds=seeds,
        parameters=parameters,
        total_steps=steps[-1],
        total_s=float(np.mean(totals)),
        steps=steps,
        wall_s=wall.mean(0).tolist(),
        losses=losses.mean(0).tolist(),
        low=losses.min(0).tolist(),
        high=losses.max(0).tolist(),
        curves=curves,
        to_target_s=first_at_most(target, wall.mean(0), losses.mean(0)),
        by_seed_s=[first_at_most(target, *curve) for curve in curves],
    )


def first_at_most(target: float, wall: Sequence[float], losses: Sequence[float]) -> float | None:
    """The time of the first evaluation at or below the target. Nothing is interpolated: a loss counts once measured."""
    return next((float(w) for w, loss in zip(wall, losses, strict=True) if loss <= target), None)
