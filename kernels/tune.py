"""Finds the fastest launch configurations on the GPU at hand and writes them into a tuning table: `minilm tune`.

A Problem is one entry of a table: an operation, and the dtypes, widths and lengths that the entry serves. Its
candidates are first compiled, in several processes and without the GPU, and those whose machine code spills or does
not fit are refused. Each of the rest must give right results by the error rule, the same bits twice, and is then timed
on the problem's shapes, its own kernel alone, with a cold L2 cache. The fastest few are timed again in turn with the
present configuration, which stays unless it is beaten by more than the noise.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from kernels import fused, machine_code, reference
from kernels.backend import interpreted
from kernels.error_rule import judge
from kernels.fused import tuning

NOISE = 1.02  # a configuration must be faster than the present one by this factor
FINALISTS = 3
HALF, SINGLE, TF32 = ("float16", "bfloat16"), ("float32",), ("tf32",)
KERNELS = {  # the kernel that an op of the tables configures
    "attention_forward": "_forward_kernel",
    "attention_backward_q": "_query_gradient_kernel",
    "attention_backward_kv": "_key_gradient_kernel",
    "decode": "_decode_kernel",
    "decode_merge": "_merge_kernel",
    "layer_norm_forward": "_norm_forward",
    "layer_norm_backward": "_norm_backward",
    "layer_norm_weight_grads": "_norm_weight_grads",
    "layer_norm_sum_partials": "_sum_partials",
    "swiglu_forward": "_swiglu_forward",
    "swiglu_backward": "_swiglu_backward",
    "cross_entropy": "_loss_and_dlogits",
    "cross_entropy_scale": "_scale",
}

Config = Mapping[str, int]
Call = tuple[int, tuple[int, ...]]  # the width, and the shape that the family's function takes beside it


class TuneError(RuntimeError):
    """Nothing can be tuned here; the message is one sentence for the person."""


@dataclass(frozen=True)
class Problem:
    """One entry of a table, to be found. The smaller the rank, the earlier it is worth its time."""

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

    def run(self, ops: ModuleType, call: Call, device: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Outputs and gradients of the operation by `ops`, in `dtype` or the problem's own."""
        width, shape = call
        family = next(f for name, f in FAMILIES.items() if self.op.startswith(name))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.dtypes == TF32 and dtype is None else "highest")
        try:
            dtype = dtype or (torch.float32 if self.dtypes == TF32 else getattr(torch, self.dtype))
            return family(ops, width, shape, lambda seed, *size: _normal(seed, size, dtype, device))
        finally:
            torch.set_float32_matmul_precision(before)

    def __str__(self) -> str:
        bounds = [f"width <= {self.max_width}"] if self.max_width else []
        bounds += [f"length <= {self.max_length}"] if self.max_length else []
        return ", ".join([self.op, "/".join(self.dtypes), *bounds])


@dataclass
class Outcome:
    """What became of a problem: milliseconds, one a timing shape; what was refused, and why."""

    problem: Problem
    before: Config
    chosen: Config
    before_ms: list[float] = field(default_factory=list)
    chosen_ms: list[float] = field(default_factory=list)
    refused: list[tuple[Config, str]] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        """Geometric mean over the shapes; 1 where the present configuration stays."""
        ratios = [b / c for b, c in zip(self.before_ms, self.chosen_ms, strict=True)]
        return statistics.geometric_mean(ratios) if ratios else 1.0


# --- what is run: each family from normally distributed numbers, forward and backward ---------------------------------


