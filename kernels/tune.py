"""Finds the fastest launch configurations on the GPU at hand and writes them into a tuning table: `minilm tune`.

A Problem is one entry of a table: an operation, and the dtypes, widths and lengths that the entry serves. Its
candidates are compiled in other processes, without the GPU, while the GPU measures; those whose machine code spills or
does not fit are refused, and of those that differ in stages only and are the same machine code one is kept. The rest
are timed on the problem's first shape: the kernel that is configured with those that run before or after it because of
it, with a cold L2 cache. The fastest few must then give right results by the error rule, the same bits twice, and are
timed on all shapes, in turn with the present configuration, which stays unless it is beaten by more than the noise.

In training a kernel finds part of what it reads in the L2 cache, where the one before left it. That depends on the
model; a cold cache does not.

    python -m kernels.tune --arch 90 --minutes 5

only compiles, for a GPU that is not there, in the order of tuning, until the time is over. With the same kernels and
the same Triton, and $TRITON_CACHE_DIR at the same path, tuning then finds everything compiled.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from queue import PriorityQueue
from threading import Thread
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from kernels import fused, machine_code, reference
from kernels.backend import interpreted
from kernels.error_rule import Judge
from kernels.fused import tuning

NOISE = 1.02  # a configuration must be faster than the present one by this factor
FINALISTS = 4
SCREENING, FINAL, ROUNDS = 7, 20, 3  # calls timed of a candidate, of a finalist in each round, and rounds
HALF, SINGLE, TF32 = ("float16", "bfloat16"), ("float32",), ("tf32",)
MULTIPROCESSORS = 132  # of an H100 or H200; programs that loop over their share of the work are multiples of it
# The kernel that an op of the tables configures, and those that are timed with it: what a second stage costs depends on
# the number of programs of the first, and it finds its input in the cache.
KERNELS = {
    "attention_forward": ("_forward_kernel",),
    "attention_backward_q": ("_query_gradient_kernel",),
    "attention_backward_kv": ("_key_gradient_kernel",),
    "decode": ("_decode_kernel", "_merge_kernel"),
    "decode_merge": ("_merge_kernel", "_decode_kernel"),
    "layer_norm_forward": ("_norm_forward",),
    "layer_norm_backward": ("_norm_backward", "_sum_partials"),
    "layer_norm_weight_grads": ("_norm_weight_grads", "_sum_partials"),
    "layer_norm_sum_partials": ("_sum_partials", "_norm_backward"),
    "swiglu_forward": ("_swiglu_forward",),
    "swiglu_backward": ("_swiglu_backward",),
    "cross_entropy": ("_loss_and_dlogits",),
    "cross_entropy_scale": ("_scale",),
}

Config = Mapping[str, int]
Call = tuple[int, tuple[int, ...]]  # the width, and the shape that the family's function takes beside it
Timer = Callable[[Callable[[], None], int], float]  # milliseconds of a call, the median of so many


class TuneError(RuntimeError):
    """Nothing can be tuned here; the message is one sentence for the person."""


class OutOfTime(Exception):
    """The time is over; what is being tuned keeps its present configuration."""


@dataclass(frozen=True)
class Problem:
    """One entry of a table, to be found. The smaller the rank, the earlier it is worth its time.

    checks: the calls that must be right. timings: those that are timed, the most important first.
    """

    op: str
    dtypes: tuple[str, ...]
    max_width: int | None
    max_length: int | None
    checks: tuple[Call, ...]
    timings: tuple[Call, ...]
    candidates: tuple[Config, ...]
    rank: int

    @property
    def dtype(self) -> str:
        """What it is measured in: bfloat16 stands for float16 too."""
        return self.dtypes[-1]

    def present(self, device: torch.device) -> Config:
        """The configuration that the tables have now."""
        dtype = self.dtype if self.dtypes == TF32 else getattr(torch, self.dtype)
        return tuning.lookup(self.op, device, dtype, width=self.max_width or 2**20, length=self.max_length or 2**30)

    def entry(self, config: Config) -> dict[str, Any]:
        bounds = {"max_width": self.max_width, "max_length": self.max_length}
        return {"dtypes": list(self.dtypes), **bounds, "config": dict(config)}

    def run(
        self, ops: ModuleType, call: Call, device: Any, dtype: torch.dtype | None = None, make: Any = None
    ) -> list[Tensor]:
        """Outputs and gradients of the operation by `ops`, in `dtype` or the problem's own.

        make(seed, size, dtype, device) makes an input; without it inputs are normally distributed.
        """
        width, shape = call
        make = make or _normal
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.dtypes == TF32 and dtype is None else "highest")
        try:
            dtype = dtype or (torch.float32 if self.dtypes == TF32 else getattr(torch, self.dtype))
            return FAMILIES[self.family](ops, width, shape, lambda seed, *size: make(seed, size, dtype, device))
        finally:
            torch.set_float32_matmul_precision(before)

    @property
    def family(self) -> str:
        return next(name for name in FAMILIES if self.op.startswith(name))

    def stand_in(self, call: Call) -> Call:
        """A call for which the same machine code is compiled, without work for PyTorch; equal for many calls."""
        width, shape = call
        if self.family == "attention":
            _, *heads, T = shape
            return width, (1, *heads, T if T % 256 else 256)
        if self.family == "cross_entropy":
            return width, (min(shape[0], 16),)
        return call

    def __str__(self) -> str:
        bounds = [f"width <= {self.max_width}"] if self.max_width else []
        bounds += [f"length <= {self.max_length}"] if self.max_length else []
        return ", ".join([self.op, "/".join(self.dtypes), *bounds])


@dataclass
class Outcome:
    """What became of a problem: milliseconds, one a timing shape; what was refused, and why; how many were timed."""

    problem: Problem
    before: Config
    chosen: Config
    before_ms: list[float] = field(default_factory=list)
    chosen_ms: list[float] = field(default_factory=list)
    refused: list[tuple[Config, str]] = field(default_factory=list)
    timed: int = 0

    @property
    def speedup(self) -> float:
        """Geometric mean over the shapes; 1 where the present configuration stays."""
        ratios = [b / c for b, c in zip(self.before_ms, self.chosen_ms, strict=True)]
        return statistics.geometric_mean(ratios) if ratios else 1.0


# --- what is run: each family from normally distributed numbers, forward and backward ---------------------------------


def _attention(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    """shape: (B, H, T), or with grouped heads (B, H, Hkv, T)."""
    B, H, *groups, T = shape
    Hkv = groups[0] if groups else H
    qkv = normal(1, B, T, (H + 2 * Hkv) * width)
    return _with_gradients(lambda qkv: ops.causal_attention_packed(qkv, H, Hkv), [qkv], normal)


def _decode(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    B, H, S = shape
    q, k, v = normal(1, B, H, 1, width), normal(2, B, H, S, width), normal(3, B, H, S, width)
    lengths = S - torch.arange(B, device=q.device) * S // (2 * B)  # ragged
    return [ops.decode_attention(q, k, v, lengths)]


def _layer_norm(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    inputs = [normal(1, *shape, width), normal(2, *shape, width), normal(3, width), normal(4, width)]
    return _with_gradients(ops.add_layer_norm, inputs, normal)


def _swiglu(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    return _with_gradients(ops.swiglu, [normal(1, *shape, 2 * width)], normal)


def _cross_entropy(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    hidden, weight = normal(1, *shape, 64), normal(2, width, 64)
    targets = torch.arange(*shape, device=hidden.device) * 7919 % width
    return _with_gradients(lambda h, w: ops.linear_cross_entropy(h, w, targets), [hidden, weight], normal)


FAMILIES = {
    "attention": _attention,
    "decode": _decode,
    "layer_norm": _layer_norm,
    "swiglu": _swiglu,
    "cross_entropy": _cross_entropy,
}


def _normal(seed: int, size: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
    """The same numbers, rounded to 16 bits, in every dtype: float64 then judges what the others were given."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(size, generator=generator, device=device).bfloat16().to(dtype)


