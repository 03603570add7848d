"""Where the time of a training step goes: by part, against the least that the machine's own speed allows.

    python -m bench.breakdown [--preset quick] [--kernels torch] [--compile off] [--device cpu]

The profiler of PyTorch gives the time of every kernel on a GPU, of every operator on a CPU; each belongs to a part by
its name. What is left of the step's time, as the clock has it without the profiler, is "between": launches that the
device waited for on a GPU, the interpreter on a CPU, where the profiler's own cost is in the parts and may leave
nothing. A part's floor reads each input once and writes each output once
at the speed of a copy, or multiplies at the speed of a large product, whichever takes longer; both are measured first.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from bench import inside, steps, tables, timing
from kernels import BackendUnavailable
from minilm import hardware
from minilm.config import PRESETS, RunConfig
from minilm.errors import UserError

# The first that matches the name of a kernel or an operator. What torch.compile fuses is named after all of its
# operators, so it belongs to none of their parts. The products of attention that is multiplied out are matrix products
# here; the one sum that is not a bias's gradient is that of the positions.
PARTS = {
    "autograd": r"^autograd::engine|Backward\d+$",
    "fused by the compiler": r"^triton_(?!tem_fused\w*mm)|CompiledFxGraph|Torch-Compiled",
    "loss": r"_loss_and_dlogits|^_scale$|cross_entropy|nll|log_?softmax|softmax_warp_\w+<[^>]*, \d+, true",
    "dropout": r"dropout|masked_scale|philox|distribution_|bernoulli|aten::rand",
    "attention backward": r"_(query|key)_gradient_kernel|(attention|softmax).*backward"
    r"|(fmha|flash|sdpa).*(bwd|bprop|backward)|fmha_cutlassB|dot_do_o|convert_dq",
    "attention forward": r"^_forward_kernel|attention|fmha|flash|sdpa|softmax",
    "norm backward": r"_norm_backward|_norm_weight_grads|_sum_partials|(layer|rms)_?norm.*(backward|grad)|GammaBeta",
    "norm forward": r"_norm_forward|layer_?norm|rms_?norm|RowwiseMoments",
    "matrix products": r"^triton_tem|gemm|gemv|nvjet|cutlass|xmma|^sm\d+_|splitK|cublas|mkldnn|onednn"
    r"|aten::(mm|addmm|bmm|matmul|linear|_?baddbmm)",
    "optimizer": r"adam|multi_tensor|muon|foreach|lerp|addcdiv|vector_norm|lpnorm|NormTwoOps|^Optimizer",
    "activation": r"gelu|silu|swiglu|relu",
    "embedding": r"embedding|index|vectorized_gather|compute_grad_weight|sum_and_scatter|segment|cub::|thrust::",
    "fills": r"FillFunctor|memset|aten::(fill|zero|ones|full)",
    "copies and casts": r"copy|copies|memcpy|_to_|cat\b|contiguous|clone",
    "bias gradients": r"reduce_kernel.*sum_functor|aten::sum",
}
OTHER, BETWEEN = "other", "between"
COUNTED = 5  # steps under the profiler
LAUNCH = r"cu(da)?(Launch|GraphLaunch|Mem(cpy|set)\w*Async)"  # what the host calls


@dataclass
class Whole:
    """Of a step: step_s by the clock, without the profiler; host_s how long the host takes to launch it, and launches
    how many calls it launches with, a graph's replay being one; both None on a CPU."""

    step_s: float
    host_s: float | None = None
    launches: float | None = None


@dataclass
class Part:
    """Of a step: seconds on the device, how many calls, the floor in seconds (None where none is known), and the
    longest names with their seconds."""

    part: str
    seconds: float
    calls: float
    floor_s: float | None
    names: tuple[tuple[str, float], ...] = ()