def _attention(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    B, H, T = shape
    return _with_gradients(lambda qkv: ops.causal_attention_packed(qkv, H), [normal(1, B, T, 3 * H * width)])


def _decode(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    B, H, S = shape
    q, k, v = normal(1, B, H, 1, width), normal(2, B, H, S, width), normal(3, B, H, S, width)
    lengths = S - torch.arange(B, device=q.device) * S // (2 * B)  # ragged
    return [ops.decode_attention(q, k, v, lengths)]


def _layer_norm(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    inputs = [normal(1, *shape, width), normal(2, *shape, width), normal(3, width), normal(4, width)]
    return _with_gradients(ops.add_layer_norm, inputs)


def _swiglu(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    return _with_gradients(ops.swiglu, [normal(1, *shape, 2 * width)])


def _cross_entropy(ops: ModuleType, width: int, shape: tuple[int, ...], normal: Callable[..., Tensor]) -> list[Tensor]:
    hidden, weight = normal(1, *shape, 64), normal(2, width, 64)
    targets = torch.arange(*shape, device=hidden.device) * 7919 % width
    return _with_gradients(lambda h, w: ops.linear_cross_entropy(h, w, targets), [hidden, weight])


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


def _with_gradients(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [_normal(9, tuple(y.shape), y.dtype, y.device) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


# --- the problems ----------------------------------------------------------------------------------------------------


def problems() -> list[Problem]:
    """Every entry that can be tuned, the most worthwhile first. Their bounds include those of the committed tables."""
    families = (_attention_problems, _decode_problems, _layer_norm_problems, _swiglu_problems, _cross_entropy_problems)
    found = [problem for family in families for problem in family()]
    return sorted(found, key=lambda problem: problem.rank)


def _grid(**choices: Iterable[int]) -> tuple[Config, ...]:
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


def _attention_problems() -> Iterator[Problem]:
    classes: list[tuple[tuple[str, ...], int, int | None]] = [
        (HALF, width, length) for width in (64, 128, 32, 256, 16) for length in (512, None)
    ]
    classes += [(dtypes, width, None) for dtypes in (SINGLE, TF32) for width in (64, 128, 32, 256, 16)]
    for rank, (dtypes, width, length) in enumerate(classes):
        odd = {64: 40, 128: 96}.get(width, width)
        checks = ((width, (2, 3, 333)), (odd, (1, 2, 513)))
        timings = ((64, 8, 256), (32, 8, 512)) if length else ((16, 8, 1024), (4, 8, 4096))
        half = dtypes == HALF
        small, large = ((32, 64, 128), (64, 128)) if half and width < 256 else ((16, 32, 64), (16, 32, 64, 128))
        launch = {"num_warps": (4, 8), "num_stages": (2, 3, 4) if half else (1, 2)}
        by_rows = _grid(BLOCK_M=large, BLOCK_N=small, **launch)
        by_columns = _grid(BLOCK_M=small, BLOCK_N=large, **launch)
        for op, candidates in (("forward", by_rows), ("backward_kv", by_columns), ("backward_q", by_rows)):
            yield Problem(
                f"attention_{op}", dtypes, width, length, checks, tuple((width, shape) for shape in timings),
                candidates, 10 * rank,
            )  # fmt: skip


def _decode_problems() -> Iterator[Problem]:
    grid = _grid(BLOCK_N=(16, 32, 64, 128), PROGRAMS=(256, 512, 1024, 2048), num_warps=(2, 4, 8), num_stages=(2, 3))
    for rank, (width, dtypes) in enumerate(product((64, 128, 256), (HALF, SINGLE, TF32))):
        odd = {64: 40, 128: 96}.get(width, width)
        checks, timings = ((width, (2, 4, 333)), (odd, (3, 2, 50))), ((1, 8, 4096), (8, 8, 1024), (64, 8, 256))
        calls = tuple((width, shape) for shape in timings)
        yield Problem("decode", dtypes, width, None, checks, calls, grid, 25 + 10 * rank)
    grid = _grid(BLOCK_SPLITS=(4, 8, 16, 32), num_warps=(1, 2, 4), num_stages=[1])
    for dtypes in (HALF, SINGLE):
        checks, calls = ((64, (2, 4, 333)), (40, (1, 2, 900))), ((64, (1, 8, 16_384)), (128, (8, 8, 4096)))
        yield Problem("decode_merge", dtypes, None, None, checks, calls, grid, 97)


def _layer_norm_problems() -> Iterator[Problem]:
    for rank, max_width in enumerate((512, 1024, 2048, 256, 4096, 128, 64, 8192, None)):
        width = max_width or 16_384
        checks = ((width, (3, 37)), (width - 24, (200,)))
        timings = tuple((width, (rows,)) for rows in ((16_384, 65_536) if width <= 2048 else (16_384,)))
        rows = [rows for rows in (1, 2, 4, 8, 16, 32) if rows == 1 or rows * width <= 4096]
        warps = [warps for warps in (1, 2, 4, 8, 16, 32) if 8 <= max(rows) * width // (32 * warps) <= 128] or [32]
        programs = (128, 256, 512, 1024, 2048) if max_width else (4096, 16_384, 65_536)
        for dtypes in (HALF, SINGLE):
            common = (dtypes, max_width, None, checks, timings)
            order = 10 * rank + (3 if dtypes == HALF else 60)
            yield Problem("layer_norm_forward", *common, _grid(ROWS=rows, num_warps=warps, num_stages=[1]), order)
            grid = _grid(ROWS=rows, PROGRAMS=programs, num_warps=warps, num_stages=[1])
            yield Problem("layer_norm_backward", *common, grid, order)
    for dtypes in (HALF, SINGLE):
        wide = (((16_384, (200,)), (9000, (3, 37))), ((16_384, (16_384,)),))
        grid = _grid(ROWS=(4, 8, 16), BLOCK_C=(128, 256, 512), PROGRAMS=(8, 16, 32), num_warps=(4, 8), num_stages=[1])
        yield Problem("layer_norm_weight_grads", dtypes, None, None, *wide, grid, 98)
    for max_width, width in ((1024, 512), (None, 4096)):
        grid = _grid(ROWS=(32, 64, 128), BLOCK_C=(32, 64, 128), num_warps=(4, 8), num_stages=[1])
        checks, timings = ((width, (3, 37)), (width - 24, (200,))), ((width, (16_384,)),)
        yield Problem("layer_norm_sum_partials", SINGLE, max_width, None, checks, timings, grid, 95)


def _swiglu_problems() -> Iterator[Problem]:
    grid = _grid(BLOCK=(512, 1024, 2048, 4096), num_warps=(1, 2, 4, 8), num_stages=[1])
    timings = ((1344, (16_384,)), (2048, (16_384,)), (8192, (8192,)))
    for op, (dtypes, rank) in product(("forward", "backward"), ((HALF, 4), (SINGLE, 64))):
        yield Problem(f"swiglu_{op}", dtypes, None, None, ((96, (3, 37)), (2048, (50,))), timings, grid, rank)


def _cross_entropy_problems() -> Iterator[Problem]:
    for rank, (max_width, vocab_size) in enumerate(((128, 96), (None, 50_257), (4096, 4096), (1024, 1000))):
        largest = triton.next_power_of_2(vocab_size)
        grid = _grid(
            BLOCK_V=sorted({min(size, largest) for size in (128, 1024, 2048, 4096, 8192, 16_384)}),
            num_warps=(1, 2, 4, 8, 16), num_stages=[1],
        )  # fmt: skip
        timings = ((vocab_size, (4096,)),)
        for dtypes in (HALF, SINGLE):
            order = 5 + 10 * rank + (0 if dtypes == HALF else 60)
            yield Problem("cross_entropy", dtypes, max_width, None, ((vocab_size, (77,)),), timings, grid, order)
    grid = _grid(BLOCK=(512, 1024, 2048, 4096), num_warps=(1, 2, 4, 8), num_stages=[1])
    for dtypes in (HALF, SINGLE):
        checks, timings = ((1000, (77,)),), ((1000, (65_536,)),)  # the gradient of hidden: 65,536 x 64
        yield Problem("cross_entropy_scale", dtypes, None, None, checks, timings, grid, 96)


# --- the search ------------------------------------------------------------------------------------------------------


def search(
    problem: Problem, device: torch.device, survivors: Sequence[Config], timer: Callable[[Callable[[], None]], float]
) -> Outcome:
    """The best of the survivors and the present configuration; `timer` gives the milliseconds of a call."""
    before = problem.present(device)
    outcome = Outcome(problem, before, before)
    judges = [
        (call, problem.run(reference, call, device), problem.run(reference, call, device, torch.float64))
        for call in problem.checks
    ]
    times: list[tuple[list[float], Config]] = []
    for config in survivors:
        with tuning.override(problem.op, config):
            if reason := _fault(problem, device, judges):
                outcome.refused.append((config, reason))
                continue
            with _replays(problem, device) as replays:
                times.append(([timer(replay) for replay in replays], config))
    finalists = [config for _, config in sorted(times, key=lambda t: math.prod(t[0]))][:FINALISTS]
    finalists = [before, *(config for config in finalists if config != before)]
    finals = _time_in_turn(problem, device, finalists, timer)
    best = min(range(len(finals)), key=lambda i: math.prod(finals[i]))
    outcome.before_ms = outcome.chosen_ms = finals[0]
    if statistics.geometric_mean([b / c for b, c in zip(finals[0], finals[best], strict=True)]) > NOISE:
        outcome.chosen, outcome.chosen_ms = finalists[best], finals[best]
    return outcome


def _fault(problem: Problem, device: torch.device, judges: Sequence[tuple[Call, list[Tensor], list[Tensor]]]) -> str:
    """Why the configuration in force cannot be used, or nothing."""
    for call, plain, exact in judges:
        try:
            first, second = problem.run(fused, call, device), problem.run(fused, call, device)
        except triton.runtime.errors.OutOfResources as error:
            return f"does not fit: {error}"
        for got, again, *judged in zip(first, second, plain, exact, strict=True):
            if fault := judge(got, *judged).fault:
                return f"wrong: {fault}"
            if not torch.equal(got, again):
                return "wrong: other bits at the second run"
    return ""


@contextlib.contextmanager
def _replays(problem: Problem, device: torch.device) -> Iterator[list[Callable[[], None]]]:
    """One function a timing shape, that launches the kernel of the problem again as the operation launched it."""
    launches: list[Callable[[], None]] = []
    kernel_type = type(vars(fused.attention)["_forward_kernel"])  # interpreted kernels are of another
    run = kernel_type.run

    def record(self, *args, **kwargs):
        if self.__name__ == KERNELS[problem.op]:
            launches.append(partial(run, self, *args, **kwargs))
        return run(self, *args, **kwargs)

    found = []
    kernel_type.run = record
    try:
        for call in problem.timings:
            launches.clear()
            problem.run(fused, call, device)
            found.append(launches[0])
    finally:
        kernel_type.run = run
    yield found


def _time_in_turn(
    problem: Problem, device: torch.device, configs: Sequence[Config], timer: Callable[[Callable[[], None]], float]
) -> list[list[float]]:
    """Milliseconds by configuration and timing shape: the median of five rounds, each in another order."""
    rounds: list[list[list[float]]] = [[] for _ in configs]
    for turn in range(5):
        for i in range(len(configs)):
            at = (turn + i) % len(configs)
            with tuning.override(problem.op, configs[at]), _replays(problem, device) as replays:
                rounds[at].append([timer(replay) for replay in replays])
    return [[statistics.median(column) for column in zip(*of_config, strict=True)] for of_config in rounds]


def compiles(problem: Problem, arch: int, config: Config) -> str:
    """Why the machine code of `config` for `arch` is refused, or nothing. Needs no GPU."""
    try:
        with machine_code.compiled_launches(arch) as launches, tuning.override(problem.op, config):
            for width, shape in problem.checks:
                problem.run(fused, (width, shape), "cpu")
    except Exception as error:  # whatever the compiler raises: another candidate may do better
        return f"does not compile: {type(error).__name__}: {str(error)[:200]}"
    for kernel in {kernel.hash: kernel for kernel in launches if kernel.metadata.name == KERNELS[problem.op]}.values():
        found = machine_code.figures(kernel, "", {})
        if found.spills:
            return f"spills {found.spills} times"
        if not found.fits:
            return f"needs {found.shared / 1024:.0f} KiB of shared memory"
    return ""


def tune(
    path: Path | None = None,
    ops: Sequence[str] = (),
    minutes: float | None = None,
    say: Callable[[Outcome], None] = lambda _: None,
) -> tuple[Path, list[Outcome]]:
    """Tune the ops whose names begin with one of `ops` (all where none is given); returns the table and the outcomes.

    path: the table to write, by default the user's own of this chip. It is written after every problem, whole and
    valid, so that stopping early loses nothing. `say` is told each outcome; after `minutes` no further problem is
    begun. Raises TuneError where there is no GPU to measure on and for an unknown op, and tuning.TuningError for a
    table that cannot be used.
    """
    chosen = [(number, p) for number, p in enumerate(problems()) if not ops or p.op.startswith(tuple(ops))]
    if unknown := [op for op in ops if not any(p.op.startswith(op) for _, p in chosen)]:
        raise TuneError(f"No operation to tune is called {unknown[0]!r}; there are {', '.join(KERNELS)}.")
    if interpreted() or not torch.cuda.is_available() or torch.version.cuda is None:
        why = "TRITON_INTERPRET is set" if interpreted() else "there is none here"
        raise TuneError(f"Tuning measures on an NVIDIA GPU and {why}; run it on the machine that is to be tuned.")
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    path = path or tuning.user_folder() / f"sm_{major}{minor}.json"
    end = time.monotonic() + 60 * (minutes or math.inf)
    outcomes: list[Outcome] = []
    pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), _start_worker)
    try:
        compiled = {  # all at once: they are taken up in this order, while the GPU measures
            number: [pool.submit(_compiles_in_worker, number, 10 * major + minor, c) for c in problem.candidates]
            for number, problem in chosen
        }
        for number, problem in chosen:
            if time.monotonic() > end:
                break
            refused = [(c, f.result()) for c, f in zip(problem.candidates, compiled[number], strict=True)]
            outcome = search(problem, device, [c for c, reason in refused if not reason], _milliseconds)
            outcome.refused += [(c, reason) for c, reason in refused if reason]
            outcomes.append(outcome)
            write(path, path.stem, device, outcomes)
            say(outcome)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return path, outcomes


def write(path: Path, chip: str, device: torch.device, outcomes: Sequence[Outcome]) -> None:
    """Write what was found, and for the other entries of the same ops what the tables have now: whole lists."""
    found = {str(o.problem): o.chosen for o in outcomes}
    ops: dict[str, list[dict[str, Any]]] = {}
    for problem in sorted(problems(), key=lambda p: (p.max_width or math.inf, p.max_length or math.inf)):
        if any(o.problem.op == problem.op for o in outcomes):
            config = found.get(str(problem)) or problem.present(device)
            ops.setdefault(problem.op, []).append(problem.entry(config))
    tuning.write_table(path, chip, ops)
    tuning.forget()


def _start_worker() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it compiles only; a context on the GPU would cost memory and time
    torch.set_num_threads(1)


def _compiles_in_worker(number: int, arch: int, config: Config) -> str:
    return compiles(problems()[number], arch, config)


def _milliseconds(call: Callable[[], None]) -> float:
    """The median of about 40 ms of calls, each with a cold L2 cache."""
    return triton.testing.do_bench(call, warmup=5, rep=40, return_mode="median")
