"""A whole training step: the project's own Loop.update on random tokens, by backend, eager and compiled, and nanoGPT's.

Each way to train is first timed alone, as soon as it is prepared; then those of one size are timed in turns, which is
what ratios between them are taken from. A timing is of a block of steps, so that the host may run ahead of the device
as it does in a training. Running out of memory is a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import statistics
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
from bench.contest import MEMORY, OK, clear, status_of
from minilm import hardware
from minilm.config import RunConfig, build
from minilm.model import GPT
from minilm.training import compiling, graphs
from minilm.training.distributed import Team
from minilm.training.loop import Loop
from minilm.training.optimizer import build_optimizers
from minilm.training.prepare import Parts

VOCABULARY = 96
MODES = {"off": "eager", "captured": "captured", "on": "compiled", "graphs": "graphs", "both": "compiled captured"}
SETTINGS = {  # train.compile and train.graphs
    "off": ("off", "off"), "captured": ("off", "on"), "on": ("on", "off"), "graphs": ("graphs", "off"),
    "both": ("on", "on"),
}  # fmt: skip
BLOCK = {"cuda": 10, "cpu": 1, "mps": 5}  # steps between two readings of the clock
ALONE = "timed alone, not in turns"
# On a GPU, where each compilation takes half a minute: what the others are held against, what tells most first.
TELLING = (
    "triton captured", "reference eager", "nanogpt compiled", "triton compiled captured", "triton eager",
    "torch captured", "nanogpt eager", "triton graphs", "reference captured", "torch compiled captured",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One way to train: a backend of minilm, or "nanogpt"; by one of MODES; in float32 where that is not what would be
    used."""

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
    peak_bytes with weights and optimizer, and host_s how long the host takes to launch a step; both None on a CPU.
    reason is ALONE where the times are not of the same minutes as those of other ways to train."""

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
    host_s: float | None = None
    rounds: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "rounds"}


def entries(device: torch.device, nanogpt: Path | None = None) -> list[Entry]:
    """On a GPU every backend, eager and compiled, each also captured as a CUDA graph, those of TELLING first; on a CPU
    eager and compiled, also in float32 like nanoGPT."""
    names = [name for name in kernels.available(device) if name != "triton" or device.type == "cuda"]
    names = [*reversed(names), *(["nanogpt"] if nanogpt else [])]
    modes = tuple(MODES) if device.type == "cuda" else ("off", "on")
    found = [Entry(name, mode) for name in names for mode in modes if name != "nanogpt" or mode in ("off", "on")]
    if device.type == "cuda":
        return sorted(found, key=lambda entry: ([*TELLING, str(entry)]).index(str(entry)))
    return [*found, Entry("torch", "off", True), Entry("torch", "on", True)]


def sizes(device: torch.device) -> list[tuple[str, int, int]]:
    """(preset, context length, batch size), what tells most first: on a GPU the capstone as it is, GPT-2 at its own
    micro-batch, and the capstone at other contexts, 16k tokens a step."""
    if device.type != "cuda":
        return [("quick", 128, 8), ("shakespeare-char-cpu", 64, 12)]
    contexts = [("capstone", T, 16_384 // T) for T in (256, 1024, 4096, 16_384, 512, 2048, 8192)]
    return [contexts[0], ("gpt2", 1024, 12), *contexts[1:]]


def with_vocabulary(preset: str) -> RunConfig:
    """A preset as it is, its vocabulary as large as its data would make it: characters of English, or byte pairs."""
    config = build(preset)
    bytewise = config.data.tokenizer == "bpe"
    return build(preset, {"model": {"vocab_size": config.data.vocab_size if bytewise else VOCABULARY}})


def config_of(
    preset: str, context_length: int, batch_size: int, device: torch.device, comparable: bool = False
) -> RunConfig:
    """A preset at a size, with its own vocabulary. The optimizer is AdamW and dropout 0 for all, so that all do the
    same work.

    comparable: as nanoGPT is: with learned positions and the exact GELU, for it has no others.
    """
    theirs = {"position": "learned", "activation": "gelu"} if comparable else {}
    size = {"context_length": context_length, "vocab_size": with_vocabulary(preset).model.vocab_size, "dropout": 0.0}
    train = {"batch_size": batch_size, "grad_accumulation": 1, "optimizer": "adamw", "device": str(device)}
    return build(preset, {"model": size | theirs, "train": train})


class Size:
    """Ways to train the same model, with learned positions and the exact GELU, for nanoGPT has no others: prepared one
    after another, then timed in turns. A new one has nothing of an earlier one compiled or in memory."""

    def __init__(
        self,
        preset: str,
        context_length: int,
        batch_size: int,
        device: torch.device,
        nanogpt: Path | None = None,
    ):
        self.config = config_of(preset, context_length, batch_size, device, comparable=True)
        self.dtype = hardware.resolve_dtype(self.config.train.dtype, device, self.config.model.d_model)
        self.device, self.nanogpt = device, nanogpt
        self.steps: dict[str, Callable[[], Any]] = {}  # by label, of those that work
        torch._dynamo.reset()  # what other sizes compiled counts against the limit of recompilations
        timing.start(device)

    def alone(self, entry: Entry) -> StepRow:
        """Prepare a way to train, keep its step for in_turns(), and time it in the fewest rounds that give an interval
        of the median."""
        device, row = self.device, self._row(entry)
        used = entry.dtype_of(self.dtype, device)
        step = None
        clear(device)
        with failures(row):
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            reserved = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
            start = time.perf_counter()
            step, row.parameters = prepare(entry, self.config, used, device, self.nanogpt)
            step()
            timing.synchronize(device)
            row.first_step_s = time.perf_counter() - start
            held = torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0
            if entry.kernels != "nanogpt" and SETTINGS[entry.compile][1] == graphs.ON:
                row.peak_bytes = _with_graph(step, device, reserved)
            elif (peak := timing.peak_bytes(step, device)) is not None:
                row.peak_bytes = peak + held
        if step is not None and row.status == OK:
            with failures(row, "while it was timed"):
                times = timing.in_turn({row.label: self._block(step)}, device, 0, timing.LEAST, wall=True)
                row.host_s = host_seconds(step, device)
                self._fill(row, times[row.label])
                row.reason = ALONE
                self.steps[row.label] = step
        step = None  # of an entry that failed, whose memory is to be free
        clear(device)
        return row

    def once(self, entry: Entry) -> StepRow:
        """Prepare a way to train and take one step, of which nothing is timed or kept."""
        row = self._row(entry)
        with failures(row):
            used = entry.dtype_of(self.dtype, self.device)
            step, row.parameters = prepare(entry, self.config, used, self.device, self.nanogpt)
            step()
            timing.synchronize(self.device)
        clear(self.device)
        return row

    def _row(self, entry: Entry) -> StepRow:
        length, batch_size = self.config.model.context_length, self.config.train.batch_size
        row = StepRow(str(entry), entry.kernels, entry.compile != "off", length, batch_size)
        row.dtype = str(entry.dtype_of(self.dtype, self.device)).removeprefix("torch.")
        return row

    def in_turns(self, rows: Sequence[StepRow], seconds: float) -> None:
        """Time the steps of these rows in turns, and give the rows these times, without a reason then.

        Where all of them do not fit into memory together, as many as do, the first before the last; one that fails
        otherwise is left out. What is left out keeps the times that it had alone.
        """
        calls = {row.label: self._block(self.steps[row.label]) for row in rows if row.label in self.steps}
        found: dict[str, timing.Times] = {}
        while len(calls) > 1 and not found:
            running = [next(iter(calls))]
            noted = {label: _noted(call, label, running) for label, call in calls.items()}
            together = StepRow("in turns", "", False, 0, 0)
            with failures(together):
                found = timing.in_turn(noted, self.device, seconds, wall=True)
            if together.status != OK:
                left_out = [*calls][-1] if together.status == MEMORY else running[-1]
                del calls[left_out], self.steps[left_out], noted
                clear(self.device)
        for row in rows:
            if row.label in found:
                self._fill(row, found[row.label])
                row.reason = ""

    def _block(self, step: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [step() for _ in range(BLOCK[self.device.type])][-1]

    def _fill(self, row: StepRow, times: timing.Times) -> None:
        block = BLOCK[self.device.type]
        row.rounds = tuple(seconds / block for seconds in times.rounds)
        row.step_s, row.p20, row.p80 = (t / block for t in (times.median, times.percentile(20), times.percentile(80)))
        row.low, row.high = timing.median_interval(row.rounds)
        row.tokens_per_s = row.context_length * row.batch_size / row.step_s
        with torch.device("meta"):
            flops = GPT(self.config.model).flops_per_token()
        peak_rate = hardware.peak_flops(self.device, self.dtype)
        row.mfu = row.tokens_per_s * flops / peak_rate if peak_rate else None


def _with_graph(step: Callable[[], Any], device: torch.device, before: int) -> int:
    """Device memory that is held once the graph is there, whose own pool no counter of allocations sees."""
    for _ in range(graphs.EAGER_UPDATES + 1):
        step()
    timing.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) - before


def _noted(call: Callable[[], Any], label: str, running: list[str]) -> Callable[[], Any]:
    def noted() -> Any:
        running.append(label)
        return call()

    return noted


def measure(
    preset: str,
    context_length: int,
    batch_size: int,
    chosen: Sequence[Entry],
    device: torch.device,
    seconds: float | None = 5.0,
    nanogpt: Path | None = None,
) -> list[StepRow]:
    """A row an entry, timed in turns; seconds None: each takes one step, and nothing is timed."""
    size = Size(preset, context_length, batch_size, device, nanogpt)
    if seconds is None:
        return [size.once(entry) for entry in chosen]
    rows = [size.alone(entry) for entry in chosen]
    size.in_turns(rows, seconds)
    return rows


def host_seconds(step: Callable[[], Any], device: torch.device, repeats: int = 5) -> float | None:
    """How long the host takes to launch a step on a device that has nothing else to do: the median; None on a CPU,
    whose steps are the host's."""
    if device.type != "cuda":
        return None
    found = []
    for _ in range(repeats):
        timing.synchronize(device)
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    timing.synchronize(device)
    return statistics.median(found)