def part_of(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


def floors(config: RunConfig, dtype: torch.dtype, flops_per_s: float, bytes_per_s: float) -> dict[str, float]:
    """Seconds of each part of a step at least. AdamW is assumed, and attention counted causally."""
    m, n = config.model, config.train.batch_size * config.model.context_length
    e, C, F, L, V = dtype.itemsize, m.d_model, m.d_ff, m.n_layers, int(m.vocab_size)
    width = (m.n_heads + 2 * m.n_kv_heads) * m.head_dim
    gated = 2 if m.activation == "swiglu" else 1

    def product(rows: int, inner: int, columns: int) -> float:
        traffic = e * (rows * inner + inner * columns + rows * columns)
        return max(2 * rows * inner * columns / flops_per_s, traffic / bytes_per_s)

    def both_ways(inner: int, columns: int) -> float:  # forward, gradient of the inputs, gradient of the weights
        return product(n, inner, columns) + product(n, columns, inner) + product(inner, n, columns)

    layers = both_ways(C, width) + both_ways(C, C) + both_ways(C, gated * F) + both_ways(F, C)
    attention = 2 * n * m.context_length * C  # two products, half of the square
    parameters = L * (C * width + C * C + (gated + 1) * C * F) + V * C
    return {
        "matrix products": L * layers + both_ways(C, V),
        "attention forward": L * max(attention / flops_per_s, e * n * (width + C) / bytes_per_s),
        "attention backward": L * max(2.5 * attention / flops_per_s, e * n * (2 * width + 2 * C) / bytes_per_s),
        "norm forward": 2 * L * 4 * e * n * C / bytes_per_s,
        "norm backward": 2 * L * 4 * e * n * C / bytes_per_s,
        "activation": L * e * n * F * (3 * gated + 2) / bytes_per_s,
        "loss": 2 * e * n * V / bytes_per_s,
        "optimizer": 28 * parameters / bytes_per_s,
        "copies and casts": (4 + e) * parameters / bytes_per_s if e < 4 else 0.0,
    }


def measure(
    preset: str,
    context_length: int,
    batch_size: int,
    entry: steps.Entry,
    device: torch.device,
    rates: tuple[float, float],
) -> tuple[Whole, list[Part]]:
    """(the step, its parts, the longest first)."""
    torch._dynamo.reset()  # what was compiled before counts against the limit of recompilations
    steps.clear(device)
    config = steps.config_of(preset, context_length, batch_size, device)
    dtype = hardware.resolve_dtype(config.train.dtype, device, config.model.d_model)
    step, _ = steps.prepare(entry, config, dtype, device, None)
    for _ in range(5):
        step()
    block = {"step": lambda: [step() for _ in range(steps.BLOCK[device.type])]}
    times = timing.in_turn(block, device, 3.0, wall=True)["step"]
    whole = Whole(times.median / steps.BLOCK[device.type], steps.host_seconds(step, device))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(COUNTED):
            step()
        timing.synchronize(device)
    found: dict[str, tuple[float, int, dict[str, float]]] = {}
    events = profiler.key_averages()
    if device.type == "cuda":
        whole.launches = sum(event.count for event in events if re.match(LAUNCH, event.key)) / COUNTED
    for event in events:
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        annotation = on_device and event.is_user_annotation  # of a stretch whose kernels stand for themselves
        if on_device != (device.type == "cuda") or annotation or event.key.startswith("Activity Buffer"):
            continue
        seconds = (event.self_device_time_total if on_device else event.self_cpu_time_total) * 1e-6 / COUNTED
        total, calls, names = found.get(part_of(event.key), (0.0, 0, {}))
        names[event.key] = names.get(event.key, 0.0) + seconds
        found[part_of(event.key)] = total + seconds, calls + event.count, names
    least = floors(config, dtype, *rates)
    parts = [
        Part(
            part, seconds, calls / COUNTED, least.get(part), tuple(sorted(names.items(), key=lambda item: -item[1])[:3])
        )
        for part, (seconds, calls, names) in found.items()
    ]
    parts += [Part(part, 0.0, 0, floor) for part, floor in least.items() if part not in found]
    parts.append(Part(BETWEEN, max(0.0, whole.step_s - sum(part.seconds for part in parts)), 0, None))
    return whole, sorted(parts, key=lambda part: -part.seconds)


def rows(
    whole: Whole, parts: Sequence[Part], preset: str, size: tuple[int, int], entry: steps.Entry
) -> list[dict[str, Any]]:
    """For a results file: a row a part."""
    same = {"preset": preset, "label": str(entry), "context_length": size[0], "batch_size": size[1]}
    return [same | asdict(whole) | asdict(part) for part in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.breakdown", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=list(PRESETS), default=None, help="capstone on a GPU, else quick")
    parser.add_argument("--kernels", choices=("reference", "torch", "triton"), default=None)
    parser.add_argument("--compile", choices=tuple(steps.MODES), default="off")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    try:
        device = hardware.resolve_device(options.device)
        preset = options.preset or ("capstone" if device.type == "cuda" else "quick")
        kernels = options.kernels or ("triton" if device.type == "cuda" else "torch")
        config = steps.build(preset)
        size = config.model.context_length, config.train.batch_size // config.train.grad_accumulation
        entry = steps.Entry(kernels, options.compile)
        whole, parts = measure(preset, *size, entry, device, rates(device, config.model.d_model))
    except (UserError, BackendUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    for title, head, cells in inside.time_tables(rows(whole, parts, preset, size, entry)):
        Console(soft_wrap=True).print(tables.plain_table(f"{title}, on {device}", head, cells))
    return 0


def rates(device: torch.device, d_model: int) -> tuple[float, float]:
    """(FLOP/s, bytes/s) of a large product in the dtype that would be used, and of a copy."""
    dtype = hardware.resolve_dtype("auto", device, d_model)
    return timing.matmul_rate(device, dtype), timing.copy_bandwidth(device)


if __name__ == "__main__":
    sys.exit(main())