def _uninitialised(seed: int, size: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)


def _with_gradients(
    function: Callable[..., Any], inputs: Sequence[Tensor], normal: Callable[..., Tensor]
) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [normal(9, *y.shape).to(y.dtype) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


# --- the problems ----------------------------------------------------------------------------------------------------


def problems(multiprocessors: int = MULTIPROCESSORS, tma: bool = True) -> list[Problem]:
    """Every entry that can be tuned, the most worthwhile first. Their bounds include those of the committed tables.
    Only the candidates depend on the arguments: how many multiprocessors, and whether the chip has TMA (since Hopper).

    First what training the capstone launches, in 16 bits: heads of 64, rows of 512; then other widths; float32 last.
    """
    found = [
        *_attention_problems(tma),
        *_decode_problems(multiprocessors),
        *_layer_norm_problems(multiprocessors),
        *_swiglu_problems(),
        *_cross_entropy_problems(),
    ]
    return sorted(found, key=lambda problem: problem.rank)


REST, LAST = 20, 100  # ranks: what the capstone does not launch, and what is not in 16 bits


def _grid(**choices: Iterable[int]) -> tuple[Config, ...]:
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


def _attention_problems(tma: bool) -> Iterator[Problem]:
    """The lengths of an entry differ in how many programs there are to fill the chip; the machine code is one."""
    ranks = {(64, 256): 0, (64, 512): 1, (64, 1024): 2, (128, 512): 10, (128, None): 10, (64, None): 11}
    long = ((4, 8, 4096), (1, 8, 16_384))
    shapes = {256: ((64, 8, 256), (64, 8, 128)), 512: ((32, 8, 512), (64, 8, 256)), 1024: ((16, 8, 1024),), None: long}
    classes: list[tuple[tuple[str, ...], int, int | None, int]] = [
        (HALF, width, length, ranks.get((width, length), REST + 5 * i))
        for i, width in enumerate((64, 128, 32, 256, 16))
        for length in ((256, 512, 1024, None) if width == 64 else (512, None))
    ]
    classes += [(d, width, None, LAST + 1) for d in (SINGLE, TF32) for width in (64, 128, 32, 256, 16)]
    for dtypes, width, length, rank in classes:
        odd = {64: 40, 128: 96}.get(width, width)
        checks: tuple[Call, ...] = ((width, (2, 3, 333)), (odd, (1, 2, 513)), (width, (2, 2, 512)))  # the last by TMA
        checks += ((width, (1, 4, 2, 512)),)  # grouped heads, which may spill where others do not
        half = dtypes == HALF
        owned = tuple(product((64, 128) if half else (16, 32, 64, 128), (4, 8)))  # rows of a program, and its warps
        blocks: tuple[int, ...] = (32, 64) if half else (16, 32, 64)
        stages: tuple[int, ...] = (2, 3) if half else (1, 2)
        if half and width < 256:  # 4 warps share an instruction's 64 rows on Hopper; more would divide less
            owned = ((64, 4), (128, 4), (128, 8))
            blocks, stages = (32, 64, 128), (2, 3, 4)
        grid = list(product(owned, blocks, stages))
        for op in ("forward", "backward_q", "backward_kv"):
            rows, columns = ("BLOCK_N", "BLOCK_M") if op == "backward_kv" else ("BLOCK_M", "BLOCK_N")
            candidates = tuple(
                {rows: size, columns: block, "num_warps": warps, "num_stages": n} for (size, warps), block, n in grid
            )
            if tma and half:
                candidates += tuple(config | {"TMA": 1} for config in candidates if config["num_stages"] < 4)
            yield Problem(
                f"attention_{op}", dtypes, width, length, checks, tuple((width, shape) for shape in shapes[length]),
                candidates, rank,
            )  # fmt: skip


def _decode_problems(multiprocessors: int) -> Iterator[Problem]:
    programs = [multiprocessors * n for n in (2, 4, 8, 16)]
    grid = _grid(PROGRAMS=programs, BLOCK_N=(32, 64, 128), num_warps=(2, 4, 8), num_stages=(2, 3))
    for i, (dtypes, width) in enumerate(product((HALF, SINGLE, TF32), (64, 128, 256))):
        odd = {64: 40, 128: 96}.get(width, width)
        checks, timings = ((width, (2, 4, 333)), (odd, (3, 2, 50))), ((64, 8, 256), (8, 8, 1024), (1, 8, 4096))
        calls = tuple((width, shape) for shape in timings)
        rank = LAST + 2 if dtypes != HALF else REST + i if i else 9
        yield Problem("decode", dtypes, width, None, checks, calls, grid, rank)
    grid = _grid(BLOCK_SPLITS=(4, 8, 16, 32), num_warps=(1, 2, 4), num_stages=[1])
    for dtypes, rank in ((HALF, 7), (SINGLE, LAST + 2)):
        of_merge: tuple[Call, ...] = (
            (64, (2, 4, 333)),
            (40, (1, 2, 900)),
            (256, (1, 2, 900)),
        )  # the widest spills first
        calls = ((64, (1, 8, 16_384)), (128, (8, 8, 4096)))
        yield Problem("decode_merge", dtypes, None, None, of_merge, calls, grid, rank)


def _layer_norm_problems(multiprocessors: int) -> Iterator[Problem]:
    # the second stage before the first, which is timed with it; by rows of their own, one a program, as partial sums
    for max_width, width, rank in ((1024, 512, 3), (None, 4096, REST)):
        grid = _grid(ROWS=(16, 32, 64, 128), BLOCK_C=(16, 32, 64, 128), num_warps=(2, 4, 8), num_stages=[1])
        grid = tuple(c for c in grid if 4 <= c["ROWS"] * c["BLOCK_C"] // (32 * c["num_warps"]) <= 32)
        rows = tuple(multiprocessors * n for n in (4, 8, 2))
        checks, timings = ((width, (3, 37)), (width - 24, (200,))), tuple((width, (n,)) for n in rows)
        yield Problem("layer_norm_sum_partials", SINGLE, max_width, None, checks, timings, grid, rank)
    for i, max_width in enumerate((512, 1024, 2048, 256, 4096, 128, 64, 8192, None)):
        width = max_width or 16_384
        checks = ((width, (3, 37)), (width - 24, (200,)))
        timings = tuple((width, (rows,)) for rows in ((16_384, 65_536) if width <= 2048 else (16_384,)))
        blocks = [
            (rows, warps)
            for rows, warps in product((1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32))
            if 4 <= rows * width // (32 * warps) <= 64 and (rows == 1 or rows * width <= 8192)
        ]
        forward = tuple({"ROWS": rows, "num_warps": warps, "num_stages": 1} for rows, warps in blocks)
        backward = tuple(  # 4 to 32 warps of a multiprocessor at once, but for rows that make no partial sums
            {"ROWS": rows, "PROGRAMS": programs, "num_warps": warps, "num_stages": 1}
            for programs in ([multiprocessors * 2**n for n in range(6)] if max_width else (4096, 16_384, 65_536))
            for rows, warps in blocks
            if not max_width or (4 * multiprocessors <= programs * warps <= 32 * multiprocessors)
        )
        for dtypes in (HALF, SINGLE):
            common = (dtypes, max_width, None, checks, timings)
            rank = LAST + 3 + i if dtypes != HALF else REST + 2 * i if i else 4
            yield Problem("layer_norm_forward", *common, forward, rank)
            yield Problem("layer_norm_backward", *common, backward, rank)
    for dtypes, rank in ((HALF, LAST - 1), (SINGLE, LAST + 20)):
        wide = (((16_384, (200,)), (9000, (3, 37))), ((16_384, (16_384,)),))
        grid = _grid(PROGRAMS=(8, 16, 32), ROWS=(4, 8, 16), BLOCK_C=(128, 256, 512), num_warps=(4, 8), num_stages=[1])
        yield Problem("layer_norm_weight_grads", dtypes, None, None, *wide, grid, rank)


def _swiglu_problems() -> Iterator[Problem]:
    grid = _flat("BLOCK", (512, 1024, 2048, 4096), (1, 2, 4, 8))
    timings = ((2048, (16_384,)), (1344, (16_384,)), (8192, (8192,)))
    for op, (dtypes, rank) in product(("forward", "backward"), ((HALF, 5), (SINGLE, LAST))):
        yield Problem(f"swiglu_{op}", dtypes, None, None, ((96, (3, 37)), (2048, (50,))), timings, grid, rank)


def _cross_entropy_problems() -> Iterator[Problem]:
    for i, (max_width, vocab_size) in enumerate(((128, 96), (None, 50_257), (4096, 4096), (1024, 1000))):
        largest = triton.next_power_of_2(vocab_size)
        blocks = sorted({min(size, largest) for size in (128, 1024, 2048, 4096, 8192, 16_384)})
        grid = _flat("BLOCK_V", blocks, (1, 2, 4, 8, 16))
        timings = ((vocab_size, (4096,)),) if vocab_size > 128 else ((vocab_size, (16_384,)),)
        for dtypes in (HALF, SINGLE):
            rank = LAST + 4 if dtypes != HALF else (6, 8, REST + 3, REST + 3)[i]
            yield Problem("cross_entropy", dtypes, max_width, None, ((vocab_size, (77,)),), timings, grid, rank)
    grid = _flat("BLOCK", (512, 1024, 2048, 4096), (1, 2, 4, 8))
    for dtypes, rank in ((HALF, REST + 4), (SINGLE, LAST + 4)):
        checks, timings = ((1000, (77,)),), ((1000, (65_536,)),)  # the gradient of hidden: 65,536 x 64
        yield Problem("cross_entropy_scale", dtypes, None, None, checks, timings, grid, rank)


def _flat(name: str, blocks: Iterable[int], warps: Iterable[int]) -> tuple[Config, ...]:
    """Blocks of 2 to 64 elements a thread."""
    grid = _grid(**{name: blocks}, num_warps=warps, num_stages=[1])
    return tuple(c for c in grid if 2 <= c[name] // (32 * c["num_warps"]) <= 64)


# --- compiling, in other processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """What became of a candidate: why it is refused, or nothing; and a digest of its machine code."""

    refused: str = ""
    code: str = ""


def compiles(problem: Problem, arch: int, config: Config, calls: Sequence[Call]) -> Compiled:
    """Compile what `calls` launch for `arch`, with `config` for the kernel of the problem. Needs no GPU."""
    digest = hashlib.sha256()
    try:
        with machine_code.compiled_launches(arch) as launches, tuning.override(problem.op, config):
            for call in calls:
                problem.run(fused, call, "cpu", make=_uninitialised)
        kernels = [kernel for kernel in launches if kernel.metadata.name == KERNELS[problem.op][0]]
        for kernel in {kernel.hash: kernel for kernel in kernels}.values():
            digest.update(kernel.asm["cubin"])
            found = machine_code.figures(kernel, "", {})
            if found.spills:
                return Compiled(f"spills {found.spills} times")
            if not found.fits:
                return Compiled(f"needs {found.shared / 1024:.0f} KiB of shared memory")
    except Exception as error:  # whatever the compiler raises: another candidate may do better
        return Compiled(f"does not compile: {type(error).__name__}: {str(error)[:200]}")
    return Compiled("", digest.hexdigest())


class Compilers:
    """Processes that compile, the most urgent first. One that dies, as by a fault in LLVM, is replaced; what it was
    compiling is refused, and nothing else is lost.

    function(*task) is called there, and found there by its name; it returns a Compiled.
    """

    def __init__(self, count: int, function: Callable[..., Compiled]):
        self._context = multiprocessing.get_context("spawn")
        self._function = function
        self._tasks: PriorityQueue[tuple[float, int, Future[Compiled], tuple[Any, ...]]] = PriorityQueue()
        self._numbers = itertools.count()
        self._processes: dict[int, Any] = {}
        self._closed = False
        for number in range(count):  # all at once: importing PyTorch and Triton takes seconds
            Thread(target=self._serve, args=(number, self._start(number)), daemon=True).start()

    def submit(self, urgency: float, *task: Any) -> Future[Compiled]:
        """The smaller the urgency, the earlier; first come, first served where it is equal."""
        future: Future[Compiled] = Future()
        self._tasks.put((urgency, next(self._numbers), future, task))
        return future

    def close(self) -> None:
        """Stop at once, whatever is being compiled."""
        self._closed = True
        for process in self._processes.values():
            process.kill()

    def _start(self, number: int) -> Any:
        ours, theirs = self._context.Pipe()
        self._processes[number] = self._context.Process(target=_work, args=(theirs, self._function), daemon=True)
        self._processes[number].start()
        theirs.close()  # else its end would not be noticed here
        return ours

    def _serve(self, number: int, connection: Any) -> None:
        while True:
            *_, future, task = self._tasks.get()
            try:
                connection.send(task)
                future.set_result(connection.recv())
            except (EOFError, OSError):
                if self._closed:
                    return
                future.set_result(Compiled("does not compile: the compiler crashed"))
                connection = self._start(number)


def _work(connection: Any, function: Callable[..., Compiled]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it compiles only; a context on the GPU would cost memory and time
    os.nice(10)  # and must not make the process wait that measures
    torch.set_num_threads(1)
    triton.knobs.compilation.store_binary_only = True  # what a launch needs: a tenth of the files' size
    with contextlib.suppress(EOFError, OSError):  # the other side is gone
        while True:
            connection.send(function(*connection.recv()))


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass
class Screened:
    """The candidates that were timed on the first shape, the fastest first."""

    outcome: Outcome
    ranked: list[Config]


def screen(
    problem: Problem,
    device: torch.device,
    candidates: Iterable[tuple[Config, Compiled]],
    timer: Timer,
    until: float = math.inf,
) -> Screened:
    """Time each candidate that may be launched, a few times, whether its results are right or not.

    Raises OutOfTime after `until`, by time.monotonic.
    """
    before = problem.present(device)
    outcome = Outcome(problem, before, before)
    times: list[tuple[float, int, Config]] = []
    seen = set()
    for config, compiled in candidates:
        _check_time(until)
        if compiled.refused:
            outcome.refused.append((config, compiled.refused))
            continue
        if compiled.code:
            same = (compiled.code, *(value for name, value in config.items() if name != "num_stages"))
            if same in seen:  # no loop that more stages would change
                continue
            seen.add(same)
        try:
            with tuning.override(problem.op, config):
                (replay,) = _replays(problem, device, problem.timings[:1])
                times.append((timer(replay, SCREENING), len(times), config))
        except OutOfResources as error:
            outcome.refused.append((config, f"does not fit: {error}"))
    outcome.timed = len(times)
    return Screened(outcome, [config for *_, config in sorted(times, key=lambda t: t[:2])])


def decide(
    screened: Screened,
    device: torch.device,
    timer: Timer,
    until: float = math.inf,
    compiled: Callable[[Config], Compiled] = lambda config: Compiled(),
) -> Outcome:
    """Choose among the fastest that are right and the present configuration. Raises OutOfTime after `until`."""
    outcome = screened.outcome
    problem = outcome.problem
    judges = [
        (call, Judge(partial(problem.run, reference, call, device), exact))
        for call in problem.checks
        for exact in [problem.run(reference, call, device, torch.float64)]
    ]
    finalists = [outcome.before]
    for config in screened.ranked:
        if len(finalists) > FINALISTS:
            break
        if config == outcome.before:
            continue
        _check_time(until)
        if not (reason := compiled(config).refused):
            with tuning.override(problem.op, config):
                reason = _fault(problem, device, judges)
        if reason:
            outcome.refused.append((config, reason))
        else:
            finalists.append(config)
    finals = _time_in_turn(problem, device, finalists, timer, until)
    best = min(range(len(finals)), key=lambda i: math.prod(finals[i]))
    outcome.before_ms = outcome.chosen_ms = finals[0]
    if statistics.geometric_mean([b / c for b, c in zip(finals[0], finals[best], strict=True)]) > NOISE:
        outcome.chosen, outcome.chosen_ms = finalists[best], finals[best]
    return outcome


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise OutOfTime


def _fault(problem: Problem, device: torch.device, judges: Sequence[tuple[Call, Judge]]) -> str:
    """Why the configuration in force cannot be used, or nothing."""
    for call, judge in judges:
        try:
            first, second = problem.run(fused, call, device), problem.run(fused, call, device)
        except OutOfResources as error:
            return f"does not fit: {error}"
        for fault in (judgement.fault for judgement in judge(first)):
            if fault:
                return f"wrong: {fault}"
        if not all(map(torch.equal, first, second)):
            return "wrong: other bits at the second run"
    return ""


def _replays(problem: Problem, device: torch.device, calls: Sequence[Call]) -> list[Callable[[], None]]:
    """One function a call, that launches the kernels to be timed again, as the operation launched them."""
    launches: list[Callable[[], None]] = []
    kernel_type = type(vars(fused.attention)["_forward_kernel"])  # interpreted kernels are of another
    run = kernel_type.run

    def record(self, *args, **kwargs):
        if self.__name__ in KERNELS[problem.op]:
            launches.append(partial(run, self, *args, **kwargs))
        return run(self, *args, **kwargs)

    found: list[Callable[[], None]] = []
    kernel_type.run = record
    try:
        for call in calls:
            launches = []
            problem.run(fused, call, device)
            found.append(partial(_launch_all, launches))
    finally:
        kernel_type.run = run
    return found


def _launch_all(launches: Sequence[Callable[[], None]]) -> None:
    for launch in launches:
        launch()


def _time_in_turn(
    problem: Problem, device: torch.device, configs: Sequence[Config], timer: Timer, until: float
) -> list[list[float]]:
    """Milliseconds by configuration and timing shape: the median of some rounds, each in another order."""
    rounds: list[list[list[float]]] = [[] for _ in configs]
    for turn in range(ROUNDS):
        for i in range(len(configs)):
            _check_time(until)
            at, times = (turn + i) % len(configs), []
            with tuning.override(problem.op, configs[at]):
                for call in problem.timings:  # one at a time: the tensors of all might not fit into memory
                    (replay,) = _replays(problem, device, [call])
                    times.append(timer(replay, FINAL))
            rounds[at].append(times)
    return [[statistics.median(column) for column in zip(*of_config, strict=True)] for of_config in rounds]


# --- timing ----------------------------------------------------------------------------------------------------------

HOST_CYCLES = 300_000  # of the device's clock, about 150 µs: more than the host takes for a flush, two events, a call


def milliseconds(call: Callable[[], None], repeats: int) -> float:
    """The median time on the device of `repeats` calls, each with a cold L2 cache; one more goes before them.

    The cache is emptied by reading: zeroing would leave lines that are written back during the call. The device first
    sleeps until the host has got ahead, so that it never waits for a launch while it is timed.
    """
    call()
    torch.cuda.synchronize()
    flush = _flush_buffer(torch.cuda.current_device())
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda._sleep(HOST_CYCLES * repeats)
    for start, end in events:
        flush.sum()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


@lru_cache
def _flush_buffer(device: int) -> Tensor:
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.zeros(size // 4, device=f"cuda:{device}")


# --- tuning ----------------------------------------------------------------------------------------------------------


def tune(
    path: Path | None = None,
    ops: Sequence[str] = (),
    minutes: float | None = None,
    say: Callable[[Outcome], None] = lambda _: None,
    begin: Callable[[str], None] = lambda _: None,
    skip: Collection[str] = (),
) -> tuple[Path, list[Outcome]]:
    """Tune the ops whose names begin with one of `ops` (all where none is given); returns the table and the outcomes.

    path: the table to write, by default the user's own of this chip. It is written after every problem, whole and
    valid, so that stopping early loses nothing. After `minutes` it stops within seconds, and what was not finished
    keeps its present configuration. `say` is told each outcome; `begin`, before candidates are launched, the problem as
    str, and before its finalists are, that and FINALS. Problems whose str is in `skip` are left out. Raises TuneError
    where there is no GPU to measure on and for an unknown op, and tuning.TuningError for a table that cannot be used.
    """
    until = time.monotonic() + 60 * (minutes or math.inf)
    _choose(ops, problems())
    if interpreted() or not torch.cuda.is_available() or torch.version.cuda is None:
        why = "TRITON_INTERPRET is set" if interpreted() else "there is none here"
        raise TuneError(f"Tuning measures on an NVIDIA GPU and {why}; run it on the machine that is to be tuned.")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    path = path or tuning.user_folder() / f"sm_{properties.major}{properties.minor}.json"
    found = problems(properties.multi_processor_count, properties.major >= 9)
    chosen = [p for p in _choose(ops, found) if str(p) not in skip]
    if not chosen:
        return path, []
    compiling = Compiling(10 * properties.major + properties.minor)
    outcomes: list[Outcome] = []
    screened: list[Screened] = []

    def finish() -> None:
        one = screened.pop(0)
        problem = one.outcome.problem
        begin(f"{problem}{FINALS}")
        outcomes.append(decide(one, device, milliseconds, until, compiling.finalist(problem, until)))
        write(path, path.stem, device, outcomes)
        say(outcomes[-1])

    try:
        compiling.candidates(chosen)
        for problem in chosen:
            begin(str(problem))
            compiling.present(problem, device)
            screened.append(screen(problem, device, compiling.awaited(problem, until), milliseconds, until))
            compiling.finalists(screened[-1])  # while the finalists of the problem before are measured
            if len(screened) > 1:
                finish()
        while screened:
            finish()
    except OutOfTime:
        pass
    finally:
        compiling.close()
    return path, outcomes


FINALS = ": finalists"


def _choose(ops: Sequence[str], found: list[Problem]) -> list[Problem]:
    if unknown := [op for op in ops if not any(p.op.startswith(op) for p in found)]:
        raise TuneError(f"No operation to tune is called {unknown[0]!r}; there are {', '.join(KERNELS)}.")
    return [p for p in found if not ops or p.op.startswith(tuple(ops))]


class Compiling:
    """What is compiled for tuning, each thing once: candidates in order, and before them what is waited for."""

    def __init__(self, arch: int):
        self.arch = arch
        self.compilers = Compilers(max((os.cpu_count() or 1) - 1, 1), compiles)  # one core is for who measures
        self.close = self.compilers.close
        self.futures: dict[Any, Future[Compiled]] = {}

    def _submit(self, urgency: int, problem: Problem, config: Config, calls: Sequence[Call]) -> Future[Compiled]:
        calls = tuple(dict.fromkeys(map(problem.stand_in, calls)))
        key = (problem.op, problem.dtypes, calls, *config.items())
        if key not in self.futures:
            self.futures[key] = self.compilers.submit(urgency, problem, self.arch, dict(config), calls)
        return self.futures[key]

    def candidates(self, chosen: Sequence[Problem]) -> list[Future[Compiled]]:
        return [self._submit(1, p, config, p.timings[:1]) for p in chosen for config in p.candidates]

    def awaited(self, problem: Problem, until: float) -> Iterator[tuple[Config, Compiled]]:
        for config in problem.candidates:
            yield config, _result(self._submit(1, problem, config, problem.timings[:1]), until)

    def present(self, problem: Problem, device: torch.device) -> None:
        self._submit(0, problem, problem.present(device), problem.timings)

    def finalists(self, screened: Screened) -> None:
        """One more than are wanted: the present configuration may be among the fastest."""
        for config in screened.ranked[: FINALISTS + 1]:
            self._finalist(screened.outcome.problem, config)

    def finalist(self, problem: Problem, until: float) -> Callable[[Config], Compiled]:
        return lambda config: _result(self._finalist(problem, config), until)

    def _finalist(self, problem: Problem, config: Config) -> Future[Compiled]:
        return self._submit(0, problem, config, (*problem.checks, *problem.timings[1:]))


def _result(future: Future[Compiled], until: float) -> Compiled:
    try:
        return future.result(None if until == math.inf else max(until - time.monotonic(), 0))
    except concurrent.futures.TimeoutError:
        raise OutOfTime from None


def write(path: Path, chip: str, device: torch.device, outcomes: Sequence[Outcome]) -> None:
    """Write what was found, and for the other entries of the same ops what the tables have now: whole lists."""
    found = {str(o.problem): o.chosen for o in outcomes}
    ops: dict[str, list[dict[str, Any]]] = {}
    for problem in sorted(problems(), key=lambda p: (p.max_width or math.inf, p.max_length or math.inf)):
        if any(o.problem.op == problem.op for o in outcomes):
            config = found.get(str(problem)) or problem.present(device)
            ops.setdefault(problem.op, []).append(problem.entry(config))
    measured = {"triton": triton.__version__, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    if device.type == "cuda":
        measured = {"device": torch.cuda.get_device_name(device), **measured}
    tuning.write_table(path, chip, {op: _needed(entries) for op, entries in ops.items()}, measured)
    tuning.forget()


def _needed(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those whose calls would find the same configuration in an entry behind them."""

    def redundant(entry: dict[str, Any], behind: Sequence[dict[str, Any]]) -> bool:
        for other in (o for o in behind if o["dtypes"] == entry["dtypes"]):
            if other["config"] != entry["config"]:
                return False
            if all(other[b] is None or (entry[b] or math.inf) <= other[b] for b in ("max_width", "max_length")):
                return True
        return False

    return [entry for i, entry in enumerate(entries) if not redundant(entry, entries[i + 1 :])]


def main(arguments: list[str] | None = None) -> int:
    """Compile candidates beforehand, for a GPU that is not there."""
    description = "Compile candidates of tuning into $TRITON_CACHE_DIR; `minilm tune` measures them."
    parser = argparse.ArgumentParser(prog="python -m kernels.tune", description=description)
    parser.add_argument("--arch", type=int, required=True, choices=machine_code.CHIPS, help="compute capability, as 90")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    parser.add_argument("--op", action="append", default=[], help="operation, or the beginning of its name")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, with which nothing is compiled; unset it")
    until = time.monotonic() + 60 * options.minutes
    compiling = Compiling(options.arch)
    done: list[Compiled] = []
    try:
        futures = compiling.candidates(_choose(options.op, problems(tma=options.arch >= 90)))
        for future in futures:
            done.append(_result(future, until))
    except TuneError as error:
        parser.error(str(error))
    except OutOfTime:
        pass
    finally:
        compiling.close()
    print(f"{len(done)} of {len(futures)} compiled, {sum(bool(c.refused) for c in done)} of them refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
