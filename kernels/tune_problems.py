"""Lists what can be tuned: the entries of a tuning table, each with its candidates and the calls that judge them.

A Problem is one entry: an operation, and the dtypes, widths and lengths that the entry serves. It runs the operation,
forward and backward, on inputs made from seeds. problems() has all of them, the most worthwhile first. How candidates
are compiled is in kernels.tune_compiling; how they are timed and chosen, in kernels.tune.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.fused import tuning

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


def uninitialised(seed: int, size: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)


def _with_gradients(
    function: Callable[..., Any], inputs: Sequence[Tensor], normal: Callable[..., Tensor]
) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [normal(9, *y.shape).to(y.dtype) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


# --- a problem --------------------------------------------------------------------------------------------------------


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
        self,
        ops: ModuleType,
        call: Call,
        device: Any,
        dtype: torch.dtype | None = None,
        make: Callable[..., Tensor] = _normal,
    ) -> list[Tensor]:
        """Outputs and gradients of the operation by `ops`, in `dtype` or the problem's own.

        make(seed, size, dtype, device) makes an input.
        """
        width, shape = call
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
        # (rows of a program, its warps), columns of a block, stages
        if dtypes != HALF:
            grid = list(product(product((16, 32, 64, 128), (4, 8)), (16, 32, 64), (1, 2)))
        elif width == 256:
            grid = list(product(product((64, 128), (4, 8)), (32, 64), (2, 3)))
        else:  # 4 warps share an instruction's 64 rows on Hopper; more would divide less
            grid = list(product(((64, 4), (128, 4), (128, 8)), (32, 64, 128), (2, 3, 4)))
        for op in ("forward", "backward_q", "backward_kv"):
            rows, columns = ("BLOCK_N", "BLOCK_M") if op == "backward_kv" else ("BLOCK_M", "BLOCK_N")
            candidates = tuple(
                {rows: size, columns: block, "num_warps": warps, "num_stages": n} for (size, warps), block, n in grid
            )
            if tma and dtypes == HALF:
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
        of_merge = ((64, (2, 4, 333)), (40, (1, 2, 900)), (256, (1, 2, 900)))  # the widest spills first
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
