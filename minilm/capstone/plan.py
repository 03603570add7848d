"""What a capstone is made of, at each scale, and the options that one is begun with.

train      a GPT, its weights kept at chosen steps, n-gram models beside it
samples    what those weights write, by step and temperature, and how good it is
ablation   three axes or more, three seeds an arm, with the A/A arm
kernels    naive against fused: reference, torch and, where it can run, triton
scaling    a ladder of sizes at one budget of tokens
report     one page of all of it
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minilm.config import RunConfig, build
from minilm.errors import UserError
from minilm.presets import CAPSTONE, QUICK
from minilm.studies import study

STAGES = ("train", "samples", "ablation", "kernels", "scaling", "report")
MIN_AXES = 3


@dataclass(frozen=True)
class Options:
    """What a capstone is begun with; it goes on with the same."""

    scale: str = "quick"
    data: str | None = None  # None: fables
    kernels: str = "auto"
    device: str = "auto"
    seed: int = 1


@dataclass(frozen=True)
class Plan:
    """The shape of a capstone. seconds: what each stage is expected to take, by which the time left is told until
    stages have been timed."""

    preset: str
    train: Mapping[str, Mapping[str, Any]]  # what changes from the preset
    samples: Mapping[str, Any]  # options of minilm.sampling.samples.write_samples
    trial: Mapping[str, Any]  # of minilm.studies.study.Plan, for ablation and kernels
    axes: tuple[str, ...]
    sizes: tuple[str, ...]
    ladder_steps: int
    seconds: Mapping[str, float]
    seeds: int = 3
    ladder_seeds: int = 3
    ladder: Mapping[str, Any] = field(default_factory=dict)  # as `trial`, for scaling; empty: the same


# quick: two CPU cores, well under half an hour. The ladder has one depth and one head width, and stays where 300,000
# characters are enough for its sizes: its losses then bend as a power law does, and its exponent passes the rules.
# full: the preset capstone on a GPU; the ladder ends at that preset's own shape.
PLANS = {
    "quick": Plan(
        preset=QUICK,
        train={"train": {"save_at": "0,50,200,600,1600", "checkpoint_interval": 100}},
        samples={},
        trial={"study": "quick", "steps": 300},
        axes=("depth", "activation", "norm"),
        sizes=("2x16", "2x24", "2x32", "2x48", "2x64", "2x96"),
        ladder_steps=600,
        ladder_seeds=4,
        ladder={"study": "quick"},
        seconds={"train": 200, "samples": 90, "ablation": 100, "kernels": 140, "scaling": 150, "report": 15},
    ),
    "full": Plan(
        preset=CAPSTONE,
        train={},
        samples={},
        trial={"study": "capstone"},
        axes=("depth", "width", "activation", "norm", "norm_type", "position", "warmup"),
        sizes=("2x64", "3x128", "4x192", "6x256", "6x384", "8x512"),
        ladder_steps=10_000,
        seconds={"train": 600, "samples": 900, "ablation": 18_000, "kernels": 7_200, "scaling": 4_000, "report": 60},
    ),
}


def plan_of(scale: str) -> Plan:
    if scale not in PLANS:
        raise UserError(f"--scale is {scale!r}; there are {' and '.join(PLANS)}.")
    return PLANS[scale]


def training(plan: Plan, options: Options) -> RunConfig:
    """The configuration of the training."""
    changes = {section: dict(values) for section, values in plan.train.items()}
    changes["train"] = {
        **changes.get("train", {}),
        "seed": options.seed,
        "kernels": options.kernels,
        "device": options.device,
    }
    if options.data is not None:
        changes["data"] = {**changes.get("data", {}), "source": options.data}
    return build(plan.preset, changes)


def study_plan(plan: Plan, options: Options, stage: str) -> study.Plan:
    """The study of a stage: "ablation", "kernels" or "scaling"."""
    whole = dict(plan.ladder or plan.trial) if stage == "scaling" else dict(plan.trial)
    assignments = [*whole.pop("assignments", ()), f"train.device={options.device}"]
    if stage != "kernels":  # which compares them all, whatever the rest runs on
        assignments.append(f"train.kernels={options.kernels}")
    axes = {"ablation": plan.axes, "kernels": ("kernels",), "scaling": ("depth",)}[stage]
    seeds = plan.ladder_seeds if stage == "scaling" else plan.seeds
    return study.Plan(**whole, axes=axes, data=options.data, seeds=seeds, assignments=tuple(assignments))


def jobs(stage: str, device: str) -> int:
    """Trials at a time: one to a core of two where only losses count, and one alone where its speed does."""
    return 2 if device == "cpu" and stage != "kernels" and (os.cpu_count() or 1) > 1 else 1


def agreed(held: Options | None, given: Mapping[str, Any]) -> Options:
    """The options of a folder that holds `held` (None: nothing yet) when those of `given` that are not None are asked
    for. Raises UserError for one that would change."""
    asked = {name: value for name, value in given.items() if value is not None}
    if held is None:
        return dataclasses.replace(Options(), **asked)
    for name, value in asked.items():
        if getattr(held, name) != value:
            was = getattr(held, name) or "fables"
            raise UserError(
                f"--{name} is {value!r} and the capstone in this folder was begun with {was!r}; leave it out to go on, "
                "or name another folder by --out."
            )
    return held
