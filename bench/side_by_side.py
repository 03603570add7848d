"""`minilm train` beside a plain training loop of the same model on the same text, on a CPU, alternated in pairs.

    python -m bench.side_by_side [--preset shakespeare-char-cpu] [--pairs 5] [--steps 100] [--out FILE.json]

Each pair runs both commands, one after the other, the order changing from pair to pair, so that a machine that gets
slower is slower for both. What is compared is the median time of WINDOW consecutive steps, for minilm by its own
journal: in each window it writes the journal once, as it does in every training. Starting, reading data, evaluation
and checkpoints are not in it on either side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from minilm import hardware
from minilm.config import PRESETS, RunConfig, build
from minilm.corpus.fables import stories
from minilm.errors import UserError
from minilm.training import journal

ROOT = Path(__file__).resolve().parents[1]
WINDOW = 10  # steps: the journal's train.log_interval
SKIPPED = 20  # first steps
CHARACTERS = 1_000_000  # about Tiny Shakespeare
SIDES = ("minilm", "plain")


@dataclass(frozen=True)
class Side:
    """One training: seconds a step, parameters, tokens a step, and the mean loss of its last window."""

    seconds: float
    parameters: int
    tokens_per_step: int
    loss: float


@dataclass(frozen=True)
class Pair:
    order: tuple[str, ...]
    minilm: Side
    plain: Side

    @property
    def ratio(self) -> float:
        """Steps/s of minilm over those of the plain loop: above 1, minilm is faster."""
        return self.plain.seconds / self.minilm.seconds


def compare(preset: str, data: Path | None, pairs: int, steps: int, threads: int) -> Iterator[Pair]:
    """Run the pairs, each given as soon as it is there. `data` is a text file, or None for fables.

    Raises UserError for a preset that the plain loop cannot train, for too few steps, and where either side fails.
    """
    if steps < SKIPPED + WINDOW:
        raise UserError(
            f"--steps is {steps}; it must be at least {SKIPPED + WINDOW}: the first {SKIPPED} do not count."
        )
    config = same_recipe(preset, steps)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if data is None:
            data = work / "fables.txt"
            data.write_text("".join(text for text, _ in stories(CHARACTERS)), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MINILM_CACHE": str(work / "cache")}
        for pair in range(pairs):
            sides = {}
            for name in SIDES if pair % 2 == 0 else SIDES[::-1]:
                run = _minilm if name == "minilm" else _plain
                sides[name] = run(config, data.resolve(), work / f"run-{pair}", environment)
            for count in ("parameters", "tokens_per_step"):
                one, other = (getattr(sides[name], count) for name in SIDES)
                if one != other:
                    raise RuntimeError(f"the two do not train the same: {one} {count} against {other}")
            yield Pair(tuple(sides), **sides)


def same_recipe(preset: str, steps: int) -> RunConfig:
    """The preset's configuration as both sides will run it. Raises UserError where the plain loop has no such model."""
    config = build(preset, {"train": {"steps": steps, "dtype": "float32"}})
    if foreign := _foreign(config):
        able = ", ".join(name for name in PRESETS if not _foreign(build(name)))
        raise UserError(f"The plain loop has no {foreign}, as {preset} has; name one of the presets {able}.")
    return config


def _foreign(config: RunConfig) -> str:
    """What of a configuration the plain loop cannot do, or ""."""
    able = {
        "model": {"activation": "gelu", "norm": "pre", "norm_type": "layernorm", "position": "learned"}
        | {"dropout": 0.0, "tie_embeddings": True, "n_kv_heads": config.model.n_heads},
        "train": {"optimizer": "adamw", "schedule": "cosine", "grad_accumulation": 1},
    }
    given = {f"{s}.{key}": (getattr(getattr(config, s), key), value) for s in able for key, value in able[s].items()}
    return ", ".join(f"{name} {has}" for name, (has, value) in given.items() if has != value)


def _minilm(config: RunConfig, data: Path, run: Path, environment: dict[str, str]) -> Side:
    settings = {"eval_interval": 0, "checkpoint_interval": 0, "sample_interval": 0, "log_interval": WINDOW}
    settings |= {"eval_tokens": 1000, "dtype": config.train.dtype, "device": "cpu"}
    command = ["minilm", "train", "--preset", config.preset, "--data", str(data), "--steps", str(config.train.steps)]
    command += [word for key, value in settings.items() for word in ("--set", f"train.{key}={value}")]
    command += ["--set", "data.split=tail", "--set", "data.val_fraction=0.1"]
    _output([*command, "--no-baselines", "--no-report", "--out", str(run)], environment)
    facts = journal.read_json(run / journal.CONFIG)["facts"]
    rows = [row for row in journal.read_rows(run / journal.METRICS) if "loss" in row]
    return _side(facts["parameters"]["total"], facts["tokens_per_step"], rows)