@contextlib.contextmanager
def failures(row: Any, when: str = "in the first step"):
    """What stops an entry becomes its status and reason. A device that can no longer be trusted goes through."""
    try:
        yield
    except Exception as error:  # whatever a compiler, a library or a driver comes up with
        row.status, row.reason = status_of(error)
        row.reason = row.reason or when


def prepare(
    entry: Entry, config: RunConfig, dtype: torch.dtype, device: torch.device, nanogpt: Path | None
) -> tuple[Callable[[], Any], int]:
    """A function that takes one step, and the number of parameters."""
    shape = (config.train.batch_size, config.model.context_length + 1)
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(int(config.model.vocab_size), shape, generator=generator).to(device) for _ in range(4)]
    batches = itertools.cycle(tokens)
    torch.manual_seed(0)
    if entry.kernels == "nanogpt":
        theirs, _, take = nanogpt_bench.prepare(nanogpt, config, device, dtype, entry.compile == "on")
        return lambda: take(next(batches)), sum(p.numel() for p in theirs.parameters())
    with torch.device(device):
        model = GPT(config.model, kernels.select(entry.kernels, device), dtype)
    model.checkpoint_activations = config.train.checkpoint_activations
    compile, captured = SETTINGS[entry.compile]
    train = dataclasses.replace(config.train, compile=compile, graphs=captured)
    compiling.check(train, device)
    graphs.check(train, device, dtype)
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
