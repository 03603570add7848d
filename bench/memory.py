"""Memory of a training step by part, and the longest context that trains.

    python -m bench.memory [--preset capstone] [--gigabytes 80] [--dtype bfloat16]

What weights, gradients, moments and activations take is counted, exactly and on any machine: it is what autograd keeps
from a forward pass on tensors without data. An operation's own scratch memory is not in it, so a context that fits by
the count may not fit. `python -m bench.gpu` therefore tries contexts as well, doubled until memory runs out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console

from bench import inside, steps, tables, timing
from bench.contest import OK
from kernels.backend import BACKENDS, MODULES, OPS, Backend
from minilm import hardware
from minilm.config import PRESETS, RunConfig
from minilm.errors import UserError
from minilm.training.facts import memory_by_part

SHORTEST, LONGEST = 256, 2**22
FIRST_TRIED, LONGEST_TRIED = 4096, 2**18  # on a GPU, whose time is dear: what is shorter fits anyhow
LONGEST_STEP = 20.0  # seconds of a step that is tried
GIGABYTES = 80.0


def ways() -> list[tuple[str, bool]]:
    """(kernels, activations checkpointed), the plainest first."""
    return [(name, again) for again in (False, True) for name in BACKENDS]


def counted(config: RunConfig, kernels: str, dtype: torch.dtype) -> dict[str, int]:
    """Bytes by part, whatever machine this is: the operations are not called, only what they would return is known."""
    module = importlib.import_module(MODULES[kernels])
    return memory_by_part(config, Backend(kernels, **{op: getattr(module, op) for op in OPS}), dtype, dtype)


def at(preset: str, context_length: int, batch_size: int, checkpointed: bool, device: torch.device) -> RunConfig:
    config = steps.config_of(preset, context_length, batch_size, device)
    train = dataclasses.replace(config.train, checkpoint_activations=checkpointed, compile="off")
    return dataclasses.replace(config, train=train)


def parts(preset: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A row a way and part: one micro-batch of the preset as it is."""
    own = steps.with_vocabulary(preset)
    size = own.model.context_length, own.train.batch_size // own.train.grad_accumulation
    found = []
    for name, again in ways():
        train = dataclasses.replace(own.train, checkpoint_activations=again)
        for part, count in counted(dataclasses.replace(own, train=train), name, dtype).items():
            row = {"preset": preset, "context_length": size[0], "batch_size": size[1], "kernels": name}
            found.append(row | {"checkpoint_activations": again, "part": part, "bytes": count})
    return found


def longest(preset: str, budget: float, device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """A row a way: the longest context, of one sequence, for which `budget` bytes are enough by the count, found to one
    part in a hundred; None where not even SHORTEST fits."""
    for name, again in ways():

        def fits(T: int, name: str = name, again: bool = again) -> bool:
            return sum(counted(at(preset, T, 1, again, device), name, dtype).values()) <= budget

        least, most = SHORTEST, SHORTEST
        while most <= LONGEST and fits(most):
            least, most = most, 2 * most
        found = least if least < most else None  # not even the shortest
        while found is not None and most - least > max(1, least // 100):
            middle = (least + most) // 2
            found = least = middle if fits(middle) else least
            most = most if least == middle else middle
        yield {"kernels": name, "checkpoint_activations": again, "context_length": found, "budget_bytes": int(budget)}


def row_of(preset: str, kernels: str, again: bool, context_length: int, dtype: torch.dtype) -> dict[str, Any]:
    """Of a context that is to be tried, one sequence: what it is, and what it takes by the count."""
    config = at(preset, context_length, 1, again, torch.device("cpu"))
    return {
        "kernels": kernels,
        "checkpoint_activations": again,
        "context_length": context_length,
        "counted_bytes": sum(counted(config, kernels, dtype).values()),
        "peak_bytes": None,
        "step_s": None,
    }


def tried(row: dict[str, Any], preset: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The row with its status and, where two steps fit on the GPU, peak_bytes and the seconds of the second."""
    config = at(preset, row["context_length"], 1, row["checkpoint_activations"], device)
    torch._dynamo.reset()  # what was compiled before holds its model
    steps.clear(device)
    status, measured, step = OK, {}, None
    try:
        torch.cuda.reset_peak_memory_stats(device)
        step, _ = steps.prepare(steps.Entry(row["kernels"], "off"), config, dtype, device, None)
        step()
        timing.synchronize(device)
        began = time.perf_counter()
        step()
        timing.synchronize(device)
        measured = {"step_s": time.perf_counter() - began, "peak_bytes": torch.cuda.max_memory_allocated(device)}
    except Exception as error:  # also a launch that is too large, or an index beyond 32 bits
        status, reason = steps.status_of(error)
        status += f": {reason}" * bool(reason)
    step = None
    steps.clear(device)
    return row | measured | {"status": status}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="capstone")
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="of a GPU's memory, 2**30 bytes each")
    parser.add_argument("--dtype", choices=list(hardware.DTYPES), default="bfloat16")
    options = parser.parse_args(arguments)
    if not options.gigabytes > 0:
        parser.error(f"--gigabytes is {options.gigabytes:g}; it must be above 0")
    console, dtype, cpu = Console(), hardware.DTYPES[options.dtype], torch.device("cpu")
    try:
        by_part = parts(options.preset, dtype)
        found = list(longest(options.preset, options.gigabytes * 2**30, cpu, dtype))
        for table in (inside.memory_table(by_part), inside.contexts_table(by_part, found)):
            console.print(tables.plain_table(*table))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