def _plain(config: RunConfig, data: Path, run: Path, environment: dict[str, str]) -> Side:
    m, t = config.model, config.train
    settings = {"steps": t.steps, "layers": m.n_layers, "heads": m.n_heads, "width": m.d_model, "hidden": m.d_ff}
    settings |= {"context": m.context_length, "batch-size": t.batch_size, "seed": t.seed, "lr": t.lr}
    settings |= {"min-lr": t.min_lr, "warmup-steps": t.warmup_steps, "decay": t.weight_decay, "beta1": t.beta1}
    settings |= {"beta2": t.beta2, "clip": t.grad_clip}
    command = ["bench.plain_loop", "--data", str(data), *["--bias"] * m.bias]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    found = json.loads(_output(command, environment))
    rows = [{"wall": w, "loss": x} for w, x in zip(found["walls"], found["losses"], strict=True)]
    return _side(found["parameters"], found["tokens_per_step"], rows)


def _output(module: list[str], environment: dict[str, str]) -> str:
    """What a Python module prints. Raises UserError with its last words where it fails."""
    done = subprocess.run([sys.executable, "-m", *module], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{module[0]} ended with exit code {done.returncode}: {last}")
    return done.stdout


def _side(parameters: int, tokens_per_step: int, rows: Sequence[dict[str, Any]]) -> Side:
    """`rows` hold the clock at the end of each step, in seconds, and its loss."""
    ends = [row["wall"] for row in rows]
    windows = [ends[i + WINDOW - 1] - ends[i - 1] for i in range(SKIPPED, len(ends) - WINDOW + 1, WINDOW)]
    loss = statistics.fmean(row["loss"] for row in rows[-WINDOW:])
    return Side(statistics.median(windows) / WINDOW, parameters, tokens_per_step, loss)


def interval(ratios: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(geometric mean, low, high) of two ratios or more: Student's t on their logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    half = float(stats.t.ppf((1 + level) / 2, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def summary(pairs: Sequence[Pair], preset: str, data: Path | None, steps: int, threads: int) -> dict[str, Any]:
    """For JSON: every pair, the ratio with its interval, and on what machine by what versions."""
    mean, low, high = interval([pair.ratio for pair in pairs])
    device = torch.device("cpu")
    return {
        "preset": preset,
        "data": str(data or "fables"),
        "steps": steps,
        "parameters": pairs[0].minilm.parameters,
        "tokens_per_step": pairs[0].minilm.tokens_per_step,
        "ratio": {"geometric_mean": mean, "low": low, "high": high, "level": 0.95},
        "pairs": [{**asdict(pair), "ratio": pair.ratio} for pair in pairs],
        "machine": {
            "device_name": hardware.device_name(device),
            "threads": threads,
            "versions": hardware.versions(),
            "git_revision": hardware.git_revision(),
        },
    }


def told(number: int, pair: Pair) -> str:
    speeds = "  ".join(f"{name} {1 / getattr(pair, name).seconds:8.4g} steps/s" for name in SIDES)
    losses = " and ".join(f"{getattr(pair, name).loss:.3f}" for name in SIDES)
    return f"pair {number}, {pair.order[0]} first:  {speeds}  ratio {pair.ratio:.3f}  last losses {losses}"


def conclusion(found: dict[str, Any]) -> str:
    ratio, machine = found["ratio"], found["machine"]
    return (
        f"{found['preset']}, {found['parameters']:,} parameters and {found['tokens_per_step']:,} tokens a step on both "
        f"sides: minilm makes {ratio['geometric_mean']:.3f} times the steps/s of the plain loop, 95% interval "
        f"{ratio['low']:.3f} to {ratio['high']:.3f} (geometric mean of {len(found['pairs'])} pairs; "
        f"{machine['device_name']}, threads: {machine['threads']})"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.side_by_side", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="shakespeare-char-cpu")
    parser.add_argument("--data", type=Path, metavar="FILE.txt", help="a text; without it, fables")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help=f"of each training; the first {SKIPPED} do not count")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on both sides")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    a = parser.parse_args(arguments)
    try:
        if a.pairs < 2 or a.threads < 1:
            raise UserError(
                f"--pairs is {a.pairs} and --threads {a.threads}; give 2 pairs or more and 1 thread or more."
            )
        if a.data and not a.data.is_file():
            raise UserError(f"--data is {a.data}; name a text file, or leave it out for fables.")
        pairs = []
        for pair in compare(a.preset, a.data, a.pairs, a.steps, a.threads):
            pairs.append(pair)
            print(told(len(pairs), pair), flush=True)
    except UserError as error:
        sys.exit(f"side_by_side: {error}")
    found = summary(pairs, a.preset, a.data, a.steps, a.threads)
    print(conclusion(found))
    if a.out:
        journal.write_json(a.out, found)


if __name__ == "__main__":
    main()
