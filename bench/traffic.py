"""What an eager training step must compute, move and launch on a GPU that is not there, operator by operator.

    python -m bench.traffic [--preset capstone] [--dtype bfloat16] [--tflops 798] [--terabytes 3.0]

A step is made with tensors that have no data, and every operator that PyTorch would send to the device is counted: what
it reads and writes once, what it multiplies. At the given rates, which are those of an H100, this is the time those
kernels take one after another if each is as fast as a copy or a large product; what the L2 cache still holds is read
faster. A host that needs longer than that between two launches makes the device wait. The optimizer counts as fused
AdamW. What torch.compile makes of a step is not in it.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import breakdown, steps, tables
from kernels.backend import BACKENDS, MODULES, OPS, Backend
from minilm import hardware
from minilm.config import PRESETS, RunConfig
from minilm.errors import UserError
from minilm.model import GPT
from minilm.training.facts import FusedAttention

TFLOPS, TERABYTES = 798.0, 3.0  # a second: products in bfloat16 and a copy's reads and writes, measured on an H100
GATHERS = ("embedding", "nll_loss_forward")  # read of their first input no more than they are asked for
WRITES_ONLY = ("zero_", "fill_", "copy_")  # and do not read what they change
NO_KERNEL = ("empty", "detach", "alias", "_unsafe_view", "promote_types")  # allocate, or look


@dataclass
class Cost:
    """Of all calls of one operator in a step: how many, bytes read and written, floating-point operations, seconds."""

    operator: str
    calls: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0


class Count(TorchDispatchMode):
    """Adds up what every operator under it costs, at rates in FLOP and bytes a second."""

    def __init__(self, flops_per_s: float, bytes_per_s: float):
        super().__init__()
        self.rates = flops_per_s, bytes_per_s
        self.costs: dict[str, Cost] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and not any(word in name for word in NO_KERNEL):
            moved, flops = traffic(func, args, kwargs or {}, out), products(name, args)
            cost = self.costs.setdefault(name, Cost(name))
            cost.calls += 1
            cost.bytes += moved
            cost.flops += flops
            cost.seconds += max(moved / self.rates[1], flops / self.rates[0])
        return out


def traffic(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes: every tensor that goes in is read once, every tensor that comes out or is changed is written once."""
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    changed = [
        named[argument.name]
        for argument in func._schema.arguments
        if argument.name in named and argument.alias_info is not None and argument.alias_info.is_write
    ]
    name = func._schema.name.split("::")[1]
    inputs = tree_leaves((args, {key: value for key, value in kwargs.items() if key != "out"}))
    read = {id(x): x for x in inputs[name in GATHERS + WRITES_ONLY :] if isinstance(x, torch.Tensor)}
    written = [x for x in tree_leaves((changed, [] if changed else out)) if isinstance(x, torch.Tensor)]
    gathered = min(held(args[0]), sum(map(held, written))) if name in GATHERS else 0
    return gathered + sum(map(held, [*read.values(), *written]))


def held(x: torch.Tensor) -> int:
    """Bytes of a tensor, an expanded one as often as it is held."""
    elements = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * x.element_size()


def products(name: str, args: Sequence[Any]) -> int:
    """Floating-point operations of matrix products, attention counted causally; 0 of what is bound by memory alone."""
    shapes = [x.shape for x in args if isinstance(x, torch.Tensor)]
    match name:
        case "mm" | "bmm":
            return 2 * shapes[0].numel() * shapes[1][-1]
        case "addmm" | "baddbmm":
            return 2 * shapes[1].numel() * shapes[2][-1]
        case "causal_attention_packed":
            (B, T, width), heads, kv_heads = shapes[0], args[1], args[2]
            return 2 * B * T * T * width * heads // (heads + 2 * kv_heads)
        case "causal_attention_packed_backward":
            return 5 * products("causal_attention_packed", [args[1], args[4], args[5]]) // 2
        case "causal_attention" | "_scaled_dot_product_flash_attention_for_cpu":
            (B, H, T, D), (_, _, Tk, _) = shapes[:2]
            return 2 * B * H * T * Tk * D
        case "causal_attention_backward" | "_scaled_dot_product_flash_attention_for_cpu_backward":
            return 5 * products("causal_attention", args[1:]) // 2
        case "linear_cross_entropy":
            (N, C), (V, _) = shapes[:2]
            return 6 * N * C * V
    return 0


