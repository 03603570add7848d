"""Ablations made from a formula: outcomes of trials, and their run folders."""

import json
import math

import numpy as np
from matplotlib.figure import Figure

from minilm.config import build
from minilm.report.ablation import write_ablation
from minilm.report.ablation_figures import plates_of
from minilm.report.runs import read_run
from minilm.studies.ablation import analyse
from minilm.studies.design import BASELINE, CONTROL, KERNELS, REORDERED, SPEED
from minilm.studies.trials import DIVERGED, FINISHED, MISSING, Outcome

STEPS = 100


class Lab:
    """Makes outcomes of trials, and their run folders, from a formula."""

    def __init__(self, folder):
        self.folder, self.outcomes, self.runs = folder, [], {}
        self.rng = np.random.default_rng(0)
        self.of_seed = {}

    def trial(
        self, arm, axis, seed, loss=None, status=FINISHED, total=100_000, factor=1.0, apart=0.0, run=True, **changes
    ):
        overrides = {"model": {"vocab_size": 75}, "train": {"steps": STEPS, "seed": seed, "kernels": "reference"}}
        for name, value in changes.items():
            section, key = name.split("__")
            overrides[section][key] = value
        config = build("quick", overrides).to_dict()
        config["train"]["lr"] *= factor
        name = f"{len(self.outcomes):04d}{arm[:4].encode().hex()}"
        wall = 12.0 + seed % 10
        done = {"wall": wall, "tokens": STEPS * 512, "tokens_per_s": STEPS * 512 / wall, "flops_per_token": 6 * total}
        counts = {"total": total, "non_embedding": total - 4800, "matrices_and_head": total - 1800, "embedding": 4800}
        self.outcomes.append(
            Outcome(
                name, arm, axis, seed, factor, config, status,
                reason="" if status in (FINISHED, DIVERGED) else "it was not to be",
                val_loss=loss if status == FINISHED else None,
                **(done if status == FINISHED else {}),
                peak_bytes=500_000_000 + total if status == FINISHED else None,
                parameters=None if status == MISSING else counts,
                device="a quiet machine",
            )
        )  # fmt: skip
        if status in (FINISHED, DIVERGED) and run:
            self.runs[name] = self._run(name, config, loss if status == FINISHED else math.nan, wall, apart)
        return self

    def arm(self, name, axis, mean, seeds=(1, 2, 3), spread=0.003, **how):
        for seed in seeds:
            of_seed = self.of_seed.setdefault(seed, 0.02 * self.rng.standard_normal())
            self.trial(name, axis, seed, mean + of_seed + spread * self.rng.standard_normal(), **how)
        return self

    def _run(self, name, config, last, wall, apart):
        path = self.folder / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"format": 1, "name": name} | config), encoding="utf-8")
        rows = []
        for step in range(STEPS + 1):
            fall = 1.5 * math.exp(-step / 15)
            at = {"step": step, "tokens": 512 * step, "wall": wall * step / STEPS}
            if step:
                rows.append(at | {"loss": 2.5 + fall + apart * math.sin(step) * step, "lr": 1e-3, "grad_norm": 1.0})
            if step % 20 == 0:
                lost = math.isnan(last) and step > 40
                rows.append(at | {"val_loss": None if lost else (2.9 if math.isnan(last) else last) + fall})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def result(self):
        return analyse(self.outcomes, self.runs)

    def write(self, out=None):
        return write_ablation(self.result(), out or self.folder / "out", self.runs)


def whole(lab, seeds=(1, 2, 3)):
    """A study of many kinds of arm: matched and not, better and worse and neither, diverged, and kernels."""
    lab.arm(BASELINE, BASELINE, 2.700, seeds)
    lab.arm("2 layers", "depth", 2.760, seeds, total=60_000, model__n_layers=2)
    lab.arm("6 layers", "depth", 2.690, seeds, total=140_000, model__n_layers=6)
    lab.arm("width 64", "width", 2.800, seeds, total=40_000, model__d_model=64, model__n_heads=2, model__d_ff=256)
    lab.arm("ReLU", "activation", 2.701, seeds, model__activation="relu")
    lab.arm("SwiGLU", "activation", 2.660, seeds, total=99_500, model__activation="swiglu")
    lab.arm("post-norm", "norm", 2.750, seeds[:-1], model__norm="post")
    lab.trial("post-norm", "norm", seeds[-1], status=DIVERGED, model__norm="post")
    kernel_arms(lab, seeds)
    lab.arm(CONTROL, CONTROL, 2.700, [10_000 + seed for seed in seeds])
    return lab


def kernel_arms(lab, seeds=(1, 2, 3)):
    naive = {o.seed: o.val_loss for o in lab.outcomes if o.arm == BASELINE}
    for seed in seeds:
        torch = naive[seed] + 1e-4 * (seed - 2)
        lab.trial("torch kernels", KERNELS, seed, torch, apart=1e-6, train__kernels="torch")
        lab.trial(REORDERED, KERNELS, seed, naive[seed] + 5e-5 * seed, apart=1.5e-6, train__grad_accumulation=2)
    for name in ("reference", "torch"):
        for length in (64, 128, 256):
            how = {"train__kernels": name, "model__context_length": length, "run": False}
            lab.trial(f"{name} at {length}", SPEED, 1, 3.0, **how)


def panels_named(result, runs, plate):
    found = {p.name: p for p in plates_of(result, {i: read_run(path) for i, path in runs.items()})}
    return found[plate].panels if plate in found else []


def drawn(panel):
    axes = Figure(figsize=(5, 4)).subplots()
    panel.draw(axes)
    return axes
