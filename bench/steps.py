"""A whole training step: the project's own Loop.update on random tokens, by backend, eager and compiled, and nanoGPT's.

Steps of one context length are measured in turns, in blocks, so that the host may run ahead of the device as it does
in a training. Running out of memory is a result.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import kernels
from bench import nanogpt as nanogpt_bench
from bench import timing
from bench.contest import FAILED, MEMORY, OK
from minilm import hardware
from minilm.config import RunConfig, build
from minilm.model import GPT
from minilm.training.distributed import Team
from minilm.training.loop import Loop
from minilm.training.optimizer import build_optimizers
from minilm.training.prepare import Parts

VOCABULARY = 96
MODES = {"off": "eager", "on": "compiled", "graphs": "graphs"}
BLOCK = {"cuda": 10, "cpu": 1, "mps": 5}  # steps between two readings of the clock


@dataclass(frozen=True)
class Entry:
    """One way to train: a backend of minilm, or "nanogpt"; by train.compile off, on or graphs."""

    kernels: str
    compile: str

    def __str__(self) -> str:
        return f"{self.kernels} {MODES[self.compile]}"


@dataclass
class StepRow:
    """What a training step costs. Seconds, bytes; step_s is the median of the rounds and low, high its 95% interval;
    peak_bytes with weights and optimizer, None on a CPU."""

    label: str
    kernels: str
    compiled: bool
    context_length: int
    batch_size: int
    parameters: int | None = None
    dtype: str = ""
    status: str = OK
    reason: str = ""
    step_s: float | None = None
    p20: float | None = None
    p80: float | None = None
    low: float | None = None
    high: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    peak_bytes: int | None = None
    first_step_s: float | None = None
    rounds: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "rounds"}


def entries(device: torch.device, nanogpt: Path | None = None) -> list[Entry]:
    """On a GPU every backend, eager, compiled, and as CUDA graphs; on a CPU eager and compiled."""
    names = [name for name in kernels.available(device) if name != "triton" or device.type == "cuda"]
    names = [*reversed(names), *(["nanogpt"] if nanogpt else [])]
    modes = ("off", "on", "graphs") if device.type == "cuda" else ("off", "on")
    return [Entry(name, mode) for name in names for mode in modes if not (name == "nanogpt" and mode == "graphs")]


def sizes(device: torch.device) -> list[tuple[str, int, int]]:
    """(preset, context length, batch size): 16k tokens a step on a GPU, the longest that are told apart first."""
    if device.type != "cuda":
        return [("quick", 128, 8), ("shakespeare-char-cpu", 64, 12)]
    return [("capstone", T, 16_384 // T) for T in (256, 1024, 4096, 16_384, 512, 2048, 8192)]


def config_of(
    preset: str, context_length: int, batch_size: int, device: torch.device, comparable: bool = False
) -> RunConfig:
    """A preset at a size. The optimizer is AdamW and dropout 0 for all, so that all do the same work.

    comparable: with learned positions, for nanoGPT has no others.
    """
    positions = {"position": "learned"} if comparable else {}
    return build(
        preset,
        {
            "model": {"context_length": context_length, "vocab_size": VOCABULARY, "dropout": 0.0} | positions,
            "train": {"batch_size": batch_size, "grad_accumulation": 1, "optimizer": "adamw", "device": str(device)},
        },
    )


def measure(
    preset: str,
    context_length: int,
    batch_size: int,
    chosen: Sequence[Entry],
    device: torch.device,
    seconds: float = 5.0,
    nanogpt: Path | None = None,
) -> list[StepRow]:
    """A row an entry, all of the same model: with learned positions, for nanoGPT has no others."""
    config = config_of(preset, context_length, batch_size, device, comparable=True)
    dtype = hardware.resolve_dtype(config.train.dtype, device, config.model.d_model)
    torch._dynamo.reset()  # what other sizes compiled counts against the limit of recompilations
    rows, steps = [], {}
    for entry in chosen:
        row = StepRow(str(entry), entry.kernels, entry.compile != "off", context_length, batch_size)
        theirs = entry.kernels == "nanogpt" and device.type != "cuda"  # which casts on GPUs only
        row.dtype = "float32" if theirs else str(dtype).removeprefix("torch.")
        rows.append(row)
        with _failures(row):
            gc.collect()
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            start = time.perf_counter()
            step, row.parameters = prepare(entry, config, dtype, device, nanogpt)
            step()
            timing.synchronize(device)
            row.first_step_s = time.perf_counter() - start
            held = torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0
            if (peak := timing.peak_bytes(step, device)) is not None:
                row.peak_bytes = peak + held
            steps[row.label] = step
    block = BLOCK[device.type]
    calls = {label: (lambda step=step: [step() for _ in range(block)][-1]) for label, step in steps.items()}
    found: dict[str, timing.Times] = {}
    try:
        found = timing.in_turn(calls, device, seconds) if calls else {}
    except Exception:  # one of them: then each alone, so that the others have their times
        for row in rows:
            if row.label in calls:
                with _failures(row, "while it was timed"):
                    found |= timing.in_turn({row.label: calls[row.label]}, device, seconds / len(calls))
    peak_rate = hardware.peak_flops(device, dtype)
    with torch.device("meta"):
        flops = GPT(config.model).flops_per_token()
    tokens = context_length * batch_size
    for row in rows:
        if times := found.get(row.label):
            row.rounds = tuple(seconds / block for seconds in times.rounds)
            row.step_s, row.p20, row.p80 = (
                t / block for t in (times.median, times.percentile(20), times.percentile(80))
            )
            row.low, row.high = timing.median_interval(row.rounds)
            row.tokens_per_s = tokens / row.step_s
            row.mfu = row.tokens_per_s * flops / peak_rate if peak_rate else None
    return rows


@contextlib.contextmanager
def _failures(row: StepRow, when: str = "in the first step"):
    """What stops an entry becomes its status."""
    try:
        yield
    except torch.OutOfMemoryError:
        row.status, row.reason = MEMORY, when
    except Exception as error:  # whatever a compiler, a library or a driver comes up with
        row.status, row.reason = FAILED, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]
    if row.status != OK and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def prepare(
    entry: Entry, config: RunConfig, dtype: torch.dtype, device: torch.device, nanogpt: Path | None
) -> tuple[Callable[[], Any], int]:
    """A function that takes one step, and the number of parameters."""
    shape = (config.train.batch_size, config.model.context_length + 1)
    generator = torch.Generator().manual_seed(0)
    batches = itertools.cycle([torch.randint(VOCABULARY, shape, generator=generator).to(device) for _ in range(4)])
    torch.manual_seed(0)
    if entry.kernels == "nanogpt":
        theirs, _, take = nanogpt_bench.prepare(nanogpt, config, device, dtype, entry.compile == "on")
        return lambda: take(next(batches)), sum(p.numel() for p in theirs.parameters())
    with torch.device(device):
        model = GPT(config.model, kernels.select(entry.kernels, device), dtype)
    model.checkpoint_activations = config.train.checkpoint_activations
    loop = _loop(config, model, entry.compile)

    def step() -> Any:
        loop.unread.clear()
        loop.update(next(batches))
        return loop.unread[-1][1]

    return step, model.count_parameters()["total"]


def _loop(config: RunConfig, model: GPT, compile: str) -> Loop:
    """The training loop without a run folder and without data: only its update is called."""
    import dataclasses

    config = dataclasses.replace(config, train=dataclasses.replace(config.train, compile=compile))
    facts = {"tokens_per_step": config.train.batch_size * config.model.context_length, "compile": compile}
    optimizers = build_optimizers(model, config.train)
    parts = Parts(config, None, None, model, optimizers, facts, None)
    loop = Loop(parts, None, Console(file=io.StringIO()), [], Team())
    loop.clock = time.perf_counter()
    model.train()
    return loop