def count(config: RunConfig, kernels: str, dtype: torch.dtype, rates: tuple[float, float]) -> list[Cost]:
    """Of one update, the longest first. Raises UserError where the kernels cannot be imported."""
    try:
        module = importlib.import_module(MODULES[kernels])
    except ModuleNotFoundError as error:
        raise UserError(f"--kernels {kernels} needs {error.name}, which is not installed; take torch.") from None
    ops = Backend(kernels, **{op: getattr(module, op) for op in OPS})
    with torch.device("meta"), FusedAttention():
        model = GPT(config.model, ops, dtype).train()
        rows = config.train.batch_size // config.train.grad_accumulation
        tokens = torch.empty(rows, config.model.context_length, dtype=torch.int64)
        with Count(*rates) as counted:
            model(tokens, tokens).backward()
    # What PyTorch does not do to many tensors at once without a device: gradients are read for their norm, read again
    # and written when they are scaled to it; an update reads them, and reads and writes weights and two moments.
    for cost in counted.costs.values():
        for field in ("calls", "bytes", "flops", "seconds"):
            setattr(cost, field, getattr(cost, field) * config.train.grad_accumulation)
    n = model.count_parameters()["total"]
    moved = {"clip_grad_norm_": 12 * n, "adamw": 28 * n}
    costs = [*counted.costs.values(), *(Cost(name, 1, size, 0, size / rates[1]) for name, size in moved.items())]
    return sorted(costs, key=lambda cost: -cost.seconds)


def table(found: Iterable[Cost], title: str) -> tables.Table:
    found = list(found)
    total = Cost(
        "all", *(sum(getattr(cost, field) for cost in found) for field in ("calls", "bytes", "flops", "seconds"))
    )
    head = ["operator", "part", "calls", "MB", "GFLOP", "us"]
    return (
        title,
        head,
        [
            [
                cost.operator,
                "" if cost is total else breakdown.part_of(f"aten::{cost.operator}"),
                f"{cost.calls}",
                f"{cost.bytes / 1e6:,.1f}",
                f"{cost.flops / 1e9:,.1f}" if cost.flops else "",
                f"{cost.seconds * 1e6:,.1f}",
            ]
            for cost in [*found, total]
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="capstone")
    parser.add_argument("--kernels", choices=BACKENDS, default="triton")
    parser.add_argument("--dtype", choices=list(hardware.DTYPES), default="bfloat16")
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="of matrix products, a second")
    parser.add_argument("--terabytes", type=float, default=TERABYTES, help="read and written by a copy, a second")
    options = parser.parse_args(arguments)
    for name in ("tflops", "terabytes"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} is {getattr(options, name):g}; it must be a number above 0")
    config = steps.with_vocabulary(options.preset)
    dtype = hardware.DTYPES[options.dtype]
    try:
        found = count(config, options.kernels, dtype, (options.tflops * 1e12, options.terabytes * 1e12))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    tokens = f"{config.model.vocab_size:,} different tokens"
    title = f"A step of {options.preset} by {options.kernels}, {options.dtype}, eager, {tokens}"
    console, seconds = Console(soft_wrap=True), sum(cost.seconds for cost in found)
    console.print(tables.plain_table(*table(found, title)))
    n = config.train.batch_size * config.model.context_length
    console.print(f"{n:,} tokens in {1e3 * seconds:.2f} ms: {n / seconds:,.0f} tokens/s if nothing else takes time.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
