"""A whole training step: the project's own Loop.update on random tokens, by backend, eager and compiled, and nanoGPT's.

Steps of one context length are measured in turns, in blocks, so that the host may run ahead of the device as it does
in a training. Running out of memory is a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import itertools
import re
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
from minilm.training import compiling
from minilm.training.distributed import Team
from minilm.training.loop import Loop
from minilm.training.optimizer import build_optimizers
from minilm.training.prepare import Parts

VOCABULARY = 96
MODES = {"off": "eager", "on": "compiled", "graphs": "graphs"}
BLOCK = {"cuda": 10, "cpu": 1, "mps": 5}  # steps between two readings of the clock


@dataclass(frozen=True)
class Entry:
    """One way to train: a backend of minilm, or "nanogpt"; by train.compile off, on or graphs; in float32 where that is
    not what would be used."""

    kernels: str
    compile: str
    float32: bool = False

    def __str__(self) -> str:
        return f"{self.kernels} {MODES[self.compile]}{' float32' * self.float32}"

    def dtype_of(self, usual: torch.dtype, device: torch.device) -> torch.dtype:
        theirs = self.kernels == "nanogpt" and device.type != "cuda"  # whose train.py casts on GPUs only
        return torch.float32 if self.float32 or theirs else usual


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
    """On a GPU every backend, eager, compiled, and as CUDA graphs; on a CPU eager and compiled, also in float32 like
    nanoGPT."""
    names = [name for name in kernels.available(device) if name != "triton" or device.type == "cuda"]
    names = [*reversed(names), *(["nanogpt"] if nanogpt else [])]
    modes = ("off", "on", "graphs") if device.type == "cuda" else ("off", "on")
    found = [Entry(name, mode) for name in names for mode in modes if not (name == "nanogpt" and mode == "graphs")]
    return found if device.type == "cuda" else [*found, Entry("torch", "off", True), Entry("torch", "on", True)]


def sizes(device: torch.device) -> list[tuple[str, int, int]]:
    """(preset, context length, batch size): 16k tokens a step on a GPU, the longest that are told apart first."""
    if device.type != "cuda":
        return [("quick", 128, 8), ("shakespeare-char-cpu", 64, 12)]
    return [("capstone", T, 16_384 // T) for T in (256, 1024, 4096, 16_384, 512, 2048, 8192)]


def with_vocabulary(preset: str) -> RunConfig:
    """A preset as it is, its vocabulary as large as its data would make it: characters of English, or byte pairs."""
    config = build(preset)
    bytewise = config.data.tokenizer == "bpe"
    return build(preset, {"model": {"vocab_size": config.data.vocab_size if bytewise else VOCABULARY}})


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
    timing.start(device)
    rows, steps, step = [], {}, None
    for entry in chosen:
        row = StepRow(str(entry), entry.kernels, entry.compile != "off", context_length, batch_size)
        used = entry.dtype_of(dtype, device)
        row.dtype = str(used).removeprefix("torch.")
        rows.append(row)
        step = None  # of an entry that failed, whose memory is to be free
        clear(device)
        with failures(row):
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            start = time.perf_counter()
            step, row.parameters = prepare(entry, config, used, device, nanogpt)
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
    together = StepRow("all in turns", "", False, context_length, batch_size)
    with failures(together):
        found = timing.in_turn(calls, device, seconds, host=False) if calls else {}
    if together.status != OK:  # because of one of them: then each alone, so that the others have their times
        clear(device)
        for row in rows:
            if row.label in calls:
                with failures(row, "while it was timed"):
                    found |= timing.in_turn({row.label: calls[row.label]}, device, seconds / len(calls), host=False)
                    row.reason = "timed alone, not in turns"
                clear(device)
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
def failures(row: Any, when: str = "in the first step"):
    """What stops an entry becomes its status and reason. A device that can no longer be trusted goes through."""
    try:
        yield
    except Exception as error:  # whatever a compiler, a library or a driver comes up with
        row.status, row.reason = status_of(error)
        row.reason = row.reason or when


def status_of(error: Exception) -> tuple[str, str]:
    """(status, reason). Raises the error again where the device is lost: nothing after it would mean anything."""
    words = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, torch.OutOfMemoryError) or re.search(r"out of memory|ALLOC_FAILED", str(error)):
        return MEMORY, ""
    lost = ("illegal memory access", "misaligned address", "device-side assert", "launch failure")
    if isinstance(error, torch.AcceleratorError) or any(word in str(error) for word in lost):
        raise error
    return FAILED, f"{type(error).__name__}: {words}"[:200]


def clear(device: torch.device) -> None:
    """Give back what nothing holds any more. Not to be called while an exception does."""
    gc.collect()
    if device.type == "cuda":
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
    train = dataclasses.replace(config.train, compile=entry.compile)
    compiling.check(train, device)
    loop = _loop(dataclasses.replace(config, train=train), model)

    def step() -> Any:
        loop.unread.clear()
        loop.update(next(batches))
        return loop.unread[-1][1]

    return step, model.count_parameters()["total"]


def _loop(config: RunConfig, model: GPT) -> Loop:
    """The training loop without a run folder and without data: only its update is called."""
    tokens = config.train.batch_size * config.model.context_length
    facts = {"tokens_per_step": tokens, "compile": config.train.compile}
    optimizers = build_optimizers(model, config.train)
    parts = Parts(config, None, None, model, optimizers, facts, None)
    loop = Loop(parts, None, Console(file=io.StringIO()), [], Team())
    loop.clock = time.perf_counter()
    model.train()
    return loop
